"""The HTTP endpoint of one rank: GET /metrics for Prometheus, GET /healthz for whoever restarts things. Nothing else.

It lives inside a training process, so it gives way everywhere: few threads, short time-outs, another port when its own is taken.
What it costs is that a scrape may be refused (503) while a few clients stall; Prometheus asks again. Loopback unless told otherwise.
"""

from __future__ import annotations

import errno
import hmac
import ipaddress
import logging
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

MAX_REQUESTS = 4
"""Requests that are answered at the same time; what finds none free within a moment is refused."""
IDLE_SECONDS = 5.0
"""Longest silence of a client within its request."""
REQUEST_SECONDS = 10.0
"""Longest duration of a whole request: a client that sends a byte now and then holds no thread for longer."""
_POLL_SECONDS = 0.25
_SLOT_SECONDS = 0.1  # a scrape takes a few milliseconds: a burst of honest clients never meets a refusal
_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 (compared with, not bound to)

_log = logging.getLogger(__name__)


class ExporterError(Exception):
    """The endpoint can't be opened as configured. Names the setting."""


class Exporter:
    """Serves a registry until it is closed.

    Args:
        registry: what to serve.
        address: IP address or host name to bind.
        port: to bind, 0 for any free one. A port that is taken is replaced by a free one, with a warning.
        token_file: file whose content (without the white space around it) clients must send as a bearer token; empty for none. Read once.

    Attributes:
        port: that is served.

    Raises:
        ExporterError: the address is not one of this machine, or the token file can't be used.
    """

    def __init__(self, registry: CollectorRegistry, address: str = "127.0.0.1", port: int = 9400, token_file: str | Path = "") -> None:
        if not address:
            raise ExporterError("the address to bind is empty: give 127.0.0.1, or 0.0.0.0 to be reached from everywhere")
        if not 0 <= port <= 65535:
            raise ExporterError(f"port {port} is not one from 0 to 65535")
        self._address = address
        self._server = _open(registry, address, port, _read_token(token_file))
        self.port = int(self._server.server_address[1])
        if port not in (0, self.port):
            _log.warning("port %d on %s is taken: metrics are served on port %d instead", port, address, self.port)
        if not token_file and not _is_loopback(str(self._server.server_address[0])):
            _log.warning("metrics on %s can be read by everybody who reaches it: set a token file", self.target)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL_SECONDS,), name="metrics", daemon=True)
        self._thread.start()

    @property
    def target(self) -> str:
        """`host:port` for Prometheus; this machine's name where every address is bound."""
        host = socket.gethostname() if self._address in _WILDCARDS else self._address
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

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


class _Server(ThreadingHTTPServer):
    request_queue_size = 16

    def __init__(self, address: tuple[str, int], registry: CollectorRegistry, token: bytes) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.registry = registry
        self.token = token
        self._slots = threading.BoundedSemaphore(MAX_REQUESTS)
        self._lock = threading.Lock()
        self._running: dict[socket.socket, tuple[float, threading.Thread]] = {}
        super().__init__(address, _Handler)
        self.socket.setblocking(False)  # a client that is gone before it is accepted must not block the thread

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's own asks a name server for the name of this machine: seconds, where there is none
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                time.sleep(_POLL_SECONDS)  # the connection stays in the queue: without a pause this thread would spin
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(timeout=_SLOT_SECONDS):
            with suppress(OSError):
                request.setblocking(False)
                request.send(b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
            self.shutdown_request(request)
            return
        thread = threading.Thread(target=self._answer, args=(request, client_address), name="metrics-request", daemon=True)
        with self._lock:
            self._running[request] = (time.monotonic(), thread)
        try:
            thread.start()
        except RuntimeError:  # no more threads on this machine
            self._forget(request)
            raise

    def _answer(self, request: Any, client_address: Any) -> None:
        try:
            self.process_request_thread(request, client_address)
        finally:
            self._forget(request)

    def _forget(self, request: Any) -> None:
        with self._lock:
            del self._running[request]
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
        super().setup()
        self.connection.settimeout(IDLE_SECONDS)

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
        accept = " ".join(self.headers.get("Accept", "").split())  # a folded header would carry a line break into the answer
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version that is no number
            encode, content_type = choose_encoder("")
        try:
            body = encode(self.server.registry)
        except Exception:
            _log.exception("the metrics can't be read")
            self._reply(500, b"the metrics can't be read: see the log of the process\n")
            return
        self._reply(200, body, **{"Content-Type": content_type})

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


def _open(registry: CollectorRegistry, address: str, port: int, token: bytes) -> _Server:
    try:
        return _Server((address, port), registry, token)
    except OSError as error:
        if port and error.errno in (errno.EADDRINUSE, errno.EACCES):  # EACCES: a port below 1024
            return _open(registry, address, 0, token)
        raise ExporterError(f"metrics can't be served on {address}: {error.strerror or error}. Give an address of this machine") from error


def _read_token(path: str | Path) -> bytes:
    if not path:
        return b""
    try:
        token = Path(path).expanduser().read_bytes().strip()
    except OSError as error:
        raise ExporterError(f"token file {path}: {error.strerror or error}") from error
    if not token:
        raise ExporterError(f"token file {path} is empty: write the token into it, or configure none")
    return token


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _cut(requests: list[socket.socket]) -> None:
    for request in requests:
        with suppress(OSError):  # it ended by itself
            request.shutdown(socket.SHUT_RDWR)
