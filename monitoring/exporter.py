"""An HTTP endpoint: GET /metrics for Prometheus, GET /healthz for whoever restarts things. Nothing else.

It is built for a port that anybody may knock at: requests are let in for a small part of a core (monitoring/allowance.py) and the others
wait in the kernel's queue, so many are answered at the same time, each has a few seconds, its TLS handshake included, and what stalls or
drips is cut off.
Loopback unless told otherwise. A run serves it from a process beside its ranks (monitoring/endpoint_process.py).
"""

from __future__ import annotations

import errno
import hmac
import logging
import math
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from monitoring.access import ExporterError, read_secret, server_context
from monitoring.allowance import BURST_SECONDS, PROCESSOR_SHARE, Allowance
from monitoring.listener import listen, target_of

__all__ = ["Exporter", "ExporterError", "Exposition", "encode"]

Exposition = Callable[[bool, float], bytes]
"""Gives the metrics as text: OpenMetrics 1.0.0 where True is asked for, else Prometheus's 0.0.4. The number: seconds for which the client
waits for them, infinite where it has not said so."""

MAX_REQUESTS = 128
"""Requests that are answered at the same time; the others wait in the kernel's queue."""
IDLE_SECONDS = 3.0
"""Longest silence of a client within its request. As many silent ones as are let in meanwhile leave room for others."""
REQUEST_SECONDS = 10.0
"""Longest duration of a whole request: a client that sends a byte now and then holds no thread for longer."""
_POLL_SECONDS = 0.25
_SLOT_SECONDS = 0.1
_EXPECTED_SECONDS = 0.001  # of processor time for a request, until it is known
_PATIENCE = "X-Prometheus-Scrape-Timeout-Seconds"
_STARTING_SECONDS = 0.0003  # what accepting one and starting its thread take beside the thread's own time

_log = logging.getLogger(__name__)


class Exporter:
    """Serves metrics until it is closed.

    Args:
        source: what to serve: a registry, or what gives the text.
        address: IP address or host name to bind.
        port: to bind, 0 for any free one. A port that is taken is replaced by a free one, with a warning.
        token_file: file whose content (without the white space around it) clients must send as a bearer token; empty for none. Read once.
        certificate_file: certificate in PEM; with it only TLS 1.2 or newer is spoken. Read once.
        key_file: its private key.
        listener: a socket that listens already, instead of the address and the port.
        share: part of a core that requests may take in the long run.

    Attributes:
        port: that is served.

    Raises:
        ExporterError: the address is not one of this machine, or a file can't be used.
    """

    def __init__(
        self,
        source: CollectorRegistry | Exposition,
        address: str = "127.0.0.1",
        port: int = 9400,
        token_file: str | Path = "",
        certificate_file: str | Path = "",
        key_file: str | Path = "",
        listener: socket.socket | None = None,
        share: float = PROCESSOR_SHARE,
    ) -> None:
        exposition = (lambda form, _: encode(source, form)) if isinstance(source, CollectorRegistry) else source
        token, context = read_secret(token_file, "monitoring.token_file"), server_context(certificate_file, key_file)
        listener = listener or listen(address, port, guarded=bool(token))
        self.target = target_of(listener, address)
        self.port = int(listener.getsockname()[1])
        self._server = _Server(listener, exposition, token, context, Allowance(share, BURST_SECONDS))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL_SECONDS,), name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops serving and ends every thread, those of stalled clients too. A second call does nothing."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server.end_requests()

    def __enter__(self) -> Exporter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def encode(source: Collector, form: bool) -> bytes:
    """The text of metrics, as `Exposition` says."""
    return bytes(openmetrics.generate_latest(source)) if form else generate_latest(source)  # type: ignore[no-untyped-call]


class _Server(ThreadingHTTPServer):
    def __init__(
        self, listener: socket.socket, exposition: Exposition, token: bytes, context: ssl.SSLContext | None, allowance: Allowance
    ) -> None:
        self.exposition = exposition
        self.token = token
        self._context = context
        self._slots = threading.BoundedSemaphore(MAX_REQUESTS)
        self._lock = threading.Lock()
        self._running: dict[socket.socket, tuple[float, threading.Thread]] = {}
        self._allowance = allowance
        super().__init__(listener.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()  # the one that the base class made
        self.socket, self.server_address = listener, listener.getsockname()[:2]
        # the base class would ask a name server for the name of this machine: seconds, where there is none
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.socket.setblocking(False)  # a client that is gone before it is accepted must not block the thread

    def get_request(self) -> tuple[socket.socket, Any]:
        wait = self._allowance.wait()
        if wait > 0:  # the connection stays in the kernel's queue, where it costs this machine nothing
            time.sleep(min(wait, _POLL_SECONDS))
            raise BlockingIOError
        if not self._slots.acquire(timeout=_SLOT_SECONDS):
            raise BlockingIOError
        try:
            return self._accept()
        except OSError as error:
            self._slots.release()
            if error.errno in (errno.EMFILE, errno.ENFILE):
                time.sleep(_POLL_SECONDS)  # the connection stays in the queue: without a pause this thread would spin
            raise

    def _accept(self) -> tuple[socket.socket, Any]:
        request, address = super().get_request()
        if _has_left(request):
            request.close()
            raise BlockingIOError
        request.settimeout(IDLE_SECONDS)
        if self._context is not None:  # the handshake itself is done in the request's thread
            try:
                request = self._context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
            except OSError:
                request.close()
                raise
        return request, address

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(target=self._answer, args=(request, client_address), name="metrics-request", daemon=True)
        with self._lock:
            self._running[request] = (time.monotonic(), thread)
        self._allowance.spend(_EXPECTED_SECONDS)
        try:
            thread.start()
        except RuntimeError:  # no more threads on this machine
            self._forget(request, 0.0)
            raise

    def _answer(self, request: Any, client_address: Any) -> None:
        try:
            self.process_request_thread(request, client_address)
        finally:
            self._forget(request, _STARTING_SECONDS + time.thread_time() - _EXPECTED_SECONDS)

    def _forget(self, request: Any, spent: float) -> None:
        with self._lock:
            del self._running[request]
        self._allowance.spend(spent)
        self._slots.release()

    def service_actions(self) -> None:
        """Runs between requests: cuts off those that take too long."""
        late = time.monotonic() - REQUEST_SECONDS
        with self._lock:
            requests = [request for request, (started, _) in self._running.items() if started < late]
        _cut(requests)

    def end_requests(self) -> None:
        """Cuts off every request and waits for its thread."""
        with self._lock:
            running = dict(self._running)
        _cut(list(running))
        for _, thread in running.values():
            thread.join(IDLE_SECONDS)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        _log.debug("a request from %s failed", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def setup(self) -> None:
        if isinstance(self.request, ssl.SSLSocket):
            self.request.do_handshake()
        super().setup()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/healthz":
            self._reply(200, b"ok\n")
        elif path != "/metrics":
            self._reply(404, b"there are /metrics and /healthz\n")
        elif not self._authorised():
            self._reply(401, b"a bearer token is needed\n", **{"WWW-Authenticate": "Bearer"})
        else:
            self._metrics()

    def _metrics(self) -> None:
        form = "application/openmetrics-text" in self.headers.get("Accept", "")
        try:
            body = self.server.exposition(form, _seconds(self.headers.get(_PATIENCE, "")))
        except Exception:
            _log.exception("the metrics can't be read")
            self._reply(500, b"the metrics can't be read: see the log of the process\n")
            return
        self._reply(200, body, **{"Content-Type": openmetrics.CONTENT_TYPE_LATEST if form else CONTENT_TYPE_PLAIN_0_0_4})

    def _authorised(self) -> bool:
        if not self.server.token:
            return True
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode("latin-1", "replace"), self.server.token)

    def _reply(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "text/plain; charset=utf-8", **headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        return "context-encoder"

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug(format, *args)


def _seconds(text: str) -> float:
    """What a client says of how long it waits; infinite where it says nothing that could be true."""
    try:
        seconds = float(text)
    except ValueError:
        return math.inf
    return seconds if seconds > 0 else math.inf


def _has_left(request: socket.socket) -> bool:
    """Whether the client has hung up while it waited: after a flood the queue is full of those."""
    waiting = select.poll()
    waiting.register(request, getattr(select, "POLLRDHUP", select.POLLHUP))
    return bool(waiting.poll(0))


def _cut(requests: list[socket.socket]) -> None:
    for request in requests:
        with suppress(OSError):  # it ended by itself
            socket.socket.shutdown(request, socket.SHUT_RDWR)  # not TLS's own, which would change the object under its thread
