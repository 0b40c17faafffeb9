"""Two ways to ask S3 for a range of an object: s3fs' own client, and a plain GET of a URL that the same client signed.

The client (endpoint rules, models, signing, one event loop for all threads) takes 3 ms of CPU time a request. A plain GET takes a fraction
of that, in the thread that needs the bytes, and its URL is signed once for some minutes. Both use the client's credentials, profiles, roles
and endpoints. If a plain GET does not return the bytes, the request is repeated with the client, whose answer is final, because a signed
URL may be refused for reasons that the client can deal with (a renewed token, a bucket in another region).
"""

from __future__ import annotations

import asyncio
import http.client
import re
import socket
import ssl
import threading
import time
import urllib.request
from collections import OrderedDict, defaultdict
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit
from weakref import WeakSet

from pipeline.stream.read.retries import Refused

T = TypeVar("T")
_SIGNED_SECONDS = 900
_KEPT_URLS = 4096
_IDLE_CONNECTIONS = 64
_DOUBTS = 3
_LONGEST_ERROR = 4096
_TICK_SECONDS = 0.5
_ABANDONED = "abandoned: the loader is closing"


class Body(Protocol):
    """The bytes of one answer. Reading raises OSError or an error of the client library."""

    etag: str | None
    content_range: str

    def read(self, size: int) -> bytes:
        """At most `size` bytes, as soon as some have arrived; empty at the end."""
        ...

    def finish(self) -> None:
        """Keeps the connection for another request, if the body was read to its end."""
        ...

    def close(self) -> None:
        """Drops the connection together with the unread rest of the body."""
        ...


class ClientBody:
    """An answer that s3fs' client received.

    Args:
        fs: file system of s3fs, which retries nothing by itself.
        bucket: bucket of the object.
        key: key of the object.
        wanted: range in the notation of HTTP, `bytes=0-9`.
        etag: ETag that the object must have; None takes any.
        stall_seconds: longest wait for the head and for each piece of the body.
        abandoned: set when the loader closes.
    """

    def __init__(
        self, fs: Any, bucket: str, key: str, wanted: str, etag: str | None, stall_seconds: float, abandoned: threading.Event
    ) -> None:
        self._fs, self._stall_seconds, self._abandoned = fs, stall_seconds, abandoned
        condition = {"IfMatch": etag} if etag else {}
        answer = in_loop(fs, fs._call_s3("get_object", Bucket=bucket, Key=key, Range=wanted, **condition), stall_seconds, abandoned)
        self._body = answer["Body"]
        self.etag: str | None = answer.get("ETag")
        self.content_range = str(answer.get("ContentRange") or "")

    def read(self, size: int) -> bytes:
        return bytes(in_loop(self._fs, self._body.read(size), self._stall_seconds, self._abandoned))

    def finish(self) -> None:
        if self.read(1):
            self.close()

    def close(self) -> None:
        self._fs.loop.call_soon_threadsafe(self._body.close)


def in_loop(fs: Any, action: Coroutine[Any, Any, T], seconds: float, abandoned: threading.Event) -> T:
    """Runs a coroutine in the file system's own thread, and cancels it if the wait is interrupted, abandoned or too long.

    Raises:
        TimeoutError: the coroutine took longer than `seconds`.
        ConnectionAbortedError: the wait was abandoned.
    """
    running = asyncio.run_coroutine_threadsafe(action, fs.loop)
    end = time.monotonic() + seconds
    try:
        while not abandoned.is_set():
            left = end - time.monotonic()
            try:
                return running.result(min(_TICK_SECONDS, max(0.0, left)))
            except TimeoutError:
                if running.done():  # at this very moment, or by a time-out of its own
                    return running.result()
                if left <= 0:
                    raise TimeoutError(f"nothing came for {seconds:g} seconds") from None
        raise ConnectionAbortedError(_ABANDONED)
    finally:
        running.cancel()


class PlainBody:
    """The answer to a plain GET, a 206."""

    def __init__(
        self, answer: http.client.HTTPResponse, connection: http.client.HTTPConnection, idle: list[http.client.HTTPConnection]
    ) -> None:
        self._answer, self._connection, self._idle = answer, connection, idle
        self.etag = answer.getheader("ETag")
        self.content_range = answer.getheader("Content-Range") or ""

    def read(self, size: int) -> bytes:
        return self._answer.read1(size)

    def finish(self) -> None:
        if self._answer.length == 0 and not self._answer.will_close and len(self._idle) < _IDLE_CONNECTIONS:
            self._answer.close()
            self._idle.append(self._connection)
        else:
            self.close()

    def close(self) -> None:
        self._answer.close()
        self._connection.close()


class _Connection(http.client.HTTPConnection):
    """A connection with a socket from before it is opened, so that another thread can shut it down at any moment.

    Args:
        host: host, with a port that is not the usual one.
        seconds: longest wait for the connection, and for the next bytes.
        context: settings of TLS; None is plain HTTP.
        abandoned: set when the loader closes.
    """

    def __init__(self, host: str, seconds: float, context: ssl.SSLContext | None, abandoned: threading.Event) -> None:
        self.default_port = http.client.HTTPS_PORT if context is not None else http.client.HTTP_PORT
        super().__init__(host, timeout=seconds)
        self._context, self._abandoned = context, abandoned

    def connect(self) -> None:
        failed: OSError | None = None
        for family, kind, protocol, _, address in socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM):
            self.sock = socket.socket(family, kind, protocol)
            try:
                return self._open(address)
            except OSError as error:
                self.sock.close()
                failed = failed or error
                if self._abandoned.is_set() or isinstance(error, ssl.SSLError):
                    break
        raise failed or OSError(f"{self.host} has no address")

    def _open(self, address: Any) -> None:
        if self._abandoned.is_set():  # after the socket was made: `abandon` shuts it down, or this check sees that it was called
            raise ConnectionAbortedError(_ABANDONED)
        self.sock.settimeout(self.timeout)
        self.sock.connect(address)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context is not None:
            self.sock = self._context.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
            self.sock.do_handshake()


class PlainGets:
    """Plain GETs of signed URLs, from any thread.

    Args:
        fs: file system of s3fs, which signs the URLs.
        stall_seconds: longest wait for a connection and for the next bytes.
        abandoned: set before `abandon` is called.
    """

    def __init__(self, fs: Any, stall_seconds: float, abandoned: threading.Event) -> None:
        self._fs = fs
        self._stall_seconds, self._abandoned = stall_seconds, abandoned
        self._certificates: ssl.SSLContext | None = None
        self._lock = threading.Lock()
        self._urls: OrderedDict[tuple[str, str], tuple[str, float]] = OrderedDict()
        self._idle: dict[tuple[str, str], list[http.client.HTTPConnection]] = defaultdict(list)
        self._live: WeakSet[http.client.HTTPConnection] = WeakSet()
        self._live_lock = threading.Lock()
        self._proven, self._doubts = False, 0

    def abandon(self) -> None:
        """Ends the requests that are under way; the threads that wait for them get an error at once."""
        with self._live_lock:
            live = list(self._live)
        for connection in live:
            sock = connection.sock
            if sock is not None:
                with suppress(OSError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not TLS's own shutdown, which would change the object under its thread

    @staticmethod
    def possible(fs: Any) -> bool:
        """True if a URL is all that a request of this file system needs: no proxy, and no headers, certificates or versions of its own."""
        own = (fs.req_kw, fs.s3_additional_kwargs, fs.version_aware, fs.cache_regions)
        own_certificates = fs.client_kwargs.get("verify") is not None or "client_cert" in fs.config_kwargs
        proxies = {"proxies", "proxies_config"} & fs.config_kwargs.keys() or urllib.request.getproxies().keys() - {"no"}
        return not (any(own) or own_certificates or proxies)

    def get(self, bucket: str, key: str, wanted: str, etag: str | None) -> PlainBody | None:
        """The answer, or None if the client has to make the request.

        Args:
            bucket: bucket of the object.
            key: key of the object.
            wanted: range in the notation of HTTP, `bytes=0-9`.
            etag: ETag that the object must have; None takes any.

        Raises:
            OSError, http.client.HTTPException: the connection failed, the answer is no HTTP, or the store is out of order.
        """
        if self._doubts >= _DOUBTS and not self._proven:
            return None  # plain GETs never worked here, and the client knows why
        url = urlsplit(self._url(bucket, key))
        headers = {"Range": wanted, "Accept-Encoding": "identity", **({"If-Match": etag} if etag else {})}
        idle = self._idle[url.scheme, url.netloc]
        answer, connection = self._ask(url.scheme, url.netloc, f"{url.path}?{url.query}", headers, idle)
        body = PlainBody(answer, connection, idle)
        if answer.status == http.client.PARTIAL_CONTENT:
            self._proven = True
            return body
        failed = _status(answer) if answer.status >= 500 or answer.status == http.client.TOO_MANY_REQUESTS else ""
        body.close()
        if failed:
            raise Refused(answer.status, failed)  # the store is busy, and another request at once would not help it
        self._doubts += 1
        with self._lock:
            self._urls.pop((bucket, key), None)
        return None

    def _ask(
        self, scheme: str, host: str, target: str, headers: dict[str, str], idle: list[http.client.HTTPConnection]
    ) -> tuple[http.client.HTTPResponse, http.client.HTTPConnection]:
        while True:
            try:
                connection, fresh = idle.pop(), False
            except IndexError:
                connection, fresh = self._connection(scheme, host), True
            with self._live_lock:
                self._live.add(connection)
            try:
                if self._abandoned.is_set():
                    raise ConnectionAbortedError(_ABANDONED)
                connection.request("GET", target, headers=headers)
                return connection.getresponse(), connection
            except BaseException as error:
                connection.close()
                if fresh or self._abandoned.is_set() or not isinstance(error, ConnectionError):
                    raise  # otherwise the server closed the idle connection, as servers do

    def _connection(self, scheme: str, host: str) -> http.client.HTTPConnection:
        if scheme == "https":
            if self._certificates is None:
                from botocore.httpsession import get_cert_path  # type: ignore[import-untyped] # noqa: PLC0415 - comes with s3fs, an extra

                own = self._fs.session.get_config_variable("ca_bundle")  # AWS_CA_BUNDLE, or the profile's setting
                self._certificates = ssl.create_default_context(cafile=own or get_cert_path(True))
            return _Connection(host, self._stall_seconds, self._certificates, self._abandoned)
        return _Connection(host, self._stall_seconds, None, self._abandoned)

    def _url(self, bucket: str, key: str) -> str:
        with self._lock:
            url, until = self._urls.get((bucket, key), ("", 0.0))
        if time.monotonic() < until:
            return url
        url = str(in_loop(self._fs, self._fs._url(f"{bucket}/{key}", expires=_SIGNED_SECONDS), self._stall_seconds, self._abandoned))
        with self._lock:
            self._urls[bucket, key] = (url, time.monotonic() + _SIGNED_SECONDS / 2)
            while len(self._urls) > _KEPT_URLS:
                self._urls.popitem(last=False)
        return url


def _status(answer: http.client.HTTPResponse) -> str:
    """`503 SlowDown`: the status and the store's own word for it."""
    with suppress(OSError, http.client.HTTPException):
        code = re.search(rb"<Code>(\w+)</Code>", answer.read(_LONGEST_ERROR))
        return f"{answer.status} {code[1].decode()}" if code else str(answer.status)
    return str(answer.status)
