"""The heads of HTTP requests and of the answers to them, as far as an endpoint needs them that is only read from.

Whatever is no request is refused as soon as that can be seen. An answer ends its connection.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

LARGEST_HEAD = 16 * 2**10
"""Bytes of a request's head, at most."""
MOST_HEADERS = 100
_PLAIN = "text/plain; charset=utf-8"
_VERSION = re.compile(rb"HTTP/\d\.\d")
_END = re.compile(rb"\n\r?\n")


@dataclass(frozen=True)
class Head:
    """Of a request that can be answered.

    Attributes:
        path: without what follows a question mark.
        bodiless: whether the head of the answer is all that is asked for.
        headers: name in lower case -> value; of those that are sent twice, the first.
    """

    path: bytes
    bodiless: bool
    headers: Mapping[bytes, bytes]


def read_head(received: bytes | bytearray) -> Head | bytes | None:
    """The head of a GET or HEAD request; the answer that refuses anything else; None while more is needed to tell.

    Args:
        received: what has come so far.
    """
    if received.startswith((b"\r\n", b"\n")):  # what an older client sent behind its request before
        received = received.lstrip(b"\r\n")
    line = received.find(b"\n")
    if line < 0:
        return refusal(HTTPStatus.REQUEST_URI_TOO_LONG) if len(received) > LARGEST_HEAD else None
    words = received[:line].split()
    if len(words) != 3 or not _VERSION.fullmatch(words[2]):
        return refusal(HTTPStatus.BAD_REQUEST)
    if words[2] >= b"HTTP/2":
        return refusal(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    if words[0] not in (b"GET", b"HEAD"):
        return answer(HTTPStatus.METHOD_NOT_ALLOWED, b"there are GET and HEAD\n", more=("Allow: GET, HEAD",))
    end = _END.search(received, line)
    if len(received) > LARGEST_HEAD or received.count(b"\n", line + 1, end.start() if end else len(received)) >= MOST_HEADERS:
        return refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    if end is None:
        return None
    headers: dict[bytes, bytes] = {}
    for field in bytes(received[line + 1 : end.start()]).splitlines():
        name, colon, value = field.partition(b":")
        if not colon or name.split() != [name]:  # also a line that continues the one before, which nobody may send any more
            return refusal(HTTPStatus.BAD_REQUEST)
        headers.setdefault(name.lower(), value.strip())
    return Head(_path(bytes(words[1])), words[0] == b"HEAD", headers)


def _path(target: bytes) -> bytes:
    """Of a target that is a path or, as to a proxy, a whole URL."""
    _, scheme, rest = target.partition(b"://")
    path = b"/" + rest.partition(b"/")[2] if scheme and not target.startswith(b"/") else target
    return path.partition(b"?")[0]


def answer(status: HTTPStatus, body: bytes, content_type: str = _PLAIN, more: Sequence[str] = ()) -> bytes:
    """The whole of an answer.

    Args:
        status: of it.
        body: likewise.
        content_type: of the body.
        more: header lines.
    """
    lines = (
        f"HTTP/1.0 {status.value} {status.phrase}",
        "Server: context-encoder",
        f"Date: {_date(int(time.time()))}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        *more,
        "Connection: close\r\n\r\n",
    )
    return "\r\n".join(lines).encode("latin-1") + body


def without_body(whole: bytes) -> bytes:
    """The head of an answer."""
    return whole[: whole.index(b"\r\n\r\n") + 4]


def refusal(status: HTTPStatus) -> bytes:
    """An answer that says no more than its status."""
    return answer(status, f"{status.phrase}\n".encode())


@lru_cache(maxsize=1)
def _date(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)
