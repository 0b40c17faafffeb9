"""The endpoint, over real sockets: what it serves, to whom, and that nobody can hold it up."""

from __future__ import annotations

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
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from monitoring import PREFIX, Exporter, ExporterError, RunMetrics
from monitoring.endpoint import allowance
from monitoring.endpoint import server as module


@pytest.fixture
def metrics() -> RunMetrics:
    return RunMetrics("run", 0, 1, "node")


@pytest.fixture
def exporter(metrics: RunMetrics) -> Iterator[Exporter]:
    with Exporter(metrics.registry, port=0) as served:
        yield served


def get(exporter: Exporter, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", exporter.port, timeout=60)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


def connect(exporter: Exporter, sent: bytes = b"") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", exporter.port), timeout=20)
    client.sendall(sent)
    return client


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def limit(monkeypatch: pytest.MonkeyPatch, **limits: float) -> None:
    """Sets limits of the exporter for one test."""
    for name, value in limits.items():
        monkeypatch.setattr(module, name, value)


def drip(client: socket.socket, seconds: float) -> None:
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        client.sendall(b"y")
        time.sleep(0.05)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_metrics_are_served_as_text_and_as_openmetrics(exporter: Exporter, metrics: RunMetrics) -> None:
    metrics.step(step=42, epoch=0, progress=0.5, seconds=0.1, images=8, data_wait_seconds=0.0)
    status, body, headers = get(exporter, "/metrics")
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    steps = {family.name: family.samples[0].value for family in parse_text(body.decode()) if family.samples}
    assert steps[f"{PREFIX}step"] == 42
    status, body, headers = get(exporter, "/metrics?x=1", Accept="application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert status == 200
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert f"{PREFIX}step" in {family.name for family in parse_openmetrics(body.decode())}  # type: ignore[no-untyped-call]
    assert get(exporter, "/metrics", Accept="text/plain; version=nonsense")[0] == 200


def test_there_is_health_and_nothing_else(exporter: Exporter) -> None:
    assert get(exporter, "/healthz")[:2] == (200, b"ok\n")
    for path in ("/", "/metrics/", "/metricsx", "/../etc/passwd", "/debug"):
        assert get(exporter, path)[0] == 404, path
    for method in ("POST", "PUT", "DELETE"):
        assert get(exporter, "/metrics", method)[0] == 405, method
    for path in ("/healthz", "/metrics"):
        status, body, headers = get(exporter, path, "HEAD")
        assert (status, body) == (200, b"")
        assert int(headers["Content-Length"]) > 0
    assert "Python" not in get(exporter, "/")[2]["Server"]


def test_only_loopback_is_bound_unless_told_otherwise(exporter: Exporter) -> None:
    assert exporter.target == f"127.0.0.1:{exporter.port}"
    own = {str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for address in (*own, "127.0.0.2"):
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((address, exporter.port), timeout=2)


def test_every_address_is_a_choice_with_a_warning(metrics: RunMetrics, caplog: pytest.LogCaptureFixture) -> None:
    with Exporter(metrics.registry, address="0.0.0.0", port=0) as exporter:  # noqa: S104
        assert exporter.target == f"{socket.gethostname()}:{exporter.port}"
        assert get(exporter, "/metrics")[0] == 200
        assert "token" in caplog.text


@pytest.mark.skipif(not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists(), reason="no IPv6 here")
def test_ipv6_is_served(metrics: RunMetrics) -> None:
    with Exporter(metrics.registry, address="::1", port=0) as exporter:
        assert exporter.target == f"[::1]:{exporter.port}"
        with socket.create_connection(("::1", exporter.port), timeout=5) as client:
            client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.0 200")


def test_a_burst_of_scrapes_is_answered_whole(exporter: Exporter) -> None:
    with ThreadPoolExecutor(16) as pool:
        for status, body, _ in pool.map(lambda _: get(exporter, "/metrics"), range(48)):
            assert status == 200
            assert body.endswith(b"\n")
            assert b"context_encoder_build_info" in body


def test_garbage_is_refused_and_does_no_harm(exporter: Exporter) -> None:
    for garbage in (
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"GET\r\n\r\n",
        b"A" * 70_000 + b"\r\n",
        b"GET /metrics HTTP/9.9\r\n\r\n",
        b"\r\n",
        b"",
    ):
        with connect(exporter) as client:
            try:
                client.sendall(garbage)
                client.shutdown(socket.SHUT_WR)
                answer = client.recv(65536)
            except OSError:
                continue  # cut off while still sending
            assert b" 200 " not in answer[:64], garbage[:20]
    with connect(exporter, b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 500 + b"\r\n") as client:
        assert b"431" in client.recv(64)
    assert get(exporter, "/metrics")[0] == 200


def test_a_line_break_in_the_accept_header_does_not_reach_the_answer(exporter: Exporter) -> None:
    request = b"GET /metrics HTTP/1.0\r\nAccept: application/openmetrics-text; version=1.1.0\r\n Injected: yes\r\n\r\n"
    with connect(exporter, request) as client, client.makefile("rb") as answer:
        head = answer.read().partition(b"\r\n\r\n")[0]
    assert b"\nInjected" not in head
    assert b"\n Injected" not in head


def test_a_token_is_needed_where_one_is_configured(metrics: RunMetrics, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret-ü\n", encoding="utf-8")
    with Exporter(metrics.registry, port=0, token_file=token) as exporter:
        for wrong in ({}, {"Authorization": "Bearer s3cret"}, {"Authorization": "Basic s3cret-ü"}, {"Authorization": "Bearer "}):
            status, body, headers = get(exporter, "/metrics", **{name: text.encode().decode("latin-1") for name, text in wrong.items()})
            assert (status, headers["WWW-Authenticate"]) == (401, "Bearer"), wrong
            assert b"context_encoder" not in body
        assert get(exporter, "/metrics", Authorization="Bearer s3cret-ü".encode().decode("latin-1"))[0] == 200
        assert get(exporter, "/healthz")[0] == 200


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_a_token_file_that_protects_nothing_is_refused(metrics: RunMetrics, tmp_path: Path, content: str | None) -> None:
    token = tmp_path / "token"
    if content is not None:
        token.write_text(content)
    with pytest.raises(ExporterError, match=str(token)):
        Exporter(metrics.registry, port=0, token_file=token)


def test_a_client_that_stalls_is_dropped_and_others_are_served_meanwhile(metrics: RunMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.5)
    with Exporter(metrics.registry, port=0) as exporter, connect(exporter, b"GET /metrics HTT") as stalled:
        assert get(exporter, "/metrics")[0] == 200
        started = time.monotonic()
        assert stalled.recv(100) == b"", "cut off without an answer"
        assert time.monotonic() - started < 5


def test_stalled_clients_can_not_pile_up(metrics: RunMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, MAX_REQUESTS=4, MAX_WAITING=2, IDLE_SECONDS=2.0)
    with Exporter(metrics.registry, port=0) as exporter:
        before, stalled = open_files(), []
        for count in range(1, 4 + 2 + 1):  # four are talked to, two wait
            stalled.append(connect(exporter, b"GET /metr"))
            wait_until(lambda count=count: open_files() == before + 2 * count)
        stalled += [connect(exporter, b"GET /metr") for _ in range(6)]
        most, end = 0, time.monotonic() + 0.3
        while time.monotonic() < end:
            most = max(most, open_files() - before)
        assert most <= 12 + 4 + 2 + 1, "nor is there room for more: only the one that has just come may be there, too"
        assert get(exporter, "/metrics")[0] == 200
        for client in stalled:
            client.close()


def test_what_finds_no_free_place_waits_for_one(metrics: RunMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, MAX_REQUESTS=4, IDLE_SECONDS=60.0, REQUEST_SECONDS=60.0)
    with Exporter(metrics.registry, port=0) as exporter:
        before = open_files() + 4
        stalled = [connect(exporter, b"GET /metr") for _ in range(4)]
        wait_until(lambda: open_files() == before + 4)
        with connect(exporter, b"GET /healthz HTTP/1.0\r\n\r\n") as waiting:
            waiting.settimeout(0.5)
            with pytest.raises(TimeoutError):
                waiting.recv(100)
            stalled[0].close()  # a client that leaves makes room, long before its time is over
            waiting.settimeout(30)
            assert waiting.recv(100).startswith(b"HTTP/1.0 200 ")
        for client in stalled:
            client.close()


def processor_seconds(exporter: Exporter) -> float:
    """What the thread that serves has taken."""
    assert exporter._thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(exporter._thread.ident))


def test_requests_take_a_part_of_a_core_and_those_that_wait_are_served_later(metrics: RunMetrics) -> None:
    share = 0.005
    allowed = allowance.Allowance(share, share * 0.25)
    with Exporter(metrics.registry, port=0, allowance=allowed) as exporter, ThreadPoolExecutor(16) as pool:
        started, spent = time.monotonic(), processor_seconds(exporter)
        for _ in range(5):
            assert {status for status, *_ in pool.map(lambda _: get(exporter, "/healthz"), range(16))} == {200}
        spent = processor_seconds(exporter) - spent
        waited = time.monotonic() - started
        assert spent > share * 0.25, "more than may be taken at once, so that there was something to wait for"
        # those that are let in at the same time, and what is left to do for those before, are at the expense of those after them
        assert spent <= share * (waited + 0.25) + 2 * 16 * spent / 80
        pool.submit(get, exporter, "/metrics")
        started = time.monotonic()
        exporter.close()
        assert time.monotonic() - started < 60, "a close does not wait for it"


def test_who_came_last_is_let_in_first_and_who_has_waited_longest_makes_room(metrics: RunMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, MAX_REQUESTS=1, MAX_WAITING=2, IDLE_SECONDS=60.0, REQUEST_SECONDS=60.0)
    with Exporter(metrics.registry, port=0) as exporter:
        before = open_files()
        clients = []
        for count in (1, 2, 3):  # one is talked to, two wait
            clients.append(connect(exporter, b"GET /metr"))
            wait_until(lambda count=count: open_files() == before + 2 * count)
        clients.append(connect(exporter, b"GET /healthz HTTP/1.0\r\n\r\n"))
        with pytest.raises(ConnectionResetError):  # makes room
            clients[1].recv(100)
        clients[0].close()
        assert clients[3].recv(100).startswith(b"HTTP/1.0 200 "), "though another one has waited for longer"
        for client in clients:
            client.close()
        wait_until(lambda: open_files() == before)


def test_a_crowd_is_let_in_together_and_a_single_one_as_soon_as_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(allowance, "time", SimpleNamespace(monotonic=lambda: now[0]))
    requests = allowance.Allowance(0.01, 0.02)
    assert requests.wait() == 0
    requests.all_are_in()
    requests.spend(0.03)
    assert requests.wait() == pytest.approx(1.0), "nobody was waiting: until there is something left"
    now[0] += 1.01
    assert requests.wait() == 0
    requests.spend(0.001)
    assert requests.wait() == pytest.approx(1.09), "it has run out before all were in: until half of the burst is there"
    now[0] += 1.0
    assert requests.wait() > 0
    requests.all_are_in()
    assert requests.wait() == 0, "they have left"


def test_how_long_the_client_waits_is_told_to_what_gives_the_metrics() -> None:
    told: list[float] = []

    def exposition(_: bool, timeout: float, __: float) -> bytes:
        told.append(timeout)
        return b""

    with Exporter(exposition, port=0) as exporter:
        get(exporter, "/metrics")
        for text in ("2.5", "soon", "nan", "-1", "0", "inf"):
            get(exporter, "/metrics", **{"X-Prometheus-Scrape-Timeout-Seconds": text})
    assert told == [math.inf, pytest.approx(2.5), *[math.inf] * 5]


def test_who_is_in_a_hurry_shortens_it_for_nobody_else() -> None:
    told: list[float] = []
    first, go_on = threading.Event(), threading.Event()

    def exposition(_: bool, timeout: float, __: float) -> bytes:
        told.append(timeout)
        first.set()
        go_on.wait(30)
        return b""

    with Exporter(exposition, port=0) as exporter, ThreadPoolExecutor(3) as pool:
        pool.submit(get, exporter, "/metrics")
        first.wait(30)
        together = [pool.submit(get, exporter, "/metrics", **{"X-Prometheus-Scrape-Timeout-Seconds": seconds}) for seconds in ("0.01", "8")]
        wait_until(lambda: len(waiting_for_text(exporter)) == 2)
        go_on.set()
        assert {each.result()[0] for each in together} == {200}
    assert told == [math.inf, pytest.approx(8, abs=1)]


def waiting_for_text(exporter: Exporter) -> list[object]:
    return list(exporter._server._texts._waiting)


def test_making_the_text_is_paid_for() -> None:
    paid: list[float] = []

    class Recording(allowance.Allowance):
        def spend(self, seconds: float) -> None:
            paid.append(seconds)

    def exposition(*_: object) -> bytes:
        end = time.thread_time() + 0.2
        while time.thread_time() < end:
            pass
        return b""

    with Exporter(exposition, port=0, allowance=Recording(0.01, 0.02)) as exporter:
        assert get(exporter, "/metrics")[0] == 200
        wait_until(lambda: sum(paid) >= 0.2)


def test_a_flood_from_one_host_keeps_nobody_else_out(metrics: RunMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, MAX_REQUESTS=1, MAX_WAITING=4, IDLE_SECONDS=60.0, REQUEST_SECONDS=60.0)
    with Exporter(metrics.registry, port=0) as exporter:
        before, clients = open_files(), [connect(exporter, b"GET /metr")]
        wait_until(lambda: open_files() == before + 2)
        other = socket.create_connection(("127.0.0.1", exporter.port), timeout=20, source_address=("127.0.0.2", 0))
        other.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        wait_until(lambda: open_files() == before + 4)
        for _ in range(6):  # more than wait: they make room for each other
            clients.append(connect(exporter, b"GET /metr"))
        with pytest.raises(ConnectionResetError):
            clients[1].recv(100)
        clients[0].close()
        clients[-1].close()  # the last of the host that is served first is the next
        assert other.recv(100).startswith(b"HTTP/1.0 200 ")
        for client in (other, *clients):
            client.close()


def test_what_nobody_thought_of_ends_it_instead_of_leaving_it_deaf(
    metrics: RunMetrics, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Exporter(metrics.registry, port=0) as exporter:
        assert exporter.is_serving
        monkeypatch.setattr(exporter._server, "_take", lambda: 1 / 0)
        with connect(exporter):
            wait_until(lambda: not exporter.is_serving)
    assert "not served any more" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_what_nobody_thought_of_in_a_request_costs_that_request(
    exporter: Exporter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "read_head", lambda _: 1 / 0)
    with connect(exporter, b"GET /healthz HTTP/1.0\r\n\r\n") as client, suppress(ConnectionResetError):
        assert client.recv(100) == b""
    monkeypatch.undo()
    assert get(exporter, "/healthz")[0] == 200
    assert "ZeroDivisionError" in caplog.text


def test_two_servers_that_ask_a_node_of_eight_every_five_seconds_never_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    scrape, now = 0.042, [0.0]  # seconds of processor time for eight ranks as OpenMetrics; the clock
    monkeypatch.setattr(allowance, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def longest(ranks: int) -> float:
        requests, wait = allowance.allowance_of(ranks), -math.inf
        for _ in range(2 * 720):
            now[0] += 2.5
            wait = max(wait, requests.wait())
            requests.all_are_in()
            requests.spend(scrape)
        return wait

    assert longest(8) <= 0
    assert longest(1) > 0, "a node of one rank has no such scrapes: the limit is one"


def test_a_client_that_drips_is_cut_off_after_the_whole_time_of_a_request(metrics: RunMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REQUEST_SECONDS", 0.6)
    with Exporter(metrics.registry, port=0) as exporter, connect(exporter, b"GET /metrics HTTP/1.0\r\nX: ") as client:
        started = time.monotonic()
        with pytest.raises(OSError, match=r"[Bb]roken pipe|reset"):
            drip(client, 10)
        assert 0.5 < time.monotonic() - started < 3


def test_a_port_that_is_taken_is_replaced_by_a_free_one_with_a_warning(metrics: RunMetrics, caplog: pytest.LogCaptureFixture) -> None:
    with Exporter(metrics.registry, port=0) as first, Exporter(metrics.registry, port=first.port) as second:
        assert second.port != first.port
        assert str(first.port) in caplog.text
        assert str(second.port) in caplog.text
        assert get(first, "/metrics")[0] == get(second, "/metrics")[0] == 200


def test_a_free_port_is_the_one_that_was_asked_for(metrics: RunMetrics, caplog: pytest.LogCaptureFixture) -> None:
    with Exporter(metrics.registry, port=0) as first:
        port = first.port
        assert get(first, "/healthz")[0] == 200
    with Exporter(metrics.registry, port=port) as second:  # though connections of the first are still in TIME_WAIT
        assert second.port == port
    assert not caplog.records


@pytest.mark.parametrize("address", ["", "203.0.113.7", "no such host"])
def test_an_address_that_is_not_here_is_an_error_that_names_it(metrics: RunMetrics, address: str) -> None:
    with pytest.raises(ExporterError, match=address or "empty"):
        Exporter(metrics.registry, address=address, port=0)


def test_a_port_out_of_range_is_an_error(metrics: RunMetrics) -> None:
    with pytest.raises(ExporterError, match="65536"):
        Exporter(metrics.registry, port=65536)


def test_nothing_is_left_after_close(metrics: RunMetrics) -> None:
    threads, files = threading.active_count(), open_files()
    exporter = Exporter(metrics.registry, port=0)
    stalled = [connect(exporter, b"GET /me") for _ in range(2)]
    assert get(exporter, "/metrics")[0] == 200
    started = time.monotonic()
    exporter.close()
    exporter.close()
    assert time.monotonic() - started < 2, "stalled clients hold nothing up"
    assert threading.active_count() == threads
    with pytest.raises(OSError, match="refused"):
        connect(exporter)
    for client in stalled:
        client.close()
    assert open_files() == files


def test_a_broken_collector_is_an_answer_and_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def collect(self) -> Iterator[Metric]:
            raise OSError("the disk is gone")

    registry = CollectorRegistry()
    registry.register(Broken())
    with Exporter(registry, port=0) as exporter:
        with caplog.at_level(logging.ERROR):
            assert get(exporter, "/metrics")[0] == 500
        assert "the disk is gone" in caplog.text
        assert get(exporter, "/healthz")[0] == 200


def test_requests_are_not_printed(exporter: Exporter, capfd: pytest.CaptureFixture[str]) -> None:
    get(exporter, "/metrics")
    get(exporter, "/nothing")
    connect(exporter, b"GARBAGE\r\n\r\n").close()
    time.sleep(0.1)
    assert capfd.readouterr() == ("", "")
