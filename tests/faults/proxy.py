"""A proxy on the loopback interface that stands between a client and a real object store and does to answers what networks do.

It speaks HTTP/1.1, forwards requests as they are (so that signatures stay true), counts them, and spoils those that a `Rule` picks by
method, key, number and byte position. A body is held whole before it is passed on: objects of tests are small.
"""

from __future__ import annotations

import asyncio
import fnmatch
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from types import TracebackType
from urllib.parse import unquote, urlsplit

from tests.certificates import Certificate
from tests.faults.shaping import Shape

_FOREVER = 1 << 40


class Fault(Enum):
    """Damage to an answer."""

    NONE = auto()  # only the rule's action
    RESET = auto()  # TCP reset at the byte
    CUT = auto()  # the connection ends in peace at the byte, before Content-Length is reached
    SHORT = auto()  # a body that ends at the byte with the Content-Length and status of the whole truth
    STALL = auto()  # no byte more from the byte on, the connection stays
    STALL_HEAD = auto()  # not even a status line
    CHUNKED_CUT = auto()  # a chunked body whose connection ends at the byte
    CHUNKED_SHORT = auto()  # a chunked body that ends at the byte as if it were whole
    FLIP = auto()  # one bit of the byte is another
    STATUS = auto()  # `status` and `body` instead of the store's answer
    WRONG_RANGE = auto()  # bytes from elsewhere, under the Content-Range that is true for them
    NO_RANGE = auto()  # a 200 with the bytes and without a Content-Range
    GARBAGE = auto()  # an answer that is no HTTP


@dataclass
class Rule:
    """Choice of the answers that are spoilt, and the damage.

    Attributes:
        fault: damage.
        key: pattern of the object's key in its bucket.
        method: method of the request.
        first: number of the first spoilt request among those that match, from 0.
        count: how many in a row.
        at: byte of the body where it happens; the middle when None.
        status, body, headers: answer of the fault STATUS.
        each_key: count requests of every key by themselves.
        lengths: only requests for a range of one of these lengths.
        query: only requests with this in the URL's query.
        action: called in a thread of its own before the fault happens.
    """

    fault: Fault
    key: str = "*.tar"
    method: str = "GET"
    first: int = 0
    count: int = _FOREVER
    at: int | None = None
    status: int = 503
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    each_key: bool = False
    lengths: frozenset[int] | None = None
    query: str = ""
    action: Callable[[], object] | None = None
    hits: int = 0
    _seen: Counter[str] = field(default_factory=Counter)

    def takes(self, request: Request) -> bool:
        """Counts a request, and returns whether it is spoilt."""
        if request.method != self.method or not fnmatch.fnmatch(request.key, self.key) or self._differs(request):
            return False
        number = self._seen[request.key if self.each_key else ""]
        self._seen[request.key if self.each_key else ""] += 1
        taken = self.first <= number < self.first + self.count
        self.hits += taken
        return taken

    def _differs(self, request: Request) -> bool:
        return self.query not in request.query or (self.lengths is not None and request.length not in self.lengths)


@dataclass(frozen=True)
class Request:
    """A request as it came: its head, the key below the bucket, the query, and the bytes that were asked for (0 where none were named)."""

    head: bytes
    body: bytes
    method: str
    key: str
    query: str
    length: int


@dataclass(frozen=True)
class Answer:
    """An answer of the store."""

    status: bytes
    headers: list[tuple[str, str]]
    body: bytes

    def head(self, **changes: str | None) -> bytes:
        """The head with some headers (written Content_Length) replaced, or left out where None."""
        wanted = {name.replace("_", "-").lower(): value for name, value in changes.items()}
        kept = [(name, value) for name, value in self.headers if name.lower() not in wanted]
        kept += [(name, value) for name, value in wanted.items() if value is not None]
        return self.status + b"\r\n" + "".join(f"{name}: {value}\r\n" for name, value in kept).encode() + b"\r\n"


class Proxy:
    """Serves `endpoint` from a thread of its own for as long as the `with` block lasts.

    Args:
        upstream: the store's endpoint, http://127.0.0.1:PORT.
        shape: latency and bandwidth.
        certificate: that it has, which makes it speak TLS.

    Attributes:
        endpoint: http://127.0.0.1:PORT of the proxy, https:// with a certificate.
        rules: the first that takes a request decides; may be changed at any time.
        requests: answered or spoilt requests by (method, key).
        sent: bytes of bodies that were sent, by key.
    """

    def __init__(self, upstream: str, shape: Shape | None = None, certificate: Certificate | None = None) -> None:
        parts = urlsplit(upstream)
        self._host, self._port = str(parts.hostname), int(parts.port or 80)
        self.shape = shape or Shape()
        self.rules: list[Rule] = []
        self.requests: Counter[tuple[str, str]] = Counter()
        self.sent: Counter[str] = Counter()
        self.connections = 0
        self._refusals = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self.endpoint = ""
        self._context = certificate.serving() if certificate is not None else None

    def __enter__(self) -> Proxy:
        self._thread.start()
        starting = asyncio.start_server(self._connection, "127.0.0.1", 0, ssl=self._context)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result()
        self.endpoint = f"{'https' if self._context else 'http'}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def refuse(self, connections: int) -> None:
        """Resets every connection there is, and the next ones as soon as they are accepted."""

        def start() -> None:
            self._refusals = connections
            for writer in self._writers:
                _reset(writer)

        self._loop.call_soon_threadsafe(start)

    async def _stop(self) -> None:
        self._server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self._refusals > 0:
            self._refusals -= 1
            return _reset(writer)
        self._writers.add(writer)
        try:
            while True:
                request = await _read_request(reader, writer)
                await self.shape.wait()
                await self._exchange(request, writer)
        except (asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            _reset(writer)  # the store's end, ours or the client's: it is told as the network would tell it
        finally:
            self._writers.discard(writer)
        return None

    async def _exchange(self, request: Request, writer: asyncio.StreamWriter) -> None:
        self.requests[request.method, request.key] += 1
        rule = next((rule for rule in self.rules if rule.takes(request)), Rule(Fault.NONE))
        if rule.action is not None:
            await asyncio.get_running_loop().run_in_executor(None, rule.action)
        if rule.fault is Fault.STALL_HEAD:
            await asyncio.sleep(_FOREVER)
        if rule.fault is Fault.GARBAGE:
            writer.write(b"\x00\x01 this is no HTTP at all\r\n\r\n" * 4)
            await writer.drain()
            raise ConnectionResetError
        if rule.fault is Fault.STATUS:
            answer = Answer(f"HTTP/1.1 {rule.status} Answer".encode(), list(rule.headers.items()), rule.body)
            writer.write(answer.head(Content_Length=str(len(rule.body))) + (b"" if request.method == "HEAD" else rule.body))
            return await writer.drain()
        answer = await self._forward(request)
        return await self._send(rule, request, answer, writer)

    async def _send(self, rule: Rule, request: Request, answer: Answer, writer: asyncio.StreamWriter) -> None:
        fault, body = rule.fault, answer.body
        at = min(len(body) // 2 if rule.at is None else rule.at, len(body))
        head, stalls, closes = answer.head(), False, False
        if fault in {Fault.RESET, Fault.CUT, Fault.STALL}:
            body, stalls, closes = body[:at], fault is Fault.STALL, fault is Fault.CUT
        elif fault is Fault.SHORT:
            body, head = body[:at], answer.head(Content_Length=str(at))
        elif fault in {Fault.CHUNKED_CUT, Fault.CHUNKED_SHORT}:
            end = b"0\r\n\r\n" if fault is Fault.CHUNKED_SHORT else b""
            closes = not end
            body = f"{at:x}\r\n".encode() + body[:at] + b"\r\n" + end
            head = answer.head(Content_Length=None, Transfer_Encoding="chunked")
        elif fault is Fault.FLIP:
            body = body[:at] + bytes([body[at] ^ 0x10]) + body[at + 1 :]
        elif fault is Fault.WRONG_RANGE:
            body = body[::-1]
            head = answer.head(Content_Range=f"bytes 7-{6 + len(body)}/{1 << 30}")
        elif fault is Fault.NO_RANGE:
            head = Answer(b"HTTP/1.1 200 OK", answer.headers, b"").head(Content_Range=None)
        writer.write(head)
        self.sent[request.key] += len(body)
        await self.shape.send(writer, body)
        await writer.drain()
        if stalls:
            await asyncio.sleep(_FOREVER)
        if closes:
            writer.close()
            raise asyncio.IncompleteReadError(b"", None)
        if fault is Fault.RESET:
            await asyncio.sleep(0.02)  # a reset overtakes what the client has not read yet
            raise ConnectionResetError

    async def _forward(self, request: Request) -> Answer:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(request.head + request.body)
            await writer.drain()
            return await _read_answer(reader, request.method)
        finally:
            writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if not writer.is_closing():
        writer.transport.abort()


async def _read_head(reader: asyncio.StreamReader) -> tuple[bytes, str, list[tuple[str, str]]]:
    raw = await reader.readuntil(b"\r\n\r\n")
    first, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
    return raw, first, [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
    head, first, lines = await _read_head(reader)
    headers = {name.lower(): value for name, value in lines}
    if headers.get("expect", "").lower() == "100-continue":  # how clients ask before they send a body
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    chunked = headers.get("transfer-encoding", "").lower() == "chunked"  # how S3's clients send a body over TLS, its checksum behind it
    body = await _read_chunks(reader) if chunked else await reader.readexactly(int(headers.get("content-length", 0)))
    method, target, _ = first.split(" ")
    _, _, key = unquote(urlsplit(target).path).lstrip("/").partition("/")
    start, _, end = headers.get("range", "").removeprefix("bytes=").partition("-")
    return Request(head, body, method, key, urlsplit(target).query, int(end) - int(start) + 1 if start and end else 0)


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    """A chunked body as it came, with its sizes and its trailer."""
    found, size = b"", 1
    while size:
        line = await reader.readuntil(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        found += line + (await reader.readexactly(size + 2) if size else b"")
    while not found.endswith(b"\r\n\r\n"):
        found += await reader.readuntil(b"\r\n")
    return found


async def _read_answer(reader: asyncio.StreamReader, method: str) -> Answer:
    status = 100
    while status == 100:
        _, first, lines = await _read_head(reader)
        status = int(first.split(" ")[1])
    headers = {name.lower(): value for name, value in lines}
    body = b""
    if "chunked" in headers.get("transfer-encoding", ""):
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
        lines = [(name, value) for name, value in lines if name.lower() != "transfer-encoding"] + [("Content-Length", str(len(body)))]
    elif method != "HEAD" and status not in {204, 304}:
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Answer(first.encode("latin-1"), lines, body)
