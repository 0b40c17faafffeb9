"""Objects behind a web server: sizes, versions and ranges, all of which a GET tells.

HEAD is not relied on, because some servers refuse it, signed addresses are often good for GET alone, and a proxy that sends in chunks gives
no length. A GET of the first byte tells the size (`Content-Range`), the version, and whether the server knows ranges at all.
"""

from __future__ import annotations

import http.client
import re
from collections.abc import Mapping
from typing import Any

NO_RANGES = (
    "the web server sends whole files where a range of bytes is asked for, and samples are read by ranges. Serve the shards with a server "
    "that answers ranges (nginx, Apache, Caddy, `rclone serve http`), or copy them to a disk or a bucket"
)
_PIECE = 1 << 20
_GONE = (http.client.NOT_FOUND, http.client.GONE)
_REFUSED = (http.client.UNAUTHORIZED, http.client.FORBIDDEN)
_VERSIONS = ("ETag", "Last-Modified")


class UnfitServer(Exception):
    """A web server does not answer as reading by ranges needs it, which no retry mends; the message is one for people."""


def is_web(fs: Any) -> bool:
    """Returns whether a file system of fsspec reads from web servers."""
    return "https" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


async def info(fs: Any, url: str) -> dict[str, Any]:
    """Asks for the first byte of an object.

    Returns:
        Description as fsspec gives it: `name`, `type`, `size` (None where the server tells none), `mimetype`, `ETag` and `Last-Modified`
        where there are any, and `ranges`, False for a server that sent the whole object.

    Raises:
        FileNotFoundError, PermissionError, aiohttp.ClientError: the server does not give the object.
    """
    session = await fs.set_session()
    async with session.get(fs.encode_url(url), **_request(fs, "bytes=0-0")) as answer:
        if answer.status != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:  # the answer of an empty object
            _raise_for_status(answer, url)
        size = _total(answer.headers) if answer.status != http.client.OK else _length(answer.headers)
        found = {"name": url, "type": "file", "size": size, "ranges": answer.status != http.client.OK or size == 0}
        found |= {key: answer.headers[key] for key in _VERSIONS if key in answer.headers}
        found["mimetype"] = answer.headers.get("Content-Type", "").partition(";")[0]
        if answer.status == http.client.PARTIAL_CONTENT:
            await answer.content.read(1)  # so that the connection is used again
        else:
            answer.close()  # instead of reading the whole object
    if found["size"] is None or not any(key in found for key in _VERSIONS):  # a part may come without the time of the whole
        async with session.head(fs.encode_url(url), **{"allow_redirects": True, **_request(fs)}) as answer:
            if answer.status == http.client.OK:
                found["size"] = _length(answer.headers) if found["size"] is None else found["size"]
                found |= {key: answer.headers[key] for key in _VERSIONS if key in answer.headers}
    return found


async def read_range(fs: Any, url: str, start: int, end: int) -> bytes:
    """Reads bytes [start, end) of an object, fewer where it ends before. A server that answers with a shorter range is asked again.

    Raises:
        UnfitServer: the server knows no ranges, or compresses what it sends.
        FileNotFoundError, PermissionError, aiohttp.ClientError: the server does not give the object.
        OSError: the answer is another range.
    """
    data = b""
    while start + len(data) < end:
        part, total = await _read_part(fs, url, start + len(data), end)
        data += part
        if not part or total is None or start + len(data) >= total:
            break
    return data


async def _read_part(fs: Any, url: str, start: int, end: int) -> tuple[bytes, int | None]:
    """Returns the bytes of one answer and the size of the whole object, None where the server does not tell it."""
    session = await fs.set_session()
    async with session.get(fs.encode_url(url), **_request(fs, f"bytes={start}-{end - 1}")) as answer:
        if answer.status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return b"", None
        _raise_for_status(answer, url)
        encoding = answer.headers.get("Content-Encoding", "identity")
        if encoding not in ("identity", ""):
            answer.close()
            raise UnfitServer(f"the web server compresses what it sends ({encoding}), so offsets mean nothing. Turn that off for it")
        got = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
        if got and int(got[1]) != start:
            answer.close()
            raise OSError(f"the web server answered the range {answer.headers['Content-Range']} to bytes {start}-{end - 1}")
        data = bytearray()
        while piece := await answer.content.read(_PIECE):
            data += piece
            if len(data) > end - start or (start and answer.status == http.client.OK):  # the whole object, or its beginning
                answer.close()
                raise UnfitServer(NO_RANGES)
        return bytes(data), _total(answer.headers)


def _request(fs: Any, wanted: str = "") -> dict[str, Any]:
    """Returns the options of a request: those of the file system, without compression, for a range."""
    headers = {**fs.kwargs.get("headers", {}), "Accept-Encoding": "identity", **({"Range": wanted} if wanted else {})}
    return {**fs.kwargs, "headers": headers}


def _raise_for_status(answer: Any, url: str) -> None:
    if answer.status in _GONE:
        raise FileNotFoundError(url)
    if answer.status in _REFUSED:
        raise PermissionError(f"{answer.status} {answer.reason}")
    answer.raise_for_status()


def _length(headers: Mapping[str, str]) -> int | None:
    """Returns the length of a body that is sent as it is stored; None where the server does not tell it."""
    told = headers.get("Content-Length", "") if headers.get("Content-Encoding", "identity") in ("identity", "") else ""
    return int(told) if told.isdecimal() else None


def _total(headers: Mapping[str, str]) -> int | None:
    """Returns the length of the whole object that a range is a part of; None where the server does not tell it."""
    told = headers.get("Content-Range", "").rpartition("/")[2]
    return int(told) if told.isdecimal() else None
