"""The server of the metrics, over real sockets: its answers, its clients and its limits."""

from __future__ import annotations

import gc
import http.client
import logging
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from monitoring import PREFIX, EndpointError, MetricsServer, MonitoringConfig, RunMetrics
from monitoring.endpoint import server as module


@pytest.fixture
def metrics() -> RunMetrics:
    return RunMetrics("run", 0, 1, "node")


@pytest.fixture
def server(metrics: RunMetrics) -> Iterator[MetricsServer]:
    with MetricsServer(metrics.registry, MonitoringConfig(port=0)) as served:
        yield served


def get(server: MetricsServer, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


def connect(server: MetricsServer, sent: bytes = b"") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    client.sendall(sent)
    return client


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def limit(monkeypatch: pytest.MonkeyPatch, **limits: float) -> None:
    """Sets limits of the server for one test."""
    for name, value in limits.items():
        monkeypatch.setattr(module, name, value)


def drip(client: socket.socket, seconds: float) -> None:
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        client.sendall(b"y")
        time.sleep(0.05)


def open_files() -> int:
    gc.collect()  # the sockets that other tests have left
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_metrics_are_served_as_text_and_as_openmetrics(server: MetricsServer, metrics: RunMetrics) -> None:
    metrics.step(step=42, epoch=0, progress=0.5, seconds=0.1, images=8, data_wait_seconds=0.0)
    status, body, headers = get(server, "/metrics")
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    steps = {family.name: family.samples[0].value for family in parse_text(body.decode()) if family.samples}
    assert steps[f"{PREFIX}step"] == 42
    status, body, headers = get(server, "/metrics?x=1", Accept="application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert status == 200
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert f"{PREFIX}step" in {family.name for family in parse_openmetrics(body.decode())}  # type: ignore[no-untyped-call]
    assert get(server, "/metrics", Accept="text/plain; version=nonsense")[0] == 200


def test_there_is_health_and_nothing_else(server: MetricsServer) -> None:
    assert get(server, "/healthz")[:2] == (200, b"ok\n")
    for path in ("/", "/metrics/", "/metricsx", "/../etc/passwd", "/debug"):
        assert get(server, path)[0] == 404, path
    for method in ("POST", "PUT", "DELETE"):
        assert get(server, "/metrics", method)[0] == 405, method
    for path in ("/healthz", "/metrics"):
        status, body, headers = get(server, path, "HEAD")
        assert (status, body) == (200, b"")
        assert int(headers["Content-Length"]) > 0
    assert "Python" not in get(server, "/")[2]["Server"]


def test_only_loopback_is_bound_unless_told_otherwise(server: MetricsServer) -> None:
    assert server.target == f"127.0.0.1:{server.port}"
    own = {str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for address in (*own, "127.0.0.2"):
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((address, server.port), timeout=2)


def test_every_address_is_a_choice_with_a_warning(metrics: RunMetrics, caplog: pytest.LogCaptureFixture) -> None:
    with MetricsServer(metrics.registry, MonitoringConfig(address="0.0.0.0", port=0)) as server:  # noqa: S104
        assert server.target == f"{socket.gethostname()}:{server.port}"
        assert get(server, "/metrics")[0] == 200
        assert "token" in caplog.text


@pytest.mark.skipif(not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists(), reason="no IPv6 here")
def test_ipv6_is_served(metrics: RunMetrics) -> None:
    with MetricsServer(metrics.registry, MonitoringConfig(address="::1", port=0)) as server:
        assert server.target == f"[::1]:{server.port}"
        with socket.create_connection(("::1", server.port), timeout=5) as client:
            client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.0 200")


def test_a_burst_of_scrapes_is_answered_whole(server: MetricsServer) -> None:
    with ThreadPoolExecutor(16) as pool:
        for status, body, _ in pool.map(lambda _: get(server, "/metrics"), range(48)):
            assert status == 200
            assert body.endswith(b"\n")
            assert b"context_encoder_build_info" in body


def test_garbage_is_refused_and_does_no_harm(server: MetricsServer) -> None:
    for garbage in (
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"GET\r\n\r\n",
        b"A" * 70_000 + b"\r\n",
        b"GET /metrics HTTP/9.9\r\n\r\n",
        b"\r\n",
        b"",
    ):
        with connect(server) as client:
            try:
                client.sendall(garbage)
                client.shutdown(socket.SHUT_WR)
                answer = client.recv(65536)
            except OSError:
                continue  # cut off while still sending
            assert b" 200 " not in answer[:64], garbage[:20]
    assert get(server, "/metrics")[0] == 200


def test_a_line_break_in_the_accept_header_does_not_reach_the_answer(server: MetricsServer) -> None:
    request = b"GET /metrics HTTP/1.0\r\nAccept: application/openmetrics-text; version=1.1.0\r\n Injected: yes\r\n\r\n"
    with connect(server, request) as client, client.makefile("rb") as answer:
        head = answer.read().partition(b"\r\n\r\n")[0]
    assert b"\nInjected" not in head
    assert b"\n Injected" not in head


def test_a_token_is_needed_where_one_is_configured(metrics: RunMetrics, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret-ü\n", encoding="utf-8")
    with MetricsServer(metrics.registry, MonitoringConfig(port=0, token_file=str(token))) as server:
        for wrong in ({}, {"Authorization": "Bearer s3cret"}, {"Authorization": "Basic s3cret-ü"}, {"Authorization": "Bearer "}):
            status, body, headers = get(server, "/metrics", **{name: text.encode().decode("latin-1") for name, text in wrong.items()})
            assert (status, headers["WWW-Authenticate"]) == (401, "Bearer"), wrong
            assert b"context_encoder" not in body
        assert get(server, "/metrics", Authorization="Bearer s3cret-ü".encode().decode("latin-1"))[0] == 200
        assert get(server, "/healthz")[0] == 200


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_a_token_file_that_protects_nothing_is_refused(metrics: RunMetrics, tmp_path: Path, content: str | None) -> None:
    token = tmp_path / "token"
    if content is not None:
        token.write_text(content)
    with pytest.raises(EndpointError, match=str(token)):
        MetricsServer(metrics.registry, MonitoringConfig(port=0, token_file=str(token)))


def test_a_client_that_stalls_is_dropped_and_others_are_served_meanwhile(metrics: RunMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEAD_SECONDS", 0.5)
    with MetricsServer(metrics.registry, MonitoringConfig(port=0)) as server, connect(server, b"GET /metrics HTT") as stalled:
        assert get(server, "/metrics")[0] == 200
        started = time.monotonic()
        assert stalled.recv(100) == b"", "cut off without an answer"
        assert time.monotonic() - started < 5


def test_stalled_clients_can_not_pile_up(metrics: RunMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, MAX_CLIENTS=4, PLACE_SECONDS=0.0, HEAD_SECONDS=1.0)
    with MetricsServer(metrics.registry, MonitoringConfig(port=0)) as server:
        before, count, most = open_files(), 12, 0
        stalled = [connect(server, b"GET /metr") for _ in range(count)]
        with ThreadPoolExecutor(1) as pool:
            scrape = pool.submit(get, server, "/metrics")
            while not scrape.done():
                most = max(most, open_files() - before)
        assert scrape.result()[0] == 200
        assert most <= count + 4 + 2 + 1, "the scrape has a file on each side, and one that was cut off may be closing"
        for client in stalled:
            client.close()


def test_a_client_without_room_waits_for_it(metrics: RunMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, MAX_CLIENTS=4, PLACE_SECONDS=0.0, HEAD_SECONDS=60.0, REQUEST_SECONDS=60.0)
    with MetricsServer(metrics.registry, MonitoringConfig(port=0)) as server:
        before = open_files() + 4
        stalled = [connect(server, b"GET /metr") for _ in range(4)]
        wait_until(lambda: open_files() == before + 4)
        with connect(server, b"GET /healthz HTTP/1.0\r\n\r\n") as waiting:
            waiting.settimeout(0.3)
            with pytest.raises(TimeoutError):
                waiting.recv(100)
            stalled[0].close()  # a client that leaves makes room, long before its time is over
            waiting.settimeout(30)
            assert waiting.recv(100).startswith(b"HTTP/1.0 200 ")
        for client in stalled:
            client.close()


def test_a_flood_is_let_in_as_a_crowd_now_and_then(metrics: RunMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, MAX_CLIENTS=5, PLACE_SECONDS=1.0)
    with MetricsServer(metrics.registry, MonitoringConfig(port=0)) as server, ThreadPoolExecutor(15) as pool:
        began = time.monotonic()
        ends = sorted(pool.map(lambda _: get(server, "/healthz") and time.monotonic() - began, range(15)))
    assert ends[5] >= 0.9, "the second five wait for a place, though the first five are answered"
    assert ends[10] >= 1.9


def test_after_a_flood_a_scrape_is_answered_and_nothing_is_left(metrics: RunMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, MAX_CLIENTS=8, PLACE_SECONDS=0.1, HEAD_SECONDS=0.5)
    with MetricsServer(metrics.registry, MonitoringConfig(port=0)) as server:
        get(server, "/metrics")
        before, threads = open_files(), threading.active_count()
        for sent in (b"", b"GET /metr", b"garbage\r\n\r\n", b"GET /healthz HTTP/1.0\r\n\r\n", b"x" * 50_000):
            for client in [connect(server, sent) for _ in range(20)]:
                client.close()
        assert get(server, "/metrics")[0] == 200
        wait_until(lambda: open_files() <= before and threading.active_count() <= threads)


def test_a_head_without_an_end_is_refused_when_it_is_too_large(server: MetricsServer) -> None:
    with connect(server) as client, suppress(ConnectionError):  # cut off while it still sends
        client.sendall(b"GET / HTTP/1.1\r\nX: " + b"y" * 2**24)
        pytest.fail("the whole of it was taken")
    with connect(server, b"GET / HTTP/1.1\r\nX: " + b"y" * module.LARGEST_HEAD + b"\r\n\r\n") as client, suppress(ConnectionError):
        assert b" 431 " in client.recv(64)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /healthz HTTP/1.1", 200),
        (b"GET /healthz?x=1 HTTP/1.1\r\nX: 1\r\nx:2 ", 200),
        (b"\r\nGET /healthz HTTP/1.0", 200),  # a line that an older client sent behind its request before
        (b"HEAD http://node:9400/healthz?x HTTP/1.1", 200),
        (b"GET http://node:9400 HTTP/1.1", 404),
        (b"GET /a?b=http://c/healthz HTTP/1.1", 404),
        (b"GET", 400),
        (b"GET /metrics", 400),
        (b"GET /metrics HTTP/1.1 more", 400),
        (b"GET /metrics HTTP/x.1", 400),
        (b"GET /metrics HTTP/2.0", 400),
        (b"GET / HTTP/1.1\r\nno colon", 400),
        (b"GET / HTTP/1.1\r\nX: y\r\n continued: z", 400),
        (b"GET / HTTP/1.1\r\n: z", 400),
        (b"POST /metrics HTTP/1.1", 405),
    ],
)
def test_a_head_is_answered_or_refused(server: MetricsServer, head: bytes, status: int) -> None:
    with connect(server, head + b"\r\n\r\n") as client, client.makefile("rb") as answer:
        first, _, body = answer.read().partition(b"\r\n\r\n")
    assert first.startswith(f"HTTP/1.0 {status} ".encode())
    assert b"Connection: close" in first
    assert bool(body) is not head.startswith(b"HEAD")


def test_a_head_that_comes_in_pieces_is_answered(metrics: RunMetrics, tmp_path: Path) -> None:
    """Pieces may end anywhere: in a word, between the two bytes of a line's end, and in the empty line that ends the head."""
    token = tmp_path / "token"
    token.write_text("s3cret")
    pieces = (
        b"GE",
        b"T /metr",
        b"ics HTTP/1.1\r",
        b"\nAccept: application/openme",
        b"trics-text\r\nAuthorization: Bea",
        b"rer s3cret\r\n\r",
        b"\n",
    )
    with MetricsServer(metrics.registry, MonitoringConfig(port=0, token_file=str(token))) as server, connect(server) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            client.sendall(piece)
            time.sleep(0.05)  # else the kernel hands them over as one
        with client.makefile("rb") as answer:
            head = answer.read().partition(b"\r\n\r\n")[0]
    assert head.startswith(b"HTTP/1.0 200 ")
    assert b"\r\nContent-Type: application/openmetrics-text" in head, "every line counts, the first header among them"


def test_only_cr_and_lf_together_end_a_line(metrics: RunMetrics, tmp_path: Path) -> None:
    """A proxy in front that takes a lone line feed for a part of the value must not be led past the token."""
    token = tmp_path / "token"
    token.write_text("s3cret")
    with MetricsServer(metrics.registry, MonitoringConfig(port=0, token_file=str(token))) as server:
        for end, status in ((b"\r\n", 200), (b"\n", 401), (b"\r", 401)):
            head = b"GET /metrics HTTP/1.1\r\nX: y" + end + b"Authorization: Bearer s3cret\r\n\r\n"
            with connect(server, head) as client, client.makefile("rb") as answer:
                assert answer.readline().startswith(f"HTTP/1.0 {status} ".encode()), end


def deadlines_of(values: list[float]) -> Callable[[float], CollectorRegistry]:
    """A source without metrics that notes for how long its clients wait."""

    def collect(deadline: float) -> CollectorRegistry:
        values.append(deadline - time.monotonic())
        return CollectorRegistry()

    return collect


def test_the_source_learns_how_long_the_client_waits() -> None:
    waits: list[float] = []
    with MetricsServer(deadlines_of(waits), MonitoringConfig(port=0)) as server:
        get(server, "/metrics")
        for text in ("250", "soon", "nan", "-1", "0", "inf"):
            get(server, "/metrics", **{"X-Prometheus-Scrape-Timeout-Seconds": text})
    assert waits == [math.inf, pytest.approx(250, abs=30), *[math.inf] * 5]


def test_clients_that_wait_share_a_text_and_the_most_patient_one_sets_its_deadline() -> None:
    waits: list[float] = []
    first, go_on = threading.Event(), threading.Event()
    note = deadlines_of(waits)

    def collect(deadline: float) -> CollectorRegistry:
        first.set()
        go_on.wait(30)
        return note(deadline)

    with MetricsServer(collect, MonitoringConfig(port=0)) as server, ThreadPoolExecutor(8) as pool:
        pool.submit(get, server, "/metrics")
        first.wait(30)
        asked = [
            {"X-Prometheus-Scrape-Timeout-Seconds": "0.01"},
            {"X-Prometheus-Scrape-Timeout-Seconds": "800"},
            {"X-Prometheus-Scrape-Timeout-Seconds": "1", "Accept": "application/openmetrics-text"},
        ]
        files = open_files()
        together = [pool.submit(get, server, "/metrics", **headers) for headers in asked]
        wait_until(lambda: open_files() == files + 2 * len(asked) and server._next.forms == {False, True})
        wait_until(lambda: server._next.deadline > time.monotonic() + 700)
        go_on.set()
        assert {each.result()[0] for each in together} == {200}
    assert waits == [math.inf, pytest.approx(800, abs=60)]


def test_the_text_is_that_of_the_client_library() -> None:
    metrics = RunMetrics('a "run" \\ of\nmany lines, ü', 0, 1, "node")
    metrics.losses({"generator": {"adversarial": 0.5}})
    metrics.step(step=1, epoch=0, progress=0.5, seconds=0.1, images=8, data_wait_seconds=0.0)

    def lines(text: bytes) -> list[str]:
        """Without the values, which change meanwhile."""
        return [line if line.startswith("#") else line.rpartition(" ")[0] for line in text.decode().splitlines()]

    assert lines(module.encode(metrics.registry, True)) == lines(generate_openmetrics(metrics.registry))  # type: ignore[no-untyped-call]
    assert lines(module.encode(metrics.registry, False)) == lines(generate_latest(metrics.registry))


def test_an_unexpected_error_ends_the_server_instead_of_leaving_it_deaf(
    metrics: RunMetrics, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with MetricsServer(metrics.registry, MonitoringConfig(port=0)) as server:
        assert server.is_serving
        monkeypatch.setattr(server._loop, "sock_accept", lambda _: 1 / 0)
        with connect(server, b"GET /healthz HTTP/1.0\r\n\r\n"):
            wait_until(lambda: not server.is_serving)
    assert "no longer served" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_an_unexpected_error_in_a_request_costs_that_request(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_parse", lambda _: 1 / 0)
    with connect(server, b"GET /healthz HTTP/1.0\r\n\r\n") as client, suppress(ConnectionResetError):
        assert client.recv(100) == b""
    monkeypatch.undo()
    assert get(server, "/healthz")[0] == 200
    assert "ZeroDivisionError" in caplog.text


def test_a_client_that_drips_is_cut_off(metrics: RunMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEAD_SECONDS", 0.6)
    with MetricsServer(metrics.registry, MonitoringConfig(port=0)) as server, connect(server, b"GET /metrics HTTP/1.0\r\nX: ") as client:
        started = time.monotonic()
        with pytest.raises(OSError, match=r"[Bb]roken pipe|reset"):
            drip(client, 10)
        assert 0.5 < time.monotonic() - started < 3


def test_a_port_that_is_taken_is_replaced_by_a_free_one_with_a_warning(metrics: RunMetrics, caplog: pytest.LogCaptureFixture) -> None:
    with (
        MetricsServer(metrics.registry, MonitoringConfig(port=0)) as first,
        MetricsServer(metrics.registry, MonitoringConfig(port=first.port)) as second,
    ):
        assert second.port != first.port
        assert str(first.port) in caplog.text
        assert str(second.port) in caplog.text
        assert get(first, "/metrics")[0] == get(second, "/metrics")[0] == 200


def test_a_free_port_is_the_one_that_was_asked_for(metrics: RunMetrics, caplog: pytest.LogCaptureFixture) -> None:
    with MetricsServer(metrics.registry, MonitoringConfig(port=0)) as first:
        port = first.port
        assert get(first, "/healthz")[0] == 200
    with MetricsServer(metrics.registry, MonitoringConfig(port=port)) as second:  # though connections of the first are still in TIME_WAIT
        assert second.port == port
    assert not caplog.records


@pytest.mark.parametrize("address", ["", "203.0.113.7", "no such host"])
def test_an_address_that_is_not_here_is_an_error_that_names_it(metrics: RunMetrics, address: str) -> None:
    with pytest.raises(EndpointError, match=address or "empty"):
        MetricsServer(metrics.registry, MonitoringConfig(address=address, port=0))


def test_a_port_out_of_range_is_an_error(metrics: RunMetrics) -> None:
    with pytest.raises(EndpointError, match="65536"):
        MetricsServer(metrics.registry, MonitoringConfig(port=65536))


def test_nothing_is_left_after_close(metrics: RunMetrics) -> None:
    threads, files = threading.active_count(), open_files()
    server = MetricsServer(metrics.registry, MonitoringConfig(port=0))
    stalled = [connect(server, b"GET /me") for _ in range(2)]
    assert get(server, "/metrics")[0] == 200
    started = time.monotonic()
    server.close()
    server.close()
    assert time.monotonic() - started < 2, "stalled clients hold nothing up"
    assert threading.active_count() <= threads
    with pytest.raises(OSError, match="refused"):
        connect(server)
    for client in stalled:
        client.close()
    assert open_files() <= files


def test_a_broken_collector_is_an_answer_and_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def collect(self) -> Iterator[Metric]:
            raise OSError("the disk is gone")

    registry = CollectorRegistry()
    registry.register(Broken())
    with MetricsServer(registry, MonitoringConfig(port=0)) as server:
        with caplog.at_level(logging.ERROR):
            assert get(server, "/metrics")[0] == 500
        assert "the disk is gone" in caplog.text
        assert get(server, "/healthz")[0] == 200


def test_requests_are_not_printed(server: MetricsServer, capfd: pytest.CaptureFixture[str]) -> None:
    get(server, "/metrics")
    get(server, "/nothing")
    connect(server, b"GARBAGE\r\n\r\n").close()
    time.sleep(0.1)
    assert capfd.readouterr() == ("", "")
