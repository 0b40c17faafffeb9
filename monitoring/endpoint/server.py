"""HTTP server of the metrics: GET /metrics for Prometheus, GET /healthz for liveness probes, and nothing else.

It is built for a port that strangers may reach. One thread with an event loop talks to all clients, a limited number at the same time,
each for a limited time, and a second thread makes the text of the metrics once for all clients that wait for it. A flood therefore costs a
fixed amount of memory, few texts, and CPU time that the kernel bounds, because the endpoint's process has the lowest priority
(endpoint/main.py). Fairness between addresses is a firewall's business.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import partial
from http import HTTPStatus

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from monitoring.endpoint.access import listen, read_secret, server_context, target_of
from monitoring.settings import MonitoringConfig

MAX_CLIENTS = 64
"""Clients that are served at the same time, TLS handshakes included. Further clients wait in the kernel's queue, because a Prometheus that
waits loses some seconds, and one that is turned away loses its scrape."""
PLACE_SECONDS = 4.0
"""Least time for which a client takes one of these places. So a flood is let in as a crowd every four seconds, which shares a few texts and
takes some thousandths of a core, and the whole of the kernel's queue is in the next crowd, within Prometheus's ten seconds."""
HEAD_SECONDS = 5.0
"""Time for the TLS handshake and the whole head of a request; a client that stalls or drips holds its place no longer."""
REQUEST_SECONDS = 20.0
"""Time for a whole request, from the accepted connection to the last byte of the answer."""
LARGEST_HEAD = 16 * 2**10
"""Largest head of a request, in bytes."""
_RETRY_SECONDS = 1.0  # pause where this process has no file descriptor left for a connection
_CLOSE_SECONDS = 2.0  # time for the client's half of the end of a TLS connection
_END = b"\r\n\r\n"
_PATIENCE = b"x-prometheus-scrape-timeout-seconds"

Source = Callable[[float], Collector]
"""Collects the metrics for a scrape that the client gives up at the given time of the monotonic clock (infinite where it is not known)."""

_log = logging.getLogger(__name__)


@dataclass
class _Scrape:
    """A text of the metrics that is not begun yet. Clients that come before its beginning share it.

    Attributes:
        deadline: time of the monotonic clock at which the most patient of its clients gives up.
        forms: formats that its clients want, True for OpenMetrics.
        answers: task that makes the answer of each format.
    """

    deadline: float = -math.inf
    forms: set[bool] = field(default_factory=set)
    answers: asyncio.Task[dict[bool, bytes]] | None = None


class MetricsServer:
    """Serves metrics from a thread of its own until it is closed.

    Args:
        source: registry to serve, or a function that collects for each scrape.
        settings: address, port, bearer token and TLS files; the files are read once, here.
        listener: listening socket to serve on, instead of one that is opened at the address and port.

    Attributes:
        port: port that is served.
        target: `host:port` for Prometheus.

    Raises:
        EndpointError: the address is not one of this machine, or a file can't be used.
    """

    def __init__(self, source: CollectorRegistry | Source, settings: MonitoringConfig, listener: socket.socket | None = None) -> None:
        self._collect: Source = (lambda _: source) if isinstance(source, CollectorRegistry) else source
        self._token = read_secret(settings.token_file, "monitoring.token_file")
        self._tls = server_context(settings.certificate_file, settings.key_file)
        self._listener = listener or listen(settings.address, settings.port, guarded=bool(self._token))
        self._listener.setblocking(False)  # a client that leaves before it is accepted must not block the thread
        self.target = target_of(self._listener, settings.address)
        self.port = int(self._listener.getsockname()[1])
        self._texts = ThreadPoolExecutor(1, thread_name_prefix="metrics-text")
        self._texts.submit(int).result()  # starts the thread now, because a machine that is short of threads may refuse it later
        self._loop, self._over = asyncio.new_event_loop(), asyncio.Event()
        self._turn, self._next = asyncio.Lock(), _Scrape()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    @property
    def is_serving(self) -> bool:
        """False after `close`, or after an unexpected error, which is in the log."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stops serving and cuts off all clients, after the text that is being made. A second call does nothing."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join()

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:  # cancels the clients at its end
                runner.run(self._serve())
        except Exception:
            _log.exception("the metrics are no longer served")
        finally:
            self._texts.shutdown()
            self._listener.close()

    async def _serve(self) -> None:
        accepting, over = asyncio.create_task(self._accept()), asyncio.create_task(self._over.wait())
        await asyncio.wait((accepting, over), return_when=asyncio.FIRST_COMPLETED)
        if accepting.done():
            accepting.result()

    async def _accept(self) -> None:
        """Takes clients out of the kernel's queue as long as there is room for them."""
        room, clients = asyncio.Semaphore(MAX_CLIENTS), set[asyncio.Task[None]]()

        def leave(client: asyncio.Task[None], end: float) -> None:
            clients.discard(client)
            self._loop.call_at(end, room.release)

        while True:
            await room.acquire()
            try:
                connection, _ = await self._loop.sock_accept(self._listener)
            except OSError:
                room.release()
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            client = asyncio.create_task(self._serve_client(connection))
            clients.add(client)
            client.add_done_callback(partial(leave, end=self._loop.time() + PLACE_SECONDS))

    async def _serve_client(self, connection: socket.socket) -> None:
        """Answers one request and closes the connection. Clients can't cause an error here, nor a line in the log."""
        writer = None
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                async with asyncio.timeout(HEAD_SECONDS):
                    reader, writer = await self._open(connection)
                    try:
                        head = await reader.readuntil(_END)
                    except asyncio.LimitOverrunError:
                        head = b""
                writer.write(await self._answer(head) if head else _refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))
                writer.close()
                await writer.wait_closed()
        except (OSError, EOFError):  # time-outs and failed handshakes among them
            _log.debug("a request failed", exc_info=True)
        except Exception:
            _log.exception("a request failed")
        finally:
            if writer is None:
                connection.close()
            else:
                writer.transport.abort()

    async def _open(self, connection: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Streams of an accepted connection, after the TLS handshake. `asyncio.start_server` would count a client only after it."""
        reader = asyncio.StreamReader(LARGEST_HEAD)
        protocol = asyncio.StreamReaderProtocol(reader)
        limits = {} if self._tls is None else {"ssl_handshake_timeout": HEAD_SECONDS, "ssl_shutdown_timeout": _CLOSE_SECONDS}
        transport, _ = await self._loop.connect_accepted_socket(lambda: protocol, connection, ssl=self._tls, **limits)
        return reader, asyncio.StreamWriter(transport, protocol, reader, self._loop)

    async def _answer(self, head: bytes) -> bytes:
        """The answer to a request."""
        request = _parse(head)
        if request is None:
            return _refusal(HTTPStatus.BAD_REQUEST)
        method, path, headers = request
        if method not in (b"GET", b"HEAD"):
            return _reply(HTTPStatus.METHOD_NOT_ALLOWED, b"use GET or HEAD\n", more=("Allow: GET, HEAD",))
        if path == b"/healthz":
            answer = _reply(HTTPStatus.OK, b"ok\n")
        elif path != b"/metrics":
            answer = _reply(HTTPStatus.NOT_FOUND, b"there are /metrics and /healthz\n")
        elif not self._is_authorised(headers.get(b"authorization", b"")):
            answer = _reply(HTTPStatus.UNAUTHORIZED, b"a bearer token is needed\n", more=("WWW-Authenticate: Bearer",))
        else:
            form = b"application/openmetrics-text" in headers.get(b"accept", b"")
            answer = await self._share_text(form, _seconds(headers.get(_PATIENCE, b"")))
        return answer if method == b"GET" else answer[: answer.index(_END) + len(_END)]

    def _is_authorised(self, value: bytes) -> bool:
        scheme, _, token = value.partition(b" ")
        return not self._token or (scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token))

    async def _share_text(self, form: bool, patience: float) -> bytes:
        """Joins the scrape that begins next, because the values of the one in progress may be older than this request."""
        scrape = self._next
        scrape.forms.add(form)
        # the latest deadline of all clients, because a hurried one must not make ranks look silent to the others
        scrape.deadline = max(scrape.deadline, time.monotonic() + patience)
        if scrape.answers is None:
            scrape.answers = asyncio.create_task(self._scrape(scrape))
        return (await asyncio.shield(scrape.answers))[form]

    async def _scrape(self, scrape: _Scrape) -> dict[bool, bytes]:
        async with self._turn:
            self._next = _Scrape()
            return await self._loop.run_in_executor(self._texts, self._make, scrape)

    def _make(self, scrape: _Scrape) -> dict[bool, bytes]:
        """Collects once and encodes each format that is wanted."""
        try:
            metrics = self._collect(scrape.deadline)
            return {form: _reply(HTTPStatus.OK, encode(metrics, form), _CONTENT_TYPES[form]) for form in scrape.forms}
        except Exception:
            _log.exception("the metrics can't be read")
            return dict.fromkeys(
                scrape.forms, _reply(HTTPStatus.INTERNAL_SERVER_ERROR, b"the metrics can't be read: see the log of the process\n")
            )


_CONTENT_TYPES = {False: CONTENT_TYPE_PLAIN_0_0_4, True: openmetrics.CONTENT_TYPE_LATEST}


def encode(source: Collector, form: bool) -> bytes:
    """The text of metrics whose names need no escaping.

    There are two formats and no more, chosen here rather than by prometheus_client's `choose_encoder`, whose formats are as many as the
    versions that clients think of: each would be a text of its own to make.

    Args:
        source: metrics to encode.
        form: True for OpenMetrics 1.0.0, False for Prometheus's text format 0.0.4.
    """
    return bytes(openmetrics.generate_latest(source, openmetrics.ALLOWUTF8)) if form else generate_latest(source)  # type: ignore[no-untyped-call]


def _parse(head: bytes) -> tuple[bytes, bytes, dict[bytes, bytes]] | None:
    """Method, path without its query, and headers by their names in lower case; None where the head is not one of HTTP/1."""
    line, *fields = head.removesuffix(_END).lstrip(b"\r\n").split(b"\r\n")
    words = line.split()
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        return None
    headers: dict[bytes, bytes] = {}
    for each in fields:
        name, colon, value = each.partition(b":")
        if not colon or name.split() != [name]:  # also a line that continues the one before, which HTTP no longer allows
            return None
        headers.setdefault(name.lower(), value.strip())
    target, (_, scheme, rest) = words[1], words[1].partition(b"://")
    if scheme and not target.startswith(b"/"):  # a whole URL, as proxies are sent
        target = b"/" + rest.partition(b"/")[2]
    return words[0], target.partition(b"?")[0], headers


def _seconds(text: bytes) -> float:
    """The client's own time-out; infinite where the client sends none that could be true."""
    try:
        seconds = float(text)
    except ValueError:
        return math.inf
    return seconds if seconds > 0 else math.inf


def _reply(status: HTTPStatus, body: bytes, content_type: str = "text/plain; charset=utf-8", more: Sequence[str] = ()) -> bytes:
    """A whole answer, after which the connection ends."""
    lines = (
        f"HTTP/1.0 {status.value} {status.phrase}",
        "Server: context-encoder",
        f"Date: {formatdate(usegmt=True)}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        *more,
        "Connection: close",
    )
    return "\r\n".join(lines).encode("latin-1") + _END + body


def _refusal(status: HTTPStatus) -> bytes:
    return _reply(status, f"{status.phrase}\n".encode())
