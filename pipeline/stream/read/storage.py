"""Reads bytes from a store until they are all there or the store has had its chances.

A request that breaks off, stalls or answers 5xx, SlowDown or too little goes on where it stopped, by range and, on
S3, under the condition that the object is still the same (If-Match), after an exponential pause with jitter. The end
of an object is the size in the manifest, never what the server says: a short body with a matching Content-Length is
silent in every client. What can't pass by waiting (no such object, no permission, another object under the name) ends
at once with the object's name.
"""

from __future__ import annotations

import itertools
import os
import random
import resource
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.stream.counters import Counters, duration
from pipeline.stream.read.retries import Short, cause
from pipeline.stream.read.s3 import Body, ClientBody, PlainGets, in_loop
from shards.dataset.index import SUFFIX as INDEX_SUFFIX
from shards.errors import ShardCorrupt, ShardError, StoreError
from shards.store import Options, Store

Sink = Callable[[bytes], Any]
_CHUNK = 1 << 20
_CONNECTIONS = 64
_OPEN_FILES = min(1024, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 20.0
_NO_CREDENTIALS = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError", "ProfileNotFound"}
)


class ShardUnavailable(StoreError):
    """A shard can't be had after every retry. Names the shard."""


class ReaderAbandoned(Exception):
    """The run is ending: nothing is wrong with the store or the shard."""


class _Final(Exception):
    """A failure that waiting does not mend."""


class _SinkFailed(BaseException):
    """The receiver of the bytes raised, which no retry of the store mends. Not an Exception, so that nothing takes it for
    one of the store's."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(cause)
        self.cause = cause


@dataclass
class _Progress:
    """How far one read has come, over all its attempts."""

    position: int
    etag: str | None = None
    doubtful: bool = False
    """Whether the last request brought nothing: the next one is the client's."""
    failures: list[str] = field(default_factory=list)


def reading_store(url: str, options: Options, stall_seconds: float) -> Store:
    """A store for a `ResumingReader`: a client of its own that leaves every retry to the reader, so that a wait is
    bounded by what is configured and each retry is counted."""
    if not url.startswith(("s3://", "s3a://")):
        return Store(url, options)
    own = {"retries": {"max_attempts": 0}, "connect_timeout": stall_seconds, "read_timeout": stall_seconds}
    own |= {"max_pool_connections": _CONNECTIONS, "signature_version": "s3v4"}  # of signed URLs, too
    store = Store(url, {"skip_instance_cache": True, **options})
    store.fs.config_kwargs = {**own, **store.fs.config_kwargs}
    store.fs.retries = 1
    return store


class LocalFile:
    """An open file, closed when nobody reads from it and nobody keeps it any more."""

    def __init__(self, path: str | Path) -> None:
        self.handle = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if (handle := getattr(self, "handle", -1)) >= 0:
            os.close(handle)


class ResumingReader:
    """Byte-exact reads of the objects of one store.

    Args:
        store: where the objects are. Make reader and store in the process that uses them.
        retries: attempts after the first without any progress in between.
        stall_seconds: longest wait for the next bytes of a request.
        counters: gets bytes_read_store, store_requests and store_retries, by their duration and cause, too.
        parts: readers of this process that share its open files.
    """

    def __init__(
        self, store: Store, retries: int = 8, stall_seconds: float = 60.0, counters: Counters | None = None, parts: int = 1
    ) -> None:
        self._open_files = max(1, _OPEN_FILES // parts)
        self.store = store
        self.retries = retries
        self.stall_seconds = stall_seconds
        self.counters = counters or Counters()
        protocol = store.fs.protocol if isinstance(store.fs.protocol, tuple) else (store.fs.protocol,)
        self.s3 = "s3" in protocol
        """Whether every request can say which version of an object it is about."""
        self._abandoned = threading.Event()
        self._local = store.local is not None
        self._files: dict[str, LocalFile] = {}
        self._files_lock = threading.Lock()
        self._plain = PlainGets(store.fs, stall_seconds, self._abandoned) if self.s3 and PlainGets.possible(store.fs) else None

    def abandon(self) -> None:
        """Ends what still waits for bytes or for another attempt; the reader can't be used afterwards."""
        self._abandoned.set()
        if self._plain is not None:
            self._plain.abandon()
        self._files.clear()

    def whole(self, name: str) -> bytes | None:
        """All bytes of an object whose size nobody knows, None where there is no such object.

        Raises:
            StoreError: not to be had after the retries.
        """
        for attempt in itertools.count():
            try:
                size = self.store.size(name)
                break
            except StoreError as error:
                reason = error.__cause__
                final = isinstance(reason, PermissionError | FileNotFoundError) or type(reason).__name__ in _NO_CREDENTIALS
                if final or attempt == self.retries:
                    raise
                self._pause(attempt + 1, name, error)
        return None if size is None else self.range(name, 0, size)

    def _pause(self, failures: int, name: str, error: Exception) -> None:
        """Waits before another attempt; the longer, the more failed in a row, the last with `error`."""
        if self._abandoned.wait(random.uniform(0.5, 1.0) * min(_FIRST_PAUSE * 2 ** min(failures, 16), _LONGEST_PAUSE)):
            raise ReaderAbandoned(f"{self.store.describe(name)}: not read any more, the run is ending")
        # behind the pause, where it is a sign of life between two requests that both take long to fail
        self.counters.add(**{"store_retries": 1, f"store_retries_{cause(error)}": 1})

    def range(self, name: str, start: int, end: int, version: str = "") -> bytes:
        """Bytes [start, end) of an object, all of them.

        Args:
            name: of the object.
            start: first byte.
            end: the byte behind the last.
            version: ETag that the object must have in S3; empty takes any.

        Raises:
            ShardUnavailable: not to be had after the retries.
            ShardCorrupt: the object is too short, or another one.
        """
        if self._local:
            return self._local_range(name, start, end)
        parts: list[bytes] = []
        self.copy(name, start, end, parts.append, version)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _local_range(self, name: str, start: int, end: int) -> bytes:
        try:
            file = self._files.get(name) or self._opened(name)
            there = min(end, os.fstat(file.handle).st_size)  # a damaged manifest may ask for more than memory holds
            data = os.pread(file.handle, max(0, there - start), start)
        except OSError as error:
            path = self.store.path(name)
            raise ShardUnavailable(f"{path}: {error.strerror}. Is the data set complete, and may it be read?") from error
        self.counters.add(store_requests=1, bytes_read_store=len(data))
        if len(data) != end - start:
            path = self.store.path(name)
            raise ShardCorrupt(f"{path}: cut short: ends at byte {start + len(data)} of {end}. Build or copy this shard again")
        return data

    def local_file(self, name: str) -> LocalFile | None:
        """An object of a store on this machine as an open file; None where it can't be opened, which `range` explains."""
        try:
            return self._files.get(name) or self._opened(name)
        except OSError:
            return None

    def _opened(self, name: str) -> LocalFile:
        file = LocalFile(self.store.path(name))
        if name.endswith(INDEX_SUFFIX):
            return file  # read once
        with self._files_lock:
            self._files[name] = file
            while len(self._files) > self._open_files:
                del self._files[next(iter(self._files))]
        return file

    def copy(self, name: str, start: int, end: int, sink: Sink, version: str = "") -> None:
        """Hands bytes [start, end) of an object to `sink`, in order, each once; arguments as in `range`.

        Raises:
            ShardUnavailable: not to be had after the retries.
            ShardCorrupt: the object is too short, or was replaced while it was read.
            Whatever `sink` raises, at once.
        """

        def handed(data: bytes) -> None:
            try:
                sink(data)
            except BaseException as error:
                raise _SinkFailed(error) from error

        if start >= end:
            return
        progress = _Progress(start, f'"{version}"' if version and self.s3 else None)
        idle = 0
        while progress.position < end:
            before = progress.position
            try:
                self._attempt(name, progress, end, handed)
            except _SinkFailed as failed:
                raise failed.cause from None
            except _Final as error:
                raise ShardUnavailable(f"{self.store.describe(name)}: {error}") from error.__cause__
            except (ShardCorrupt, ShardUnavailable, ReaderAbandoned):
                raise
            except Exception as error:  # whatever a client library raises: none of them documents all it can
                if self._abandoned.is_set():
                    raise ReaderAbandoned(f"{self.store.describe(name)}: the run is ending") from error
                idle = 0 if progress.position > before else idle + 1
                progress.failures.append(f"{type(error).__name__}: {' '.join(str(error).split()) or 'no reason given'}")
                if idle > self.retries:
                    raise self._given_up(name, progress, end) from error
                self._pause(idle, name, error)

    def _given_up(self, name: str, progress: _Progress, end: int) -> ShardError:
        size = None
        with suppress(StoreError):
            size = self.store.size(name)
        what = self.store.describe(name)
        if size is not None and size < end:
            return ShardCorrupt(f"{what}: cut short: {size} bytes are there where {end} are needed. Build or upload this shard again")
        return ShardUnavailable(
            f"{what}: gave up at byte {progress.position} after {len(progress.failures)} failures, the last: {progress.failures[-1]}. "
            "Check the store, or raise data.retries"
        )

    def _attempt(self, name: str, progress: _Progress, end: int, sink: Sink) -> None:
        before, began = progress.position, time.monotonic()
        try:
            if self.s3:
                self._from_s3(name, progress, end, sink)
            else:
                self._from_any(name, progress, end, sink)
        except FileNotFoundError as error:
            raise _Final("no such object. Is the bucket or folder right, and the data set complete?") from error
        except PermissionError as error:
            reason = " ".join(str(error).split())
            raise _Final(f"access refused ({reason}). Check the credentials and what they may do") from error
        except Exception as error:
            if _precondition_failed(error):
                raise ShardCorrupt(self._replaced(name)) from error
            if type(error).__name__ in _NO_CREDENTIALS:
                raise _Final(f"{' '.join(str(error).split())}. Give the store credentials (profile, environment or role)") from error
            raise
        finally:
            self.counters.add(store_requests=1, bytes_read_store=progress.position - before, **duration(time.monotonic() - began))

    def _from_any(self, name: str, progress: _Progress, end: int, sink: Sink) -> None:
        path = self.store.path(name)
        while progress.position < end:
            fs, stop = self.store.fs, min(end, progress.position + 16 * _CHUNK)
            if fs.async_impl:
                data = in_loop(fs, fs._cat_file(path, start=progress.position, end=stop), self.stall_seconds, self._abandoned)
            else:
                data = fs.cat_file(path, start=progress.position, end=stop)
            if not data:
                raise Short(f"nothing came after byte {progress.position}")
            if len(data) > stop - progress.position:
                raise _Final("the server sends whole files where ranges are asked for: shards can't be read from it")
            sink(data)
            progress.position += len(data)

    def _from_s3(self, name: str, progress: _Progress, end: int, sink: Sink) -> None:
        fs: Any = self.store.fs
        bucket, key, _ = fs.split_path(self.store.path(name))
        wanted = f"bytes={progress.position}-{end - 1}"
        body: Body | None = None
        if self._plain is not None and not progress.doubtful:
            progress.doubtful = True  # unless this works
            body = self._plain.get(bucket, key, wanted, progress.etag)
        if body is None:
            body = ClientBody(fs, bucket, key, wanted, progress.etag, self.stall_seconds, self._abandoned)
        try:
            if progress.etag and body.etag != progress.etag:
                raise ShardCorrupt(self._replaced(name))
            # also for the first bytes: an error page with status 200 or 206 has none
            if not body.content_range.startswith(f"bytes {progress.position}-"):
                raise OSError(f"the store answered the range {body.content_range or 'missing'} to {wanted}")
            progress.etag = body.etag
            while progress.position < end:
                data = body.read(min(_CHUNK, end - progress.position))
                if not data:
                    raise Short(f"the body ended at byte {progress.position} of {end}")
                sink(data)
                progress.position += len(data)
                progress.doubtful = False
        except BaseException:
            body.close()  # the rest of a broken body must not go back into the pool of connections
            raise
        with suppress(Exception):  # all the bytes are here, whatever becomes of the connection
            body.finish()

    def _replaced(self, name: str) -> str:
        what = "replaced by another object since it was listed or while it was read"
        return f"{self.store.describe(name)}: {what}. Start again, or make the manifest anew"


def _precondition_failed(error: BaseException) -> bool:
    """Whether an error of s3fs is a 412: the object has another ETag."""
    answer = getattr(error.__cause__, "response", None) or {}
    return bool(answer.get("ResponseMetadata", {}).get("HTTPStatusCode") == 412)
