"""Reads a tar in a store as a file: once, forward, in bounded memory and without a copy on disk.

The reader has two ways. It fetches every byte in large pieces and knows the sha256 at the end. Or it fetches only the bytes that are read:
headers that lie far apart cost one small request each, and between headers that lie close it reads on, because the bytes between them cost
less than another request.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable

from shards.counting import counted
from shards.errors import ShardCorrupt
from shards.store import Store

PIECE = 4 << 20
_WINDOW = 16 << 10  # holds the header of a picture and the small members around it
_JOINED = 256 << 10  # a store sends so many bytes in about the time of one more request; a local disk answers at once
_JOINED_LOCAL = 16 << 10
_LONGEST_READ = 16 << 20  # only pictures are longer, and they are read in parts


class TarReader:
    """Reads one object of known size.

    Args:
        store: store that holds the object.
        name: name of the object in the store.
        size: size of the object in bytes, as the store gave it.
        whole: fetch every byte, in order; else only the bytes that are read.
        passed: called with the number of bytes after each request; may raise to stop the reading.

    Raises:
        ShardCorrupt: the object is shorter than its size, or a header is longer than in any sound tar.
        StoreError: the store can't be read.
    """

    def __init__(self, store: Store, name: str, size: int, whole: bool, passed: Callable[[int], None] | None = None) -> None:
        self._store, self._name, self._size, self._whole = store, name, size, whole
        self._passed = passed or (lambda _: None)
        self._joined = _JOINED_LOCAL if store.local is not None else _JOINED
        self._at = 0
        self._start, self._data = 0, b""
        self._ahead = PIECE if whole else _WINDOW
        self._seen = hashlib.sha256()

    def tell(self) -> int:
        """Returns the offset of the next read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Moves to an offset without fetching anything."""
        self._at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence] + offset
        return self._at

    def read(self, count: int, /) -> bytes:
        """Reads up to `count` bytes, fewer only at the end."""
        count = max(0, min(count, self._size - self._at))
        if count > _LONGEST_READ:
            raise ShardCorrupt(f"{self._store.describe(self._name)}: a header of {counted(count, 'byte')} at byte {self._at:,}: damaged")
        place = self._at - self._start
        if place >= 0 and place + count <= len(self._data):  # nearly always
            self._at += count
            return self._data[place : place + count]
        parts = []
        while count > 0:
            place = self._at - self._start
            if not 0 <= place < len(self._data):
                self._fetch()
                continue
            part = self._data[place : place + count]
            parts.append(part)
            self._at += len(part)
            count -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def sha256(self) -> str:
        """Reads the rest of the object and returns the sha256 of the whole; empty where only parts are read."""
        if not self._whole:
            return ""
        self._at = self._size
        while self._start + len(self._data) < self._size:
            self._fetch()
        return self._seen.hexdigest()

    def _fetch(self) -> None:
        """Fetches the bytes of the next read, or bytes on the way to them."""
        end = self._start + len(self._data)
        gap = self._at - end
        if self._whole:
            if gap < 0:
                raise ValueError("a tar that is read whole is read forward")
            start = end
        elif 0 <= gap <= self._joined:
            start = end
            self._ahead = min(max(2 * self._ahead, gap + _WINDOW), PIECE) if end else _WINDOW
        else:
            start, self._ahead = self._at, _WINDOW
        stop = min(start + self._ahead, self._size)
        self._data = self._store.read_range(self._name, start, stop)
        self._start = start
        if len(self._data) != stop - start:
            raise ShardCorrupt(
                f"{self._store.describe(self._name)}: the store says {counted(self._size, 'byte')} and gave "
                f"{len(self._data):,} of {stop - start:,} "
                f"from byte {start}. Was it replaced? Run this again"
            )
        if self._whole:
            self._seen.update(self._data)
        self._passed(len(self._data))
