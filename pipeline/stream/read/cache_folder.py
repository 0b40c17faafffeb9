"""The folder of a node's cache: its file names, its byte budget, and the sweep of half-written files.

In: shards to make room for. Out: paths in the folder. The byte budget is hard: room is made before a download by deleting the least
recently used shards that no process has open. A file that is named `<64 hexadecimal digits>.tar` is whole, and one with the temporary
prefix in front is being written; files of any other name are not the cache's and are left alone.
"""

from __future__ import annotations

import getpass
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.stream.counters import Counters
from shards.errors import StoreError
from shards.local_files import TEMPORARY_PREFIX, file_system, try_lock, unlock, wait_for_lock

_OWN = re.compile(rf"({re.escape(TEMPORARY_PREFIX)})?[0-9a-f]{{64}}(\.tar)?")  # names that are ours to delete
_room_mutex = threading.Lock()


def default_folder() -> Path:
    """The folder for cached shards unless another is configured: one for each user in $TMPDIR."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # the container's user has no name
        user = str(os.getuid())
    return Path(tempfile.gettempdir()) / f"context-encoders-{user}" / "shards"


class CacheFolder:
    """A folder of whole shards that the ranks of a node share.

    Args:
        path: path of the folder; made when missing.
        budget: bytes that all files in it may hold together.
        counters: gets cache_evictions and cache_bytes.

    Raises:
        StoreError: the folder can't be made or written.
    """

    def __init__(self, path: Path, budget: int, counters: Counters) -> None:
        self.path = path
        self.budget = budget
        self._counters = counters
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700 if path == default_folder() else 0o777)  # below a $TMPDIR that all share
            self._room_lock = os.open(path / ".room.lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise StoreError(
                f"{path}: the cache can't be written ({error.strerror}). Choose another with data.cache, or data.cache none"
            ) from error
        try:
            with self.room():
                self._sweep()
        except OSError as error:
            self.close()
            raise StoreError(
                f"{path}: the cache can't be locked ({error.strerror}), because the {file_system(path)} has no locks. Choose another "
                "with data.cache, or data.cache none"
            ) from error

    def close(self) -> None:
        """Closes the lock; the files stay for the next run."""
        os.close(self._room_lock)

    def whole(self, identity: str) -> Path:
        """The path of a whole shard."""
        return self.path / f"{identity}.tar"

    def partial(self, identity: str) -> Path:
        """The path of a shard while it is downloaded. All processes of the node use the same one, so that its lock decides which of them
        downloads the shard; `shards.local_files` would give each download a name of its own."""
        return self.path / f"{TEMPORARY_PREFIX}{identity}"

    @contextmanager
    def room(self) -> Iterator[None]:
        """Keeps every other process of the node from counting and deleting."""
        with _room_mutex:
            wait_for_lock(self._room_lock)
            try:
                yield
            finally:
                unlock(self._room_lock)

    def make_room(self, size: int) -> bool:
        """Deletes the least recently used shards that no process has open until `size` bytes more fit; returns False if they don't fit."""
        files = []
        for path in self.path.glob("*"):
            with suppress(OSError):
                status = path.stat()
                if _OWN.fullmatch(path.name):
                    files.append((status.st_mtime_ns, status.st_size, path))
        used = sum(size for _, size, _ in files)
        if size <= self.budget:
            for _, file_size, path in sorted(files, key=lambda file: file[0]):
                if used + size <= self.budget:
                    break
                if path.suffix == ".tar" and self._evict(path):
                    used -= file_size
        self._counters.set(cache_bytes=used)
        return used + size <= self.budget

    def _evict(self, path: Path) -> bool:
        """Deletes a shard, unless a process has it open."""
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError:
            return False
        try:
            if not try_lock(handle):
                return False
            path.unlink(missing_ok=True)
            self._counters.add(cache_evictions=1)
            return True
        finally:
            os.close(handle)

    def _sweep(self) -> None:
        """Deletes the half-written files of killed processes: partial files that no process has locked."""
        for path in self.path.glob(f"{TEMPORARY_PREFIX}*"):
            if not _OWN.fullmatch(path.name):
                continue
            with suppress(OSError):
                handle = os.open(path, os.O_RDWR)
                try:
                    if try_lock(handle):
                        path.unlink(missing_ok=True)
                finally:
                    os.close(handle)
