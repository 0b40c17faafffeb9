"""Pushes to a real Pushgateway: what arrives, what is deleted, and that no gateway troubles a run."""

from __future__ import annotations

import http.server
import json
import logging
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from monitoring import EndpointError, MonitoringConfig, Publication, RankIdentity, RunMetrics
from monitoring.endpoint import pushgateway as module
from monitoring.endpoint.pushgateway import Pushgateway
from tests.launching import has_ended
from tests.monitoring.endpoint.ranks import Rank, get, wait_until
from tests.ports import free_port

PASSWORD = "pa:ss w0rd"
BCRYPT = "$2b$04$HWTvwAp5F6tuq8wHNjbMk.vmtE/FY5pzCVCuapeTb75JJcfTuNdGy"
REAL = pytest.mark.skipif(
    shutil.which("prometheus-pushgateway") is None, reason="prometheus-pushgateway is not installed (Debian: prometheus-pushgateway)"
)
pytestmark = pytest.mark.server


@contextmanager
def gateway(folder: Path, port: int, user: str = "") -> Iterator[str]:
    """A real one on the loopback interface that keeps nothing; its URL."""
    command = ["prometheus-pushgateway", f"--web.listen-address=127.0.0.1:{port}", "--persistence.file="]
    if user:
        (folder / "web.yml").write_text(json.dumps({"basic_auth_users": {user: BCRYPT}}))
        command.append(f"--web.config.file={folder / 'web.yml'}")
    with (folder / "gateway.log").open("ab") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until(lambda: answers(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5).close()
    except urllib.error.HTTPError:
        return True  # 401
    except OSError:
        return False
    return True


def groups(url: str) -> list[dict[str, Any]]:
    """The groups that the gateway holds, each with its labels and its metrics."""
    found: list[dict[str, Any]] = json.loads(get(f"{url}/api/v1/metrics")[1])["data"]
    return found


def put(url: str, body: bytes) -> None:
    request = urllib.request.Request(url, body, method="PUT")  # noqa: S310
    urllib.request.urlopen(request, timeout=10).close()  # noqa: S310


def keys(url: str) -> list[dict[str, str]]:
    return sorted_groups(*(group["labels"] for group in groups(url)))


def sorted_groups(*found: dict[str, str]) -> list[dict[str, str]]:
    return sorted(found, key=lambda group: sorted(group.items()))


def steps(group: dict[str, Any]) -> dict[str, str]:
    """Label `rank` -> value."""
    return {each["labels"]["rank"]: each["value"] for each in group["context_encoder_step"]["metrics"]}


@REAL
def test_a_node_pushes_the_metrics_of_its_ranks_and_deletes_them_at_its_end(tmp_path: Path) -> None:
    with gateway(tmp_path, free_port()) as url:
        put(f"{url}/metrics/job/context_encoder/run/other/node/node", b"# TYPE context_encoder_step gauge\ncontext_encoder_step 7\n")
        settings = {"pushgateway": url, "pushgateway_seconds": 0.2}
        with Rank(tmp_path / "run", 0, **settings) as first, Rank(tmp_path / "run", 1, **settings):
            own = {"job": "context_encoder", "run": "run", "node": "node"}
            found = wait_until(lambda: next((g for g in groups(url) if g["labels"] == own and len(steps(g)) == 2), None))
            assert steps(found) == {"0": "40", "1": "41"}
            assert {each["labels"]["job"] for each in found["context_encoder_rank_up"]["metrics"]} == {"context_encoder"}
            assert found["context_encoder_step_seconds"]["type"] == "HISTOGRAM"
            assert found["context_encoder_steps_total"]["type"] == "COUNTER"
            text = get(f"{url}/metrics")[1].decode()
            assert re.search(r'^context_encoder_step\{.*job="context_encoder",node="node",rank="1",run="run"\} 41$', text, re.MULTILINE)
            assert first.end() == 0
            assert keys(url) == [{"job": "context_encoder", "run": "other", "node": "node"}], "only what it had pushed itself"
        assert first.log.read_text() == ""


@REAL
def test_each_rank_has_a_group_of_its_own_where_each_is_served_on_its_own(tmp_path: Path) -> None:
    with gateway(tmp_path, free_port()) as url:
        settings = {"pushgateway": url, "pushgateway_seconds": 0.2, "per": "rank"}
        with Rank(tmp_path / "run", 0, **settings) as first, Rank(tmp_path / "run", 1, **settings) as second:
            wait_until(lambda: sorted(key["rank"] for key in keys(url)) == ["0", "1"])
            assert second.end() == 0
            assert [key["rank"] for key in keys(url)] == ["0"]
            assert first.end() == 0
            wait_until(lambda: keys(url) == [])  # a gateway answers a DELETE before the group is gone


@REAL
@pytest.mark.parametrize("end", ["killed", "error"])
def test_what_a_run_that_did_not_end_well_had_pushed_stays_until_it_starts_again(tmp_path: Path, end: str) -> None:
    """Prometheus sees by it that the run is gone. The next attempt may be on other nodes."""
    elsewhere = {"job": "context_encoder", "run": "run", "node": "lost"}
    other = {"job": "context_encoder", "run": "other", "node": "node"}
    own = {"job": "context_encoder", "run": "run", "node": "node"}
    with gateway(tmp_path, free_port()) as url:
        for group in (elsewhere, other):
            put(f"{url}/metrics/job/context_encoder/run/{group['run']}/node/{group['node']}", b"left_behind 1\n")
        settings = {"pushgateway": url, "pushgateway_seconds": 0.2}
        with Rank(tmp_path / "run", 0, 1, **settings) as rank:
            wait_until(lambda: keys(url) == sorted_groups(other, own))
            assert rank.endpoint is not None
            put(f"{url}/metrics/job/context_encoder/run/run/node/lost", b"left_behind 1\n")  # of an attempt with other nodes
            if end == "killed":
                rank.kill()
            else:
                assert rank.fail() != 0
            wait_until(lambda: has_ended(rank.endpoint))
            assert keys(url) == sorted_groups(elsewhere, other, own)
        with Rank(tmp_path / "run", 0, 1, attempt=2, **settings) as rank:
            wait_until(lambda: keys(url) == sorted_groups(other, own))
            assert rank.end() == 0
        wait_until(lambda: keys(url) == [other])  # a gateway answers a DELETE before the group is gone


@REAL
def test_names_of_any_kind_are_groups(tmp_path: Path) -> None:
    group = {"run": "it's a/run, 100% +ä", "node": "n.0"}
    metrics = RunMetrics(group["run"], 0, 1, group["node"])
    with gateway(tmp_path, free_port()) as url:
        with Pushgateway(MonitoringConfig(pushgateway=url, pushgateway_seconds=0.1), metrics.registry, group):
            wait_until(lambda: keys(url))
            assert keys(url) == [{"job": "context_encoder", **group}]
        wait_until(lambda: keys(url) == [])  # a gateway answers a DELETE before the group is gone


@REAL
def test_a_gateway_that_is_away_costs_one_warning_an_outage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"

    def said(text: str) -> int:
        return sum(text in record.getMessage() for record in caplog.records)

    def pushed() -> float:
        (group,) = groups(url) or [{"push_time_seconds": {"metrics": [{"value": "0"}]}}]
        return float(group["push_time_seconds"]["metrics"][0]["value"])

    with Pushgateway(
        MonitoringConfig(pushgateway=url, pushgateway_seconds=0.02),
        RunMetrics("run", 0, 1, "node").registry,
        {"run": "run", "node": "node"},
    ) as pusher:
        for outage in (1, 2):
            wait_until(lambda: pusher.failed > 5)
            assert said("took no metrics") == outage
            with gateway(tmp_path, port):
                wait_until(pushed)
                wait_until(lambda outage=outage: said("takes metrics again") == outage)
                before = pushed()
                wait_until(lambda before=before: pushed() > before)
    assert said("took no metrics") <= 3
    assert "Connection refused" in caplog.text


@REAL
def test_a_password_opens_a_gateway_and_is_in_no_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret = tmp_path / "secret"
    secret.write_text("wrong password\n")
    port = free_port()
    metrics = RunMetrics("run", 0, 1, "node")
    caplog.set_level(logging.DEBUG)
    with gateway(tmp_path, port, user="trainer") as url:
        with Pushgateway(
            MonitoringConfig(pushgateway=url, pushgateway_seconds=0.1, pushgateway_user="trainer", pushgateway_secret_file=str(secret)),
            metrics.registry,
            {"run": "run"},
        ) as pusher:
            wait_until(lambda: pusher.failed > 2)
            assert "401 Unauthorized" in caplog.text
            secret.write_text(f"{PASSWORD}\n")  # it is read for every push
            wait_until(lambda: not pusher.failed)
            assert "takes metrics again" in caplog.text
        assert "could not be deleted" not in caplog.text
    for word in ("wrong password", PASSWORD, "Basic ", "Authorization"):
        assert word not in caplog.text


class Recorder(http.server.BaseHTTPRequestHandler):
    """Takes what has the right bearer token, as what stands before a gateway in a cluster does."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str]]

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        allowed = self.headers.get("Authorization") == "Bearer t0ken-ü".encode().decode("latin-1")
        self.seen.append((self.command, self.path))
        self.send_response(202 if allowed else 403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_DELETE = do_PUT

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_a_token_is_sent_as_a_bearer_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret, seen = tmp_path / "secret", list[tuple[str, str]]()
    secret.write_text("t0ken-ü\n", encoding="utf-8")
    handler = type("Handler", (Recorder,), {"seen": seen})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/behind/a/path"
        with Pushgateway(
            MonitoringConfig(pushgateway=url, pushgateway_seconds=0.1, pushgateway_secret_file=str(secret)),
            RunMetrics("run", 0, 1, "node").registry,
            {"run": "run"},
        ):
            wait_until(lambda: len(seen) > 2)
        server.shutdown()
        thread.join()
    assert set(seen[:-1]) == {("PUT", "/behind/a/path/metrics/job/context_encoder/run/run")}
    assert seen[-1] == ("DELETE", "/behind/a/path/metrics/job/context_encoder/run/run")
    assert not caplog.records


def test_a_gateway_that_never_answers_holds_nothing_up_for_long(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PUSH_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        pusher = Pushgateway(
            MonitoringConfig(pushgateway=url, pushgateway_seconds=0.01), RunMetrics("run", 0, 1, "node").registry, {"run": "run"}
        )
        wait_until(lambda: pusher.failed > 2)
        began = time.monotonic()
        pusher.close()
        pusher.close()
        assert time.monotonic() - began < 10
        open_to_the_gateway = [each for each in psutil.Process().net_connections() if each.raddr == silent.getsockname()]
    assert "timed out" in caplog.text
    assert "run run could not be deleted" in caplog.text
    assert not open_to_the_gateway


def test_a_run_ends_well_while_its_gateway_never_answers(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Rank(tmp_path / "run", 0, 1, pushgateway=url) as rank:
            assert rank.end() == 0
            assert rank.endpoint is not None
            assert not rank.endpoint.is_running()
    assert "could not be deleted from the Pushgateway" in rank.log.read_text()


@pytest.mark.parametrize("content", [None, "", "two\nlines"])
def test_a_secret_that_can_not_be_sent_is_refused_before_the_training(tmp_path: Path, content: str | None) -> None:
    secret = tmp_path / "secret"
    if content is not None:
        secret.write_text(content)
    with pytest.raises(EndpointError, match=r"monitoring\.pushgateway_secret_file") as raised:
        Publication(
            RunMetrics("run", 0, 1, "node").registry,
            MonitoringConfig(port=0, pushgateway="http://127.0.0.1:9", pushgateway_secret_file=str(secret)),
            RankIdentity(tmp_path / "run", "run", "node", 0, 1, 0, 1, 1),
            tmp_path / "targets",
        )
    assert str(secret) in str(raised.value)
    assert "two" not in str(raised.value)


@REAL
def test_a_push_that_is_refused_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with gateway(tmp_path, free_port()) as url:
        put(f"{url}/metrics/job/another", b"# TYPE context_encoder_step counter\ncontext_encoder_step 7\n")
        with Pushgateway(
            MonitoringConfig(pushgateway=url, pushgateway_seconds=0.1), RunMetrics("run", 0, 1, "node").registry, {"run": "run"}
        ) as pusher:
            wait_until(lambda: pusher.failed)
    assert "400 Bad Request, pushed metrics are invalid or inconsistent" in caplog.text
