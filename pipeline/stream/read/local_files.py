"""Open files of shards on this machine: closed by their last reader, and no more of them than a process may have open."""

from __future__ import annotations

import os
import resource
import threading
from pathlib import Path

from shards.dataset.index import SUFFIX as INDEX_SUFFIX
from shards.store import Store

_OPEN_FILES = min(1024, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)


class LocalFile:
    """An open file, which closes when the last reference to it is dropped."""

    def __init__(self, path: str | Path) -> None:
        self.handle = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if (handle := getattr(self, "handle", -1)) >= 0:
            os.close(handle)


class LocalFiles:
    """The objects of a store on this machine, as open files.

    Args:
        store: store of a local folder.
        parts: readers of this process that share its open files.
    """

    def __init__(self, store: Store, parts: int) -> None:
        self._store = store
        self._most = max(1, _OPEN_FILES // parts)
        self._files: dict[str, LocalFile] = {}
        self._lock = threading.Lock()

    def open(self, name: str) -> LocalFile:
        """The open file of an object.

        Raises:
            OSError: it can't be opened.
        """
        return self._files.get(name) or self._opened(name)

    def _opened(self, name: str) -> LocalFile:
        file = LocalFile(self._store.path(name))
        if name.endswith(INDEX_SUFFIX):
            return file  # read once
        with self._lock:
            self._files[name] = file
            while len(self._files) > self._most:
                del self._files[next(iter(self._files))]
        return file

    def clear(self) -> None:
        """Drops all files; those that are being read close after their read."""
        self._files.clear()
