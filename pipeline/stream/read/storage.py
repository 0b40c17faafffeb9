"""Reads bytes from a store until they are all there, or until every retry has failed.

In: the name of an object and a range. Out: exactly those bytes. A request that breaks off, stalls or answers 5xx, SlowDown or too few
bytes goes on where it stopped, after an exponential pause with jitter; on S3 under the condition that the object is still the same
(If-Match). An object ends at the size in the manifest, never where the server says, because no client notices a short body with a matching
Content-Length. A failure that waiting does not mend (no such object, no permission, another object under the name) ends the read at once
with the object's name.
"""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pipeline.stream.counters import Counters, duration
from pipeline.stream.read.local_files import LocalFile, LocalFiles
from pipeline.stream.read.retries import Short, cause, final_reason, is_replaced
from pipeline.stream.read.s3 import Body, ClientBody, PlainGets, in_loop
from shards import web
from shards.counting import counted
from shards.errors import ShardCorrupt, ShardError, StoreError, StoreOptionsError
from shards.store import Options, Store
from shards.urls import reason_of

Sink = Callable[[bytes], Any]
_CHUNK = 1 << 20
_CONNECTIONS = 64
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 20.0


class ShardUnavailable(StoreError):
    """A shard could not be read after every retry. The message names the shard."""


class ReaderAbandoned(Exception):
    """A read that was given up because the run is ending; nothing is wrong with the store or the shard."""


class _Final(Exception):
    """A failure that waiting does not mend."""


class _SinkFailed(BaseException):
    """The receiver of the bytes raised, which no retry of the store mends. It is no Exception, so that no handler takes it for an error of
    the store."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(cause)
        self.cause = cause


@dataclass
class _Progress:
    """The state of one read over all its attempts: the next byte, the object's ETag, the failures so far."""

    position: int
    etag: str | None = None
    doubtful: bool = False
    """True after a request that brought nothing: the s3fs client makes the next one."""
    failures: list[str] = field(default_factory=list)


def reading_store(url: str, options: Options, stall_seconds: float) -> Store:
    """A store for a `ResumingReader`, with a client of its own that leaves every retry to the reader, so that the configuration bounds a
    wait and each retry is counted."""
    if not url.startswith(("s3://", "s3a://")):
        return Store(url, options)
    own = {"retries": {"max_attempts": 0}, "connect_timeout": stall_seconds, "read_timeout": stall_seconds}
    own |= {"max_pool_connections": _CONNECTIONS, "signature_version": "s3v4"}  # which signs URLs, too
    store = Store(url, {"skip_instance_cache": True, **options})
    store.fs.config_kwargs = {**own, **store.fs.config_kwargs}
    store.fs.retries = 1
    return store


class ResumingReader:
    """Byte-exact reads of the objects of one store.

    Args:
        store: store of the objects. Make reader and store in the process that uses them.
        retries: attempts after the first without any progress in between.
        stall_seconds: longest wait for the next bytes of a request.
        counters: gets bytes_read_store, store_requests (also by duration) and store_retries (also by cause).
        parts: readers of this process that share its open files.
    """

    def __init__(
        self, store: Store, retries: int = 8, stall_seconds: float = 60.0, counters: Counters | None = None, parts: int = 1
    ) -> None:
        self.store = store
        self.retries = retries
        self.stall_seconds = stall_seconds
        self.counters = counters or Counters()
        protocol = store.fs.protocol if isinstance(store.fs.protocol, tuple) else (store.fs.protocol,)
        self.s3 = "s3" in protocol
        """True for a store whose requests can name the version of the object that they are about."""
        self._abandoned = threading.Event()
        self._files = LocalFiles(store, parts) if store.local is not None else None
        self._plain = PlainGets(store.fs, stall_seconds, self._abandoned) if self.s3 and PlainGets.possible(store.fs) else None

    def abandon(self) -> None:
        """Ends every wait for bytes or for another attempt; the reader can't be used afterwards."""
        self._abandoned.set()
        if self._plain is not None:
            self._plain.abandon()
        if self._files is not None:
            self._files.clear()

    def whole(self, name: str) -> bytes | None:
        """All bytes of an object whose size is not known; None if there is no such object.

        Raises:
            StoreError: the object could not be read after the retries.
        """
        for attempt in itertools.count():
            try:
                size = self.store.size(name)
                break
            except StoreError as error:
                if isinstance(error, StoreOptionsError) or final_reason(error.__cause__, self.store.fs) or attempt == self.retries:
                    raise
                self._pause(attempt + 1, name, error)
        return None if size is None else self.range(name, 0, size)

    def _pause(self, failures: int, name: str, error: Exception) -> None:
        """Waits before another attempt, longer with each failure in a row; `error` is the last one."""
        if self._abandoned.wait(random.uniform(0.5, 1.0) * min(_FIRST_PAUSE * 2 ** min(failures, 16), _LONGEST_PAUSE)):
            raise ReaderAbandoned(f"{self.store.describe(name)}: the read was given up, because the run is ending")
        # counted after the pause, so that the watchdog sees a sign of life between two requests that both take long to fail
        self.counters.add(**{"store_retries": 1, f"store_retries_{cause(error)}": 1})

    def range(self, name: str, start: int, end: int, version: str = "") -> bytes:
        """Bytes [start, end) of an object, all of them.

        Args:
            name: name of the object in the store.
            start: first byte.
            end: the byte behind the last.
            version: ETag that the object must have in S3; empty takes any.

        Raises:
            ShardUnavailable: the object could not be read after the retries.
            ShardCorrupt: the object is too short, or another one.
        """
        if self._files is not None:
            return self._local_range(self._files, name, start, end)
        parts: list[bytes] = []
        self.copy(name, start, end, parts.append, version)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _local_range(self, files: LocalFiles, name: str, start: int, end: int) -> bytes:
        try:
            file = files.open(name)
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
        """An object of a store on this machine as an open file; None if it can't be opened, for a reason that `range` gives."""
        try:
            return self._files.open(name) if self._files is not None else None
        except OSError:
            return None

    def copy(self, name: str, start: int, end: int, sink: Sink, version: str = "") -> None:
        """Hands bytes [start, end) of an object to `sink`, in order, each once. The other arguments are those of `range`.

        Raises:
            ShardUnavailable: the object could not be read after the retries.
            ShardCorrupt: the object is too short, or was replaced while it was read.
            BaseException: an error of `sink`, at once.
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
                progress.failures.append(reason_of(error))
                if idle > self.retries:
                    raise self._given_up(name, progress, end) from error
                self._pause(idle, name, error)

    def _given_up(self, name: str, progress: _Progress, end: int) -> ShardError:
        size = None
        with suppress(StoreError):
            size = self.store.size(name)
        what = self.store.describe(name)
        if size is not None and size < end:
            return ShardCorrupt(
                f"{what}: cut short: {counted(size, 'byte is', 'bytes are')} there where {end:,} are needed. "
                "Build or upload this shard again"
            )
        return ShardUnavailable(
            f"{what}: gave up at byte {progress.position} after {counted(len(progress.failures), 'failure')}, "
            f"the last: {progress.failures[-1]}. "
            "Check the store, or raise data.retries"
        )

    def _attempt(self, name: str, progress: _Progress, end: int, sink: Sink) -> None:
        before, began = progress.position, time.monotonic()
        try:
            if self.s3:
                self._from_s3(name, progress, end, sink)
            else:
                self._from_any(name, progress, end, sink)
        except Exception as error:
            if is_replaced(error):
                raise ShardCorrupt(self._replaced(name)) from error
            if reason := final_reason(error, self.store.fs):
                raise _Final(reason) from error
            raise
        finally:
            self.counters.add(store_requests=1, bytes_read_store=progress.position - before, **duration(time.monotonic() - began))

    def _from_any(self, name: str, progress: _Progress, end: int, sink: Sink) -> None:
        path = self.store.path(name)
        while progress.position < end:
            fs, stop = self.store.fs, min(end, progress.position + 16 * _CHUNK)
            if fs.async_impl:
                start = progress.position
                asked = web.read_range(fs, path, start, stop) if web.is_web(fs) else fs._cat_file(path, start=start, end=stop)
                data = in_loop(fs, asked, self.stall_seconds, self._abandoned)
            else:
                data = fs.cat_file(path, start=progress.position, end=stop)
            if not data:
                raise Short(f"nothing came after byte {progress.position}")
            if len(data) > stop - progress.position:
                raise _Final("the store sends whole files where ranges are asked for: shards can't be read from it")
            sink(data)
            progress.position += len(data)

    def _from_s3(self, name: str, progress: _Progress, end: int, sink: Sink) -> None:
        fs: Any = self.store.fs
        bucket, key, _ = fs.split_path(self.store.path(name))
        wanted = f"bytes={progress.position}-{end - 1}"
        body: Body | None = None
        if self._plain is not None and not progress.doubtful:
            progress.doubtful = True  # unless this request works
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
