"""Reads the pictures of a listing from local files or from a store.

From a store, the next few pictures of a task are fetched while one is processed, because a request takes longer than a resize. Requests
that fail are repeated a few times, because a picture that exists must never be taken for a broken one.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from shards.build.sources.listing import Entry
from shards.counting import counted
from shards.dataset.pixels import PictureRejected
from shards.errors import SourceError, StoreError
from shards.store import Options, Store

_REQUESTS = 8  # pictures in flight from a store
_PAUSES = (0.2, 1.0, 5.0)  # seconds before the second, third and last attempt


def read_pictures(
    url: str, options: Options | None, entries: Sequence[Entry], max_bytes: int
) -> Iterator[tuple[Entry, bytes | PictureRejected | None]]:
    """Reads pictures in the order given. In place of the bytes of a link that leads nowhere, its rejection is given.

    Args:
        url: URL of the listing.
        options: fsspec options of the store.
        entries: pictures to read.
        max_bytes: most bytes of a picture; a longer one is not read, and its bytes are None.

    Raises:
        SourceError: a picture is gone, or has another length than when it was listed.
        StoreError: a picture can't be read after all attempts.
    """
    store = Store(url, options)
    if store.local is not None:
        for entry in entries:
            yield entry, _read_local(store, entry) if entry.length <= max_bytes else None
        return
    pool = ThreadPoolExecutor(_REQUESTS)
    waiting: deque[tuple[Entry, Future[bytes] | None]] = deque()
    try:
        for entry in entries:
            waiting.append((entry, pool.submit(_read_remote, store, entry) if entry.length <= max_bytes else None))
            if len(waiting) > _REQUESTS:
                first, data = waiting.popleft()
                yield first, data.result() if data else None
        while waiting:
            first, data = waiting.popleft()
            yield first, data.result() if data else None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read_local(store: Store, entry: Entry) -> bytes | PictureRejected:
    try:
        handle = os.open(store.path(entry.path), os.O_RDONLY)
        try:
            # one byte more than the file had, to notice that it has grown
            data = _pread(handle, entry.length + (entry.path == entry.name), entry.offset)
        finally:
            os.close(handle)
    except FileNotFoundError:
        if Path(store.path(entry.path)).is_symlink():
            return PictureRejected("a link that leads nowhere")
        raise _changed(store, entry, "gone") from None
    except OSError as error:
        raise SourceError(f"{store.describe(entry.path)}: can't be read: {error.strerror or error}") from error
    if len(data) != entry.length:
        raise _changed(store, entry, f"{counted(len(data), 'byte')} or more where there were {entry.length:,}")
    return data


def _pread(handle: int, length: int, offset: int) -> bytes:
    parts: list[bytes] = []
    while length > 0 and (part := os.pread(handle, length, offset)):
        parts.append(part)
        length -= len(part)
        offset += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _read_remote(store: Store, entry: Entry) -> bytes:
    if entry.length == 0:
        return b""
    for pause in (*_PAUSES, None):
        try:
            data = store.read_range(entry.path, entry.offset, entry.offset + entry.length)
        except StoreError as error:
            if pause is None or isinstance(error.__cause__, FileNotFoundError | PermissionError):
                raise
        else:
            if len(data) == entry.length:
                return data
            if pause is None:
                raise _changed(store, entry, f"the store gave {counted(len(data), 'byte')} of {entry.length:,}")
        time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _changed(store: Store, entry: Entry, what: str) -> SourceError:
    place = "" if entry.path == entry.name else f" ({entry.name})"
    return SourceError(
        f"{store.describe(entry.path)}{place}: changed since it was listed: {what}. Build again when no program writes there"
    )
