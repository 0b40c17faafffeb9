"""An HTTP endpoint: GET /metrics for Prometheus, GET /healthz for whoever restarts things. Nothing else.

It is built for a port that anybody may knock at: one thread with an event loop talks to all, so that a request costs one or two tenths of
a millisecond, and the text of the metrics is made once for all that wait for it. Requests are let in for a small part of a core
(monitoring/endpoint/allowance.py), so many are talked to at the same time, each has a few seconds, its TLS handshake included,
and what stalls or drips is cut off. The others wait
(monitoring/endpoint/waiting_room.py), each address in turn, so that a flood from some hosts keeps
nobody else out. Loopback unless told otherwise. A run serves it from a process beside its ranks (monitoring/endpoint/process.py).
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import logging
import math
import resource
import socket
import ssl
import threading
import time
from http import HTTPStatus
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from monitoring.endpoint.access import ExporterError, read_secret, server_context
from monitoring.endpoint.allowance import Allowance, allowance_of
from monitoring.endpoint.connection import Connection, ready
from monitoring.endpoint.http_head import LARGEST_HEAD, Head, answer, read_head, without_body
from monitoring.endpoint.listener import listen, target_of
from monitoring.endpoint.shared_text import Exposition, SharedText
from monitoring.endpoint.waiting_room import WaitingRoom

__all__ = ["Exporter", "ExporterError", "Exposition", "encode"]

MAX_REQUESTS = 256
"""Clients that are talked to at the same time; the others wait."""
MAX_WAITING = 512
"""Clients that wait and are not talked to. Both are fewer where this process may open fewer files."""
IDLE_SECONDS = 3.0
"""Longest silence of a client within its request. As many silent ones as are let in meanwhile leave room for others."""
REQUEST_SECONDS = 10.0
"""Longest duration of a whole request: a client that sends a byte now and then holds no place for longer."""
_OTHER_FILES = 64  # that this process needs: the ranks' sockets, a Pushgateway's
_AT_ONCE = 16  # clients that are taken out of the queue, and let in, before those that are in get their turn
_TAKE_SECONDS, _TAKES = 0.25, 10  # while there is a crowd the kernel's queue is kept from being full: so often, and so many times at most
_PATIENCE = b"x-prometheus-scrape-timeout-seconds"

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
        allowance: of processor time; that for one rank where there is none.

    Attributes:
        port: that is served.
        target: `host:port` for Prometheus.

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
        allowance: Allowance | None = None,
    ) -> None:
        exposition = (lambda form, *_: encode(source, form)) if isinstance(source, CollectorRegistry) else source
        token, context = read_secret(token_file, "monitoring.token_file"), server_context(certificate_file, key_file)
        listener = listener or listen(address, port, guarded=bool(token))
        self.target = target_of(listener, address)
        self.port = int(listener.getsockname()[1])
        self._loop, self._over = asyncio.new_event_loop(), asyncio.Event()
        self._server = _Server(listener, exposition, token, context, allowance or allowance_of(1))
        self._thread = threading.Thread(target=self._serve, name="metrics", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._server.serve(self._over))
        except Exception:
            _log.exception("the metrics are not served any more")

    @property
    def is_serving(self) -> bool:
        """False from `close` on, or where something nobody thought of has ended it: the log says what."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stops serving, cuts off whoever is served, and waits for a text that is being made. A second call does nothing."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join()

    def __enter__(self) -> Exporter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def encode(source: Collector, form: bool) -> bytes:
    """The text of metrics, as `Exposition` says. Their names must be of the classic form, which needs no escaping."""
    return bytes(openmetrics.generate_latest(source, openmetrics.ALLOWUTF8)) if form else generate_latest(source)  # type: ignore[no-untyped-call]


class _Server:
    def __init__(
        self, listener: socket.socket, exposition: Exposition, token: bytes, context: ssl.SSLContext | None, allowance: Allowance
    ) -> None:
        self._listener, self._token, self._context, self._allowance = listener, token, context, allowance
        self._texts = SharedText(exposition, allowance.spend)
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        room = MAX_REQUESTS + MAX_WAITING if files == resource.RLIM_INFINITY else max(12, files - _OTHER_FILES)
        self._most = min(MAX_REQUESTS, room // 3)
        self._waiting = WaitingRoom(min(MAX_WAITING, room - self._most))
        self._tasks: set[asyncio.Task[None]] = set()
        self._counted = 0.0
        self._listener.setblocking(False)  # a client that is gone before it is accepted must not block the thread

    async def serve(self, over: asyncio.Event) -> None:
        """Until told that it is over."""
        self._counted = time.thread_time()
        letting_in, ending = asyncio.create_task(self._let_in()), asyncio.create_task(over.wait())
        try:
            await asyncio.wait((letting_in, ending), return_when=asyncio.FIRST_COMPLETED)
            if letting_in.done():
                letting_in.result()
        finally:
            tasks = [letting_in, ending, *self._tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._texts.close()
            self._waiting.close()
            self._listener.close()

    async def _let_in(self) -> None:
        """Takes clients out of the kernel's queue, and lets them in as the allowance has it."""
        all_are_taken = True
        while True:
            if all_are_taken and not self._waiting:
                self._allowance.all_are_in()
                self._texts.release()
                await ready(self._listener)
            all_are_taken = self._take()
            if not self._waiting and not all_are_taken:  # this process may open no more files
                self._texts.release()
                await asyncio.sleep(_TAKE_SECONDS)
                continue
            is_full, wait = len(self._tasks) >= self._most, self._allowance.wait()
            if is_full or wait > 0:
                self._texts.release()
                # not counted before the next are in: what it takes to wake up would never let the time be over
                await asyncio.sleep(max(min(wait, _TAKE_SECONDS), wait / _TAKES) if wait > 0 else _TAKE_SECONDS)
                continue
            self._texts.hold()
            for _ in range(min(_AT_ONCE, self._most - len(self._tasks))):
                client = self._waiting.next()
                if client is None:
                    break
                task = asyncio.create_task(self._serve_one(client))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(0)  # those that are in get their turn
            self._count()

    def _take(self) -> bool:
        """Takes some out of the kernel's queue; whether nobody is left there."""
        for _ in range(_AT_ONCE):
            try:
                client, address = self._listener.accept()
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    break
                continue
            self._waiting.add(client, address[0])
        return False

    def _count(self) -> None:
        now = time.thread_time()
        self._allowance.spend(now - self._counted)
        self._counted = now

    async def _serve_one(self, client: socket.socket) -> None:
        connection = Connection(client, IDLE_SECONDS, REQUEST_SECONDS)
        try:
            if self._context is not None:
                await connection.secure(self._context)
            received = bytearray()
            while (head := read_head(received)) is None:
                chunk = await connection.receive(LARGEST_HEAD + 1 - len(received))
                if not chunk:
                    return
                received += chunk
            if isinstance(head, bytes):
                await connection.send(head)
            else:
                whole = await self._answer(head, connection)
                await connection.send(without_body(whole) if head.bodiless else whole)
        except OSError:
            _log.debug("a request failed", exc_info=True)
        except Exception:
            _log.exception("a request failed")
        finally:
            connection.close()

    async def _answer(self, head: Head, connection: Connection) -> bytes:
        if head.path == b"/healthz":
            return answer(HTTPStatus.OK, b"ok\n")
        if head.path != b"/metrics":
            return answer(HTTPStatus.NOT_FOUND, b"there are /metrics and /healthz\n")
        if not self._is_authorised(head):
            return answer(HTTPStatus.UNAUTHORIZED, b"a bearer token is needed\n", more=("WWW-Authenticate: Bearer",))
        form = b"application/openmetrics-text" in head.headers.get(b"accept", b"")
        return await connection.in_time(self._texts.ask(form, _seconds(head.headers.get(_PATIENCE, b""))))

    def _is_authorised(self, head: Head) -> bool:
        if not self._token:
            return True
        scheme, _, token = head.headers.get(b"authorization", b"").partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token)


def _seconds(text: bytes) -> float:
    """What a client says of how long it waits; infinite where it says nothing that could be true."""
    try:
        seconds = float(text)
    except ValueError:
        return math.inf
    return seconds if seconds > 0 else math.inf
