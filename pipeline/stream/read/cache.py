"""The shards of a remote store on this node's disk, shared by its ranks and by runs that follow.

In: the shards that are needed next. Out: open files of those that are here. A file is named after the sha256 of its
shard and appears by rename after that sha256 was seen, so a file that is there is whole. Its bytes may rot later: every
sample's digest is checked again when it is read. One process downloads a shard while the others go on without it. The
byte budget is hard (`cache_folder`), and a shard that finds no room is not cached. All claims are advisory file locks,
which the kernel drops with a killed process: nothing is ever left locked, and the next start sweeps what a killed one
left half-written.

Files are read with pread, not mapped: a file that is cut while it is mapped kills the process with SIGBUS, whereas a
short read is an error with a name.
"""

from __future__ import annotations

import hashlib
import os
import resource
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pipeline.stream.counters import Counters
from pipeline.stream.read.cache_folder import CacheFolder
from pipeline.stream.read.local_files import LocalFile
from pipeline.stream.read.storage import ReaderAbandoned, ResumingReader
from shards.dataset.manifest import Manifest, ShardRecord
from shards.errors import ShardCorrupt, ShardError
from shards.local_files import try_lock

_OPEN_FILES = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)


class ShardCache:
    """Whole shards on local disk.

    Args:
        folder: folder that the ranks of a node share; made when missing.
        budget: bytes that all files in it may hold together.
        manifest: manifest of the data set.
        reader: reader of the store that the shards come from.
        counters: gets cache_downloads, cache_evictions, cache_failures, cache_bytes.
        downloads: most shards that are downloaded at the same time.
        parts: caches and readers of this process that share its open files.

    Raises:
        StoreError: the folder can't be made or written.
    """

    def __init__(
        self, folder: Path, budget: int, manifest: Manifest, reader: ResumingReader, counters: Counters, downloads: int = 2, parts: int = 1
    ) -> None:
        self._open_files = max(1, _OPEN_FILES // parts)
        self.folder = folder
        self.manifest = manifest
        self.reader = reader
        self.counters = counters
        self._disk = CacheFolder(folder, budget, counters)
        self._files: OrderedDict[int, LocalFile] = OrderedDict()
        self._lock = threading.Condition()
        self._wanted: deque[int] = deque()
        self._busy: set[int] = set()
        self._needed: set[int] = set()
        self._closed = False
        self._held = False
        self.failures: dict[int, str] = {}
        """Reasons why shards could not be cached, by shard; their samples are read as ranges instead."""
        self._threads = [threading.Thread(target=self._work, name=f"cache-{number}", daemon=True) for number in range(downloads)]
        for thread in self._threads:
            thread.start()

    def read(self, shard: int, offset: int, length: int) -> bytes | None:
        """Bytes of a shard; None if the shard is not, or no longer, here."""
        file = self.file(shard)
        if file is None:
            return None
        try:
            data = os.pread(file.handle, length, offset)
        except OSError:
            data = b""
        if len(data) != length:
            self.forget(shard)
            return None
        return data

    def file(self, shard: int) -> LocalFile | None:
        """A shard's file, claimed against eviction for as long as a reference to it is kept; None if it is not, or no longer, here."""
        with self._lock:
            file = self._files.get(shard) or self._open(shard)
            if file is not None:
                self._files.move_to_end(shard)
            return file

    def holds(self, shard: int) -> bool:
        """True if a shard is here; it stays for as long as it is needed."""
        with self._lock:
            return shard in self._files or self._open(shard) is not None

    def hold_back(self, held: bool) -> None:
        """Lets no download begin while held, so that the first batch has the store's whole bandwidth."""
        with self._lock:
            self._held = held
            self._lock.notify_all()

    def prefetch(self, shards: Iterable[int]) -> None:
        """Names the shards that are needed next, soonest first, in place of those named before.

        Shards that are not among them may be evicted from now on; those that are not here yet are downloaded in the background.
        """
        needed = list(dict.fromkeys(shards))
        with self._lock:
            for shard in self._files.keys() - set(needed):
                del self._files[shard]
            for shard in needed:
                if shard not in self._files:
                    self._open(shard)  # claims the shard, before another process's download takes its room
            self._needed = set(needed)
            self._wanted = deque(shard for shard in needed if shard not in self._files and shard not in self.failures)
            self._lock.notify_all()

    def forget(self, shard: int) -> None:
        """Removes a shard whose bytes turned out wrong, so that it is fetched anew."""
        with self._lock:
            self._files.pop(shard, None)
            self._path(self.manifest.records[shard]).unlink(missing_ok=True)

    def close(self) -> None:
        """Ends the background downloads; what is on disk stays for the next run."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._wanted.clear()
            self._lock.notify_all()
        for thread in self._threads:
            thread.join()
        self._files.clear()
        self._disk.close()

    def _identity(self, record: ShardRecord) -> str:
        """64 hexadecimal digits. Without a sha256 they depend on the URL, too, because two stores may give different shards one name."""
        if record.sha256:
            return record.identity
        return hashlib.sha256(f"{self.manifest.shards_url}\0{record.identity}".encode()).hexdigest()

    def _path(self, record: ShardRecord) -> Path:
        return self._disk.whole(self._identity(record))

    def _open(self, shard: int) -> LocalFile | None:
        """Opens a cached shard and claims it against eviction for as long as it stays open."""
        record = self.manifest.records[shard]
        path = self._path(record)
        try:
            file = LocalFile(path)
        except OSError:
            return None
        if not try_lock(file.handle, shared=True):  # being finished or evicted this very moment
            return None
        if os.fstat(file.handle).st_size != record.size or not path.exists():
            with suppress(OSError):
                path.unlink(missing_ok=True)
            return None
        with suppress(OSError):  # another user's file, in a folder that users share
            os.utime(file.handle)
        self._files[shard] = file
        while len(self._files) > self._open_files:
            self._files.popitem(last=False)
        return file

    def _work(self) -> None:
        while True:
            with self._lock:
                while (not self._wanted or self._held) and not self._closed:
                    self._lock.wait()
                if self._closed:
                    return
                shard = self._wanted.popleft()
                if shard in self._busy or self._path(self.manifest.records[shard]).exists():
                    continue
                self._busy.add(shard)
            try:
                self._download(shard)
            except ReaderAbandoned:
                return
            except ShardError as error:
                self.counters.add(cache_failures=1)
                self.failures[shard] = str(error)
            except OSError:  # a full or broken disk: slower, never wrong, and tried again with the next block
                self.counters.add(cache_failures=1)
            finally:
                with self._lock:
                    self._busy.discard(shard)

    def _download(self, shard: int) -> None:
        record = self.manifest.records[shard]
        partial = self._disk.partial(self._identity(record))
        handle = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not try_lock(handle):
                return  # another process downloads it
            if not _same_file(handle, partial):
                return  # another process was faster, or swept the name away before the lock was taken
            if self._path(record).exists():
                partial.unlink(missing_ok=True)  # another process was faster: this name is a new, empty file
                return
            try:
                with self._disk.room():
                    if not self._disk.make_room(record.size):
                        partial.unlink(missing_ok=True)
                        return
                    os.truncate(handle, 0)
                    os.truncate(handle, record.size)  # counts against the budget from now on
                seen = self._copy(record, handle)
                if record.sha256 and seen != record.sha256:
                    seen = self._copy(record, handle)  # a bit that flipped on the way is no damage to the shard
                if record.sha256 and seen != record.sha256:
                    raise ShardCorrupt(
                        f"{self.reader.store.describe(record.name)}: its sha256 is {seen}, the manifest says {record.sha256}. "
                        "Run python -m shards verify, then build or upload this shard again"
                    )
                os.replace(partial, self._path(record))
                try_lock(handle, shared=True)  # the name is the shard's now: others may read
                with self._lock:
                    if shard in self._needed:
                        self._open(shard)
                self.counters.add(cache_downloads=1)
            except BaseException as error:
                partial.unlink(missing_ok=True)
                if isinstance(error, _Closed):
                    return
                raise
        finally:
            os.close(handle)

    def _copy(self, record: ShardRecord, handle: int) -> str:
        """Writes a shard's bytes to an open file; returns their sha256."""
        seen = hashlib.sha256()
        os.lseek(handle, 0, os.SEEK_SET)

        def keep(data: bytes) -> None:
            if self._closed:
                raise _Closed
            seen.update(data)
            view = memoryview(data)
            while view:
                view = view[os.write(handle, view) :]

        self.reader.copy(record.name, 0, record.size, keep, "" if record.sha256 else record.version)
        os.fsync(handle)  # a name that survives a power cut stands for bytes that do
        return seen.hexdigest()


def _same_file(handle: int, path: Path) -> bool:
    try:
        return os.fstat(handle).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


class _Closed(Exception):
    """The cache was closed while a download ran."""
