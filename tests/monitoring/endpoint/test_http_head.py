"""What is a request that the endpoint answers, and what is refused as soon as that can be seen."""

from __future__ import annotations

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from monitoring import RunMetrics
from monitoring.endpoint.http_head import LARGEST_HEAD, MOST_HEADERS, Head, read_head, without_body
from monitoring.endpoint.server import encode


@pytest.mark.parametrize(
    ("received", "status"),
    [
        (b"GET\r\n", b"400"),
        (b"GET /metrics\r\n", b"400"),
        (b"GET /metrics HTTP/1.1 more\r\n", b"400"),
        (b"GET /metrics HTTP/x.1\r\n", b"400"),
        (b"GET /metrics HTTP/2.0\r\n", b"505"),
        (b"POST /metrics HTTP/1.1\r\n", b"405"),
        (b"\r\n\nPUT /metrics HTTP/1.1\r\n", b"405"),
        (b"G" * (LARGEST_HEAD + 1), b"414"),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * LARGEST_HEAD, b"431"),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * (MOST_HEADERS + 1), b"431"),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nX: y\r\n continued: z\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n: z\r\n\r\n", b"400"),
    ],
)
def test_what_is_no_request_is_refused_as_soon_as_that_can_be_seen(received: bytes, status: bytes) -> None:
    answer = read_head(received)
    assert isinstance(answer, bytes)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 " + status)
    assert b"Connection: close" in head
    assert f"Content-Length: {len(body)}".encode() in head
    assert body
    assert without_body(answer) == head + b"\r\n\r\n"


def test_a_head_is_read_when_it_is_whole_however_its_lines_end() -> None:
    whole = b"GET /metrics?x=1 HTTP/1.1\r\nAccept: text/plain\r\nX: 1\r\nx:2 \r\n\r\n"
    expected = Head(b"/metrics", False, {b"accept": b"text/plain", b"x": b"1"})
    for length in range(len(whole)):
        assert read_head(whole[:length]) is None
    assert read_head(bytearray(whole)) == read_head(whole + b"a body") == read_head(whole.replace(b"\r", b"")) == expected
    assert read_head(b"GET / HTTP/1.0\r\n\r\n") == Head(b"/", False, {})
    assert read_head(b"\r\nHEAD http://node:9400/healthz?x HTTP/1.1\r\n\r\n") == Head(b"/healthz", True, {})
    assert read_head(b"GET http://node:9400 HTTP/1.1\r\n\r\n") == Head(b"/", False, {})
    assert read_head(b"GET /a?b=http://c/d HTTP/1.1\r\n\r\n") == Head(b"/a", False, {})
    assert read_head(b"\r\n") is None, "what an older client sent behind its request before"
    most = b"GET / HTTP/1.0\r\n" + b"".join(b"X%d: y\r\n" % number for number in range(MOST_HEADERS)) + b"\r\n"
    assert isinstance(found := read_head(most), Head)
    assert len(found.headers) == MOST_HEADERS


def test_the_text_is_what_the_client_library_makes_of_every_metric() -> None:
    metrics = RunMetrics('a "run" \\ of\nmany lines, ü', 0, 1, "node")
    metrics.losses({"generator": {"adversarial": 0.5}})
    metrics.step(step=1, epoch=0, progress=0.5, seconds=0.1, images=8, data_wait_seconds=0.0)

    def lines(text: bytes) -> list[str]:
        """Without the values, which change meanwhile."""
        return [line if line.startswith("#") else line.rpartition(" ")[0] for line in text.decode().splitlines()]

    assert lines(encode(metrics.registry, True)) == lines(generate_openmetrics(metrics.registry))  # type: ignore[no-untyped-call]
    assert lines(encode(metrics.registry, False)) == lines(generate_latest(metrics.registry))
