"""Web servers on the loopback interface that differ from each other as real ones do."""

from __future__ import annotations

import gzip
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

SIGNATURE = "X-Amz-Signature=0123456789abcdef"


@contextmanager
def answering(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    """URL of a server that answers by a handler."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass(frozen=True)
class Manners:
    """The ways of one server.

    Attributes:
        head: answer to HEAD: with a length, in chunks, or a refusal with this status.
        ranges: whether ranges are answered as such.
        total: whether the answer to a range tells the length of the whole.
        length: whether whole objects come with their length.
        encoding: encoding of every body.
        page: send a page instead of every object that does not exist.
        signed: answer only URLs with SIGNATURE.
        off: number of bytes by which every range is moved.
        most: most bytes of an answer to a range.
        moved: send every client on to an address with SIGNATURE, which is out of order.
    """

    head: Literal["length", "chunked", 403, 405] = "length"
    ranges: bool = True
    total: bool = True
    length: bool = True
    encoding: Literal["", "gzip"] = ""
    page: bool = False
    signed: bool = False
    off: int = 0
    most: int = 1 << 30
    moved: bool = False


@contextmanager
def serving(folder: Path, manners: Manners) -> Iterator[str]:
    """A folder behind such a server; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            self.close_connection = True  # a client that has heard enough does not break the next request
            path, _, query = self.path.partition("?")
            file = folder / path.lstrip("/")
            if manners.moved:
                return self._send(500, b"", body) if SIGNATURE in query else self._send(302, b"", body, location=f"{path}?{SIGNATURE}")
            if manners.signed and SIGNATURE not in query:
                return self._send(403, b"", body)
            if not file.is_file():
                return self._send(200, b"<html>hello</html>", body, kind="text/html") if manners.page else self._send(404, b"", body)
            if not body and isinstance(manners.head, int):
                return self._send(manners.head, b"", body)
            data = file.read_bytes()
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if asked is None or not manners.ranges:
                return self._send(200, data, body, chunked=not manners.length or (not body and manners.head == "chunked"))
            start = int(asked[1]) + manners.off
            part = data[start : int(asked[2]) + manners.off + 1][: manners.most]
            total = len(data) if manners.total else "*"
            return self._send(206, part, body, f"bytes {start}-{start + len(part) - 1}/{total}")

        def _send(
            self, status: int, data: bytes, body: bool, content_range: str = "", chunked: bool = False, kind: str = "", location: str = ""
        ) -> None:
            data = gzip.compress(data) if manners.encoding else data
            self.send_response(status)
            # said, because a client that reused the connection of an answer would find it closed
            own = {
                "Connection": "close",
                "Content-Range": content_range,
                "Content-Encoding": manners.encoding,
                "Content-Type": kind,
                "Location": location,
            }
            for name, value in own.items():
                if value:
                    self.send_header(name, value)
            self.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(data)))))
            self.end_headers()
            if body:
                try:
                    self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data) if chunked else data)
                except ConnectionError:  # a client that has heard enough
                    self.close_connection = True

    with answering(Handler) as url:
        yield url
