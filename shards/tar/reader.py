"""A tar in a store as a file that is read once, forward, in bounded memory and without a copy on disk.

Either every byte passes, in large pieces, and its sha256 is known at the end; or only what is asked for is fetched: headers that lie far
apart cost one small request each, and where they lie so close that requests would cost more than the bytes between them, the reader goes
through those bytes instead.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable

from shards.errors import ShardCorrupt
from shards.store import Store

PIECE = 4 << 20
_WINDOW = 16 << 10  # holds the header of a picture and the small members around it
_JOINED = 256 << 10  # bytes that a store sends in about the time of one more request; a local disk answers at once
_JOINED_LOCAL = 16 << 10
_LONGEST_READ = 16 << 20  # nothing in a tar but pictures is longer, and those are taken in parts


class TarReader:
    """Reads one object of known size.

    Args:
        store: holds it.
        name: its name there.
        size: bytes, as the store said.
        whole: every byte is fetched, in order; else only what is read.
        passed: told the bytes of each request when they are there; may raise to stop.

    Raises:
        ShardCorrupt: the object is shorter than its size, or one read asks for more than a sound tar can hold in a header.
        StoreError: it can't be read.
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
        """Where the next read begins."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Goes to a place; nothing is fetched."""
        self._at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence] + offset
        return self._at

    def read(self, count: int, /) -> bytes:
        """Up to `count` bytes, fewer only at the end."""
        count = max(0, min(count, self._size - self._at))
        if count > _LONGEST_READ:
            raise ShardCorrupt(f"{self._store.describe(self._name)}: a header of {count} bytes at byte {self._at}: damaged")
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
        """The sha256 of the whole object, whose rest is read for it. Empty where only parts were read."""
        if not self._whole:
            return ""
        self._at = self._size
        while self._start + len(self._data) < self._size:
            self._fetch()
        return self._seen.hexdigest()

    def _fetch(self) -> None:
        """Gets the bytes that the next read needs, or comes closer to them."""
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
                f"{self._store.describe(self._name)}: the store says {self._size} bytes and gave {len(self._data)} of {stop - start} "
                f"from byte {start}. Was it replaced? Run this again"
            )
        if self._whole:
            self._seen.update(self._data)
        self._passed(len(self._data))
