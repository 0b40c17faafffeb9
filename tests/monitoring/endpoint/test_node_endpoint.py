"""One endpoint for the ranks of a node, with real processes: the loss of one rank does not take the others' metrics away."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.registry import Collector

from monitoring import EndpointError, MetricsServer, MonitoringConfig, Publication, RankIdentity, RunMetrics
from monitoring.endpoint import node_collector as module
from monitoring.endpoint.node_collector import NodeCollector
from monitoring.endpoint.rank_socket import RankSocket, socket_path
from monitoring.endpoint.server import encode
from tests.launching import has_ended
from tests.monitoring.endpoint.ranks import Rank, by_rank, get, scrape, wait_until


def identity(folder: Path, rank: int = 0, world: int = 1) -> RankIdentity:
    return RankIdentity(folder, folder.name, "node", rank, world, rank, world, 1)


def make_private(folder: Path) -> None:
    for each in (folder.parent, folder):
        each.mkdir(mode=0o700, exist_ok=True)


def test_one_endpoint_serves_every_rank_of_the_node_with_its_own_labels(tmp_path: Path) -> None:
    with Rank(tmp_path / "run", 0) as first, Rank(tmp_path / "run", 1) as second:
        assert not second.url
        assert second.endpoint is None
        found = wait_until(lambda: families if len(by_rank(families := scrape(first.url), "step")) == 2 else None)
        assert by_rank(found, "step") == {"0": 40.0, "1": 41.0}
        assert by_rank(found, "rank_up") == {"0": 1.0, "1": 1.0}
        for family in found.values():
            seen = [(sample.name, tuple(sorted(sample.labels.items()))) for sample in family.samples]
            assert len(set(seen)) == len(seen), f"{family.name}: a series twice"
            assert {(sample.labels["run"], sample.labels["node"]) for sample in family.samples} <= {("run", "node")}
        text = get(first.url, Accept="application/openmetrics-text;version=1.0.0")[1].decode()
        assert {family.name for family in parse_openmetrics(text)} >= {"context_encoder_rank_up", "context_encoder_step_seconds"}  # type: ignore[no-untyped-call]


def test_a_rank_that_is_killed_takes_nothing_of_the_others_away_and_its_last_values_are_gone(tmp_path: Path) -> None:
    with Rank(tmp_path / "run", 0, 3) as first, Rank(tmp_path / "run", 1, 3) as killed, Rank(tmp_path / "run", 2, 3):
        assert set(by_rank(scrape(first.url), "step")) == {"0", "1", "2"}
        killed.kill()
        found = scrape(first.url)
        assert by_rank(found, "rank_up") == {"0": 1.0, "1": 0.0, "2": 1.0}
        assert set(by_rank(found, "step")) == {"0", "2"}
        assert set(by_rank(found, "heartbeat_age_seconds")) == {"0", "2"}


@pytest.mark.slow
def test_a_rank_that_hangs_costs_its_own_metrics_until_it_goes_on(tmp_path: Path) -> None:
    with Rank(tmp_path / "run", 0, 3) as first, Rank(tmp_path / "run", 1, 3) as hanging, Rank(tmp_path / "run", 2, 3):
        assert set(by_rank(scrape(first.url), "step")) == {"0", "1", "2"}
        hanging.process.send_signal(signal.SIGSTOP)
        for _ in range(3):
            found = scrape(first.url)
            assert by_rank(found, "rank_up") == {"0": 1.0, "1": 0.0, "2": 1.0}
            assert set(by_rank(found, "step")) == {"0", "2"}
        hanging.process.send_signal(signal.SIGCONT)
        wait_until(lambda: by_rank(scrape(first.url), "rank_up")["1"] == 1.0)


def test_the_first_rank_may_hang_as_well(tmp_path: Path) -> None:
    with Rank(tmp_path / "run", 0) as first, Rank(tmp_path / "run", 1):
        assert set(by_rank(scrape(first.url), "step")) == {"0", "1"}
        first.process.send_signal(signal.SIGSTOP)
        try:
            assert by_rank(scrape(first.url), "rank_up") == {"0": 0.0, "1": 1.0}
        finally:
            first.process.send_signal(signal.SIGCONT)


def test_the_age_of_the_heartbeat_is_that_of_the_scrape(tmp_path: Path) -> None:
    """Values that are computed at the scrape are of a moment between the request and the answer, also when many clients ask."""
    metrics, asked = RunMetrics("run", 0, 1, "node"), []
    metrics.heartbeat(time.monotonic)
    path = socket_path(tmp_path / "run", "node", 0)

    def ask(server: MetricsServer) -> None:
        before = time.monotonic()
        text = get(f"http://{server.target}/metrics")[1].decode()
        (line,) = (line for line in text.splitlines() if line.startswith("context_encoder_heart"))
        asked.append((before, float(line.split()[-1]), time.monotonic()))

    with (
        RankSocket(metrics.registry, path, 1),
        closing(NodeCollector({0: path}, run="run", node="node", attempt=1)) as collector,
        MetricsServer(collector.collected_by, MonitoringConfig(port=0)) as server,
        ThreadPoolExecutor(8) as pool,
    ):
        for delay in range(8):
            pool.submit(lambda wait: time.sleep(wait) or ask(server), 0.1 * delay)
    assert len(asked) == 8
    for before, value, after in asked:
        assert before <= value <= after
    assert len({value for _, value, _ in asked}) <= 3, "ranks are not asked once for every scrape"


def test_ranks_are_asked_at_the_same_time_and_for_a_bounded_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RANK_SECONDS", 1.5)
    paths = {rank: socket_path(tmp_path / "run", "node", rank) for rank in range(8)}
    metrics = RunMetrics("run", 7, 8, "node")
    with RankSocket(metrics.registry, paths[7], 1):
        silent = []
        for rank in range(7):  # they take the connection and say nothing
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            server.bind(str(paths[rank]))
            server.listen()
            silent.append(server)
        collector = NodeCollector(paths, run="run", node="node", attempt=1)
        text_of(collector)  # by now all threads have opened what they need
        files = psutil.Process().num_fds()
        began = time.monotonic()
        text = text_of(collector).decode()
        assert time.monotonic() - began < 7 * module.RANK_SECONDS, "one after the other"
        assert text.count("context_encoder_rank_up{") == 8
        assert 'context_encoder_step{node="node",rank="7",run="run"}' in text
        wait_until(lambda: psutil.Process().num_fds() <= files)
        collector.close()
    for rank, server in enumerate(silent):
        server.close()
        paths[rank].unlink()


class Held(Collector):
    """Metrics that can be kept from being read, as those of a rank that hangs."""

    def __init__(self, inner: Collector) -> None:
        self.inner, self.free, self.delay = inner, threading.Event(), 0.0

    def collect(self) -> Iterator[Metric]:
        self.free.wait()
        time.sleep(self.delay)
        yield from self.inner.collect()


def text_of(collector: NodeCollector) -> bytes:
    return encode(collector, False)


def ups(text: bytes) -> list[str]:
    """The values of `rank_up`, in the order of the ranks."""
    return [line.split()[-1] for line in text.decode().splitlines() if line.startswith("context_encoder_rank_up{")]


def test_a_rank_that_hangs_takes_no_more_than_half_the_time_that_prometheus_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RANK_SECONDS", 600.0)
    paths = {rank: socket_path(tmp_path / "run", "node", rank) for rank in range(2)}
    metrics = [RunMetrics("run", rank, 2, "node") for rank in range(2)]
    held = Held(metrics[1].registry)
    collector = NodeCollector(paths, run="run", node="node", attempt=1)
    with (
        closing(collector),
        MetricsServer(collector.collected_by, MonitoringConfig(port=0)) as server,
        RankSocket(metrics[0].registry, paths[0], 1),
        RankSocket(held, paths[1], 1),
    ):
        url = f"http://127.0.0.1:{server.port}/metrics"
        assert ups(get(url, **{"X-Prometheus-Scrape-Timeout-Seconds": "3"})[1]) == ["1.0", "0.0"]
        held.free.set()
        wait_until(lambda: ups(get(url, **{"X-Prometheus-Scrape-Timeout-Seconds": "10"})[1]) == ["1.0", "1.0"])
        assert ups(get(url, **{"X-Prometheus-Scrape-Timeout-Seconds": "0.000001"})[1]) == ["1.0", "1.0"], (
            "no client makes a rank look silent"
        )


@pytest.mark.slow
def test_a_rank_that_was_silent_is_waited_for_again_when_it_has_said_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, held = socket_path(tmp_path / "run", "node", 0), Held(RunMetrics("run", 0, 1, "node").registry)
    monkeypatch.setattr(module, "RANK_SECONDS", 0.5)
    collector = NodeCollector({0: path}, run="run", node="node", attempt=1)
    with closing(collector), RankSocket(held, path, 1), ThreadPoolExecutor(1) as pool:
        assert ups(text_of(collector)) == ["0.0"]
        monkeypatch.setattr(module, "RANK_SECONDS", 120.0)
        for _ in range(2):
            assert ups(pool.submit(text_of, collector).result(60)) == ["0.0"], "it is waited for as if it had answered"
        held.delay = 2 * module.SILENT_SECONDS
        held.free.set()
        wait_until(lambda: ups(text_of(collector)) == ["1.0"])


def answering(path: Path, families: object, before: str = "pass") -> str:
    """A program that answers on a socket as a rank of the first attempt would; "here" when it does."""
    answer = json.dumps({"attempt": 1, "families": families})
    return (
        f"import os, socket; s = socket.socket(socket.AF_UNIX); s.bind({str(path)!r}); {before}; s.listen(); print('here', flush=True)\n"
        f"while True:\n c, _ = s.accept(); c.sendall({answer.encode()!r}); c.close()"
    )


def own(rank: int = 0, **others: str) -> dict[str, str]:
    return {"run": "run", "rank": str(rank), "node": "node", **others}


@pytest.mark.parametrize(
    ("mode", "before"),
    [
        (0o755, "pass"),
        (0o777, "pass"),
        pytest.param(0o700, "os.setuid(65534)", marks=pytest.mark.skipif(os.getuid() != 0, reason="only root is any other user")),
    ],
)
def test_an_answer_that_another_user_may_have_given_is_none(tmp_path: Path, mode: int, before: str) -> None:
    path = socket_path(tmp_path / "run", "node", 0)
    make_private(path.parent)
    program = answering(path, [["context_encoder_rank_up", "", "gauge", "", [["context_encoder_rank_up", own(), 1.0]]]], before)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as listener:
        try:
            assert listener.stdout is not None
            assert listener.stdout.readline() == "here\n"
            collector = NodeCollector({0: path}, run="run", node="node", attempt=1)
            path.parent.chmod(mode)
            assert ups(text_of(collector)) == ["0.0"]
        finally:
            listener.kill()
            shutil.rmtree(path.parent)


def test_series_that_are_not_those_of_the_rank_that_was_asked_are_dropped(tmp_path: Path) -> None:
    def family(name: str, *labels: dict[str, str]) -> list[object]:
        return [name, "", "gauge", "", [[name, each, 1.0] for each in labels]]

    path = socket_path(tmp_path / "run", "node", 0)
    make_private(path.parent)
    wrong = own(rank=1), own(run="another"), own(node="another"), {}
    families = [family("context_encoder_step", own(), *wrong), family("context_encoder_forged", *wrong), family("context_encoder_none_yet")]
    with subprocess.Popen([sys.executable, "-c", answering(path, families)], stdout=subprocess.PIPE, text=True) as listener:
        try:
            assert listener.stdout is not None
            assert listener.stdout.readline() == "here\n"
            text = text_of(NodeCollector({0: path}, run="run", node="node", attempt=1)).decode()
            other = text_of(NodeCollector({1: path}, run="third", node="node", attempt=1))
        finally:
            listener.kill()
            shutil.rmtree(path.parent)
    series = [line for line in text.splitlines() if not line.startswith("#")]
    assert series == ['context_encoder_step{node="node",rank="0",run="run"} 1.0']
    assert "context_encoder_forged" not in text
    assert "# TYPE context_encoder_none_yet gauge" in text
    assert ups(other) == ["0.0"], "a rank that says nothing of its own has not answered"


@pytest.mark.parametrize(
    "answer", [b"", b"{", b'{"attempt": 1}', b'{"attempt": 1, "families": [["a", "", "gauge", "", [["a", [], 1]]]]}', b"[]", b"\xff"]
)
def test_an_answer_that_is_cut_off_or_nonsense_is_none(tmp_path: Path, answer: bytes) -> None:
    path = socket_path(tmp_path / "run", "node", 0)
    make_private(path.parent)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen()

        def say() -> None:
            client, _ = server.accept()
            with client:
                client.sendall(answer)

        thread = threading.Thread(target=say)
        thread.start()
        text = text_of(NodeCollector({0: path}, run="run", node="node", attempt=1)).decode()
        thread.join()
    path.unlink()
    path.parent.rmdir()
    assert [line for line in text.splitlines() if not line.startswith("#")] == [
        'context_encoder_rank_up{node="node",rank="0",run="run"} 0.0'
    ]


def test_what_a_process_of_another_attempt_answers_is_not_taken(tmp_path: Path) -> None:
    with Rank(tmp_path / "run", 0, attempt=2) as first, Rank(tmp_path / "run", 1, attempt=1):
        found = scrape(first.url)
        assert by_rank(found, "rank_up") == {"0": 1.0, "1": 0.0}
        assert set(by_rank(found, "step")) == {"0"}
        with Rank(tmp_path / "run", 1, attempt=2, step=99):  # takes the name over, though the other one still lives
            assert by_rank(scrape(first.url), "step") == {"0": 40.0, "1": 99.0}


def test_two_runs_on_a_node_do_not_mix(tmp_path: Path) -> None:
    one, other = tmp_path / "one" / "run", tmp_path / "other" / "run"  # of the same name, even
    with Rank(one, 0) as first, Rank(one, 1), Rank(other, 0, step=100) as second, Rank(other, 1, step=101):
        assert by_rank(scrape(first.url), "step") == {"0": 40.0, "1": 41.0}
        assert by_rank(scrape(second.url), "step") == {"0": 100.0, "1": 101.0}


def test_each_rank_has_an_endpoint_of_its_own_where_that_is_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with Rank(folder, 0, per="rank") as first, Rank(folder, 1, per="rank") as second:
        assert by_rank(scrape(first.url), "step") == {"0": 40.0}
        assert by_rank(scrape(second.url), "step") == {"1": 41.0}
        groups = [json.loads(path.read_text())[0] for path in sorted((folder / "targets").iterdir())]
        assert [(group["labels"]["rank"], group["targets"][0] in (first.url + second.url)) for group in groups] == [
            ("0", True),
            ("1", True),
        ]


def test_the_process_ends_with_its_rank_whichever_way_that_ends(tmp_path: Path) -> None:
    for end in (Rank.end, Rank.kill):
        with Rank(tmp_path / "run", 0, 1) as rank:
            assert rank.endpoint is not None
            scrape(rank.url)
            end(rank)
            wait_until(lambda endpoint=rank.endpoint: has_ended(endpoint))
            with pytest.raises(OSError, match="refused"):
                get(rank.url)
    assert rank.log.read_text() == ""


def test_the_process_ends_with_its_rank_though_another_process_keeps_the_pipe_open(tmp_path: Path) -> None:
    """A process that the rank forked has the pipe's writing end as well, and may outlive a rank that is killed."""
    with Rank(tmp_path / "run", 0, 1) as rank:
        assert rank.endpoint is not None
        scrape(rank.url)
        with open(f"/proc/{rank.endpoint.pid}/fd/0", "wb"):  # another writing end of the pipe
            rank.kill()
            wait_until(lambda: has_ended(rank.endpoint), 20)
            with pytest.raises(OSError, match="refused"):
                get(rank.url)


def test_only_a_good_end_takes_the_target_away(tmp_path: Path) -> None:
    """After any other end the target stays, because Prometheus must know that something should answer there."""
    target = tmp_path / "run" / "targets" / "rank0.json"
    for end in (Rank.kill, Rank.fail, Rank.end):
        with Rank(tmp_path / "run", 0, 1) as rank:
            content = target.read_text()
            end(rank)
            assert (target.exists(), target.exists() and target.read_text() == content) == (
                (False, False) if end is Rank.end else (True, True)
            )


def test_signals_for_the_whole_job_do_not_end_the_process(tmp_path: Path) -> None:
    with Rank(tmp_path / "run", 0, 1) as rank:
        assert rank.endpoint is not None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            rank.endpoint.send_signal(number)
        assert by_rank(scrape(rank.url), "rank_up") == {"0": 1.0}
        assert rank.endpoint.is_running()
        assert rank.endpoint.nice() > psutil.Process(rank.process.pid).nice(), "the ranks come first"
        blocked = int(Path(f"/proc/{rank.endpoint.pid}/status").read_text().partition("SigBlk:")[2].split()[0], 16)
        assert blocked >> (signal.SIGTTOU - 1) & 1, "a terminal with stty tostop would stop it at its first line"
        assert rank.end() == 0


def test_a_process_that_dies_is_started_again_behind_the_same_address(tmp_path: Path) -> None:
    with Rank(tmp_path / "run", 0, 1) as rank:
        assert rank.endpoint is not None
        scrape(rank.url)
        rank.endpoint.kill()
        assert by_rank(scrape(rank.url), "step") == {"0": 40.0}, "a request waits in the socket until the process is there again"
        assert "(signal 9) and is started again" in rank.log.read_text()
        assert rank.end() == 0
    assert not list((tmp_path / "run" / "targets").iterdir())


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    sockets = socket_path(folder, "node", 0).parent
    process, threads = psutil.Process(), threading.active_count()
    files = process.num_fds()
    for _ in range(3):
        with Publication(
            RunMetrics("run", 0, 1, "node").registry, MonitoringConfig(port=0), identity(folder), folder / "targets"
        ) as publication:
            assert by_rank(scrape(publication.url), "rank_up") == {"0": 1.0}
            assert stat.S_IMODE(sockets.stat().st_mode) == stat.S_IMODE(sockets.parent.stat().st_mode) == 0o700
        publication.close()
    assert not sockets.exists()
    assert process.num_fds() <= files
    assert threading.active_count() <= threads
    assert not [child for child in process.children() if "monitoring.endpoint.main" in " ".join(child.cmdline())]


def test_what_killed_runs_left_is_swept_and_runs_that_live_are_not(tmp_path: Path) -> None:
    paths = {name: socket_path(tmp_path / name, "node", 0) for name in ("killed", "young", "living")}
    for name in ("killed", "young"):
        with Rank(tmp_path / name, 0, 1) as rank:
            rank.kill()
        assert paths[name].exists()
    with Rank(tmp_path / "living", 0, 1) as living:
        for name in ("killed", "living"):
            os.utime(paths[name].parent, (0, 0))
        with Rank(tmp_path / "another", 0, 1) as another:
            assert {name: path.exists() for name, path in paths.items()} == {"killed": False, "young": True, "living": True}
            assert not paths["killed"].parent.exists()
            assert by_rank(scrape(living.url), "rank_up") == {"0": 1.0}
            assert another.end() == 0
    shutil.rmtree(paths["young"].parent)
    shutil.rmtree(paths["living"].parent)


def test_what_was_opened_is_closed_where_a_setting_can_not_be_used(tmp_path: Path) -> None:
    files, settings = psutil.Process().num_fds(), MonitoringConfig(port=0, address="203.0.113.7")
    with pytest.raises(EndpointError, match=r"monitoring\.address: 203\.0\.113\.7"):
        Publication(RunMetrics("run", 0, 1, "node").registry, settings, identity(tmp_path / "run"), tmp_path / "targets")
    assert psutil.Process().num_fds() <= files
    assert not socket_path(tmp_path / "run", "node", 0).exists()


@pytest.mark.parametrize("folder", ["open to others", "a link"])
def test_a_folder_that_is_not_private_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, folder: str
) -> None:
    temporary = Path(tempfile.mkdtemp())  # tmp_path is too long for a socket
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    found = temporary / f"context-encoder-{os.getuid()}"
    if folder == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        found.symlink_to(tmp_path / "elsewhere")
    else:
        found.mkdir()
        found.chmod(0o755)
    settings = MonitoringConfig(port=0)
    with Publication(RunMetrics("run", 0, 1, "node").registry, settings, identity(tmp_path / "run"), tmp_path / "targets") as publication:
        shutil.rmtree(temporary)
        assert "TMPDIR" in caplog.text
        assert str(found) in caplog.text
        assert by_rank(scrape(publication.url), "rank_up") == {"0": 0.0}, "the run goes on, and says so"


@pytest.mark.parametrize(
    ("local", "settings", "reached"),
    [
        (1, {}, False),
        (2, {}, True),
        (1, {"pushgateway": "http://127.0.0.1:9"}, True),
        (1, {"address": "0.0.0.0"}, True),  # noqa: S104
    ],
)
def test_nodes_that_no_prometheus_can_scrape_are_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, local: int, settings: dict[str, str], reached: bool
) -> None:
    folder = tmp_path / "run"
    summaries: list[str] = []
    for rank in (0, local) if local < 2 else (0,):  # the first of each node
        rank_of_node = RankIdentity(folder, "run", f"n{rank}", rank, 2, 0, local, 1)
        registry = RunMetrics("run", rank, 2, f"n{rank}").registry
        with Publication(registry, MonitoringConfig(port=0, **settings), rank_of_node, folder / "targets") as publication:  # type: ignore[arg-type]
            summaries.append(publication.summary)
            assert publication.url in publication.summary
            targets = {name for name in ("rank0.json", "rank1.json") if (folder / "targets" / name).exists()}
            assert targets == {f"rank{rank}.json"}
    warnings = [record.message for record in caplog.records if "monitoring.pushgateway" in record.message]
    assert len(warnings) == (not reached), "one, by rank 0"
    for each in warnings:
        assert "monitoring.address: only the node itself reaches 127.0.0.1," in each
        assert "monitoring.token_file" in each
    alone = local < 2 and "address" not in settings
    assert all((str(folder / "targets") in each) is not alone for each in summaries)
    assert all(("of this node" in each) is alone and (settings.get("pushgateway", "") in each) for each in summaries)


def test_a_long_temporary_folder_is_no_hindrance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("x" * 120)))
    path = socket_path(tmp_path / "run", "node", 1023)
    assert len(str(path)) < 100
    with RankSocket(RunMetrics("run", 1023, 1024, "node").registry, path, 1):
        assert text_of(NodeCollector({1023: path}, run="run", node="node", attempt=1)).count(b"rank_up{") == 1
