"""From a sample's id to its bytes, proven to be those that were stored.

A sample is a row of its shard's index: offset, length, digest, label. The digest is checked whatever the bytes came
through; a mismatch is read from the store once more before the sample counts as bad, since a flipped bit in a JPEG
mostly decodes to other pixels without an error.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from pipeline.stream.counters import Counters
from pipeline.stream.read.cache import ShardCache
from pipeline.stream.read.storage import LocalFile, ResumingReader, ShardUnavailable
from pipeline.stream.scratch import Scratch
from shards.dataset.index import NO_DIGEST, ShardIndex, digest, file_size, member_name
from shards.dataset.manifest import Manifest
from shards.errors import ManifestMismatch, ShardCorrupt, ShardError, StoreError
from shards.tar.listing import look_up

INDEX_BUDGET = 64 << 20
"""Most bytes of indexes that a rank keeps."""
BAD_CAUSES = ("digest", "undecodable", "unavailable")
"""Causes of a bad sample: its bytes are not those that were stored, are no picture, or could not be fetched."""
_TAR_HEADER = 512
_ATTEMPTS = 5  # to learn the version of a tar
_PAUSE = 0.5  # seconds after the first failure


class BadSample(Exception):
    """A sample that can't be used: its id, its name, its shard and the cause (`digest`, `undecodable` or `unavailable`)."""

    def __init__(self, sample_id: int, name: str, shard: str, cause: str, reason: str) -> None:
        super().__init__(f"sample {sample_id} ({name} in {shard}): {reason}")
        self.sample_id, self.name, self.shard, self.cause, self.reason = sample_id, name, shard, cause, reason


def _read_right(file: LocalFile, offset: int, place: memoryview, expected: int) -> bool:
    """Reads from a shard; says whether those are the bytes that were stored."""
    try:
        whole = os.preadv(file.handle, (place,), offset) == len(place)
    except OSError:
        return False
    return whole and expected in (NO_DIGEST, digest(place))


class SampleReader:
    """Reads samples by id.

    Args:
        manifest: the data set.
        reader: of the store that holds the shards.
        index_reader: of the store that holds their indexes.
        cache: of whole shards; None reads every sample from the store.
        counters: gets cache_misses, cache_repairs.
    """

    def __init__(
        self, manifest: Manifest, reader: ResumingReader, index_reader: ResumingReader, cache: ShardCache | None, counters: Counters
    ) -> None:
        self.manifest = manifest
        self.reader = reader
        self.index_reader = index_reader
        self.cache = cache
        self.counters = counters
        self._here = cache is not None or reader.store.local is not None
        self._lock = threading.Lock()
        self._indexes: OrderedDict[int, Future[ShardIndex]] = OrderedDict()
        self._index_bytes = 0

    def absent(self, shards: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which samples must come from a remote store, because the node's cache does not hold their shard.

        Args:
            shards: int64 (n,), of the samples.

        Returns:
            bool (n,); all False where the shards lie on this machine.
        """
        if self.reader.store.local is not None:
            return np.zeros(len(shards), np.bool_)
        if self.cache is None:
            return np.ones(len(shards), np.bool_)
        different, places = np.unique(shards, return_inverse=True)
        held = np.array([self.cache.holds(shard) for shard in different.tolist()], np.bool_)
        missing: NDArray[np.bool_] = ~held[places]
        self.counters.add(cache_misses=int(missing.sum()))
        return missing

    def read_range(self, shard: int, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a shard from its store.

        Raises:
            ShardError: they can't be had.
        """
        record = self.manifest.records[shard]
        # where no digest tells that the shard is still the one that was indexed, the store must
        return self.reader.range(record.name, start, stop, "" if record.sha256 else record.version)

    def read(self, sample_id: int, shard: int, row: int, fetched: Future[bytes] | None = None) -> tuple[bytes, int]:
        """The picture's bytes and its label (-1 where unknown).

        Args:
            sample_id: for errors.
            shard: of the manifest.
            row: of the shard's index.
            fetched: the bytes, where they were asked for ahead.

        Raises:
            BadSample: its bytes are wrong in the store itself.
            ShardError: the shard or its index can't be had.
        """
        data = fetched.result() if fetched is not None else None
        offset, expected, length, label = self.index(shard).row(row)
        attempts = 2
        if data is not None:
            attempts = 1
        elif self.cache is not None:
            data = self.cache.read(shard, offset, length)
        if data is not None:
            if expected in (NO_DIGEST, digest(data)):
                return data, label
            if fetched is None and self.cache is not None:
                attempts = 1
                self.counters.add(cache_repairs=1)
                self.cache.forget(shard)
        for _ in range(attempts):
            data = self.read_range(shard, offset, offset + length)
            if expected in (NO_DIGEST, digest(data)):
                return data, label
        raise self.bad(sample_id, shard, row, "digest", "its bytes are not those that were stored (digest)")

    def read_here(self, shards: Sequence[int], rows: Sequence[int], memory: Scratch) -> list[tuple[memoryview, int] | None]:
        """Samples that lie on this machine: one look for all their indexes, and one at a shard's file for those of it that stand together.

        Args:
            shards: of the samples, in the manifest.
            rows: of their shards' indexes.
            memory: to read into.

        Returns:
            Of each what `read` gives; None where it has to be read in that way, which also says what is wrong.
        """
        entries = self._entries(shards, rows)
        block = memory.take((sum(length for _, _, length, _ in filter(None, entries)),)).data
        found = list[tuple[memoryview, int] | None]()
        file, opened, start = None, -1, 0
        for shard, entry in zip(shards, entries, strict=True):
            if entry is None:
                found.append(None)
                continue
            if shard != opened:
                file, opened = self._file(shard), shard  # no more than one, since each may have to be kept open for this thread alone
            offset, expected, length, label = entry
            place = block[start : start + length]
            start += length
            found.append((place, label) if file is not None and _read_right(file, offset, place, expected) else None)
        size = sum(len(place) for place, _ in filter(None, found))
        if self.cache is not None:
            self.counters.add(cache_hits=len(found) - found.count(None), bytes_read_cache=size)
        else:
            self.counters.add(store_requests=len(found) - entries.count(None), bytes_read_store=size)
        return found

    def _entries(self, shards: Sequence[int], rows: Sequence[int]) -> list[tuple[int, int, int, int] | None]:
        """The rows of indexes, where they are there and their shards may be read here."""
        indexes: dict[int, ShardIndex] = {}
        with self._lock:
            for shard in dict.fromkeys(shards) if self._here else ():
                known = self._indexes.get(shard)
                if known is not None and known.done():
                    self._indexes.move_to_end(shard)
                    indexes[shard] = known.result()
        return [indexes[shard].row(row) if shard in indexes else None for shard, row in zip(shards, rows, strict=True)]

    def _file(self, shard: int) -> LocalFile | None:
        """The file of a shard on this machine; None where it is not here."""
        return self.cache.file(shard) if self.cache is not None else self.reader.local_file(self.manifest.records[shard].name)

    def bad(self, sample_id: int, shard: int, row: int, cause: str, reason: str) -> BadSample:
        """The error for a sample, with the name that its tar header gives it."""
        name = self.manifest.records[shard].name
        offset, *_ = self.index(shard).row(row)
        try:
            member = member_name(self.reader.range(name, offset - _TAR_HEADER, offset))
        except ShardError:
            member = f"row {row}"  # the sample is bad whether or not its name can be had
        return BadSample(sample_id, member, self.reader.store.describe(name), cause, reason)

    def index(self, shard: int) -> ShardIndex:
        """A shard's index, read once however many threads ask and kept while it is in use.

        Raises:
            ManifestMismatch: missing, damaged or another shard's.
            ShardCorrupt: the shard on this machine is not as long as it should be, or one without a digest was replaced.
            ShardUnavailable: the store does not tell.
        """
        with self._lock:
            found = self._indexes.get(shard)
            if found is not None:
                self._indexes.move_to_end(shard)
            mine = found is None
            if found is None:
                found = self._indexes[shard] = Future()
        if mine:
            try:
                index = self._load(shard)
            except BaseException as error:
                with self._lock:
                    del self._indexes[shard]
                found.set_exception(error)
                raise
            found.set_result(index)
            with self._lock:
                self._index_bytes += index.rows.nbytes
                self._drop_oldest()
        return found.result()

    def _load(self, shard: int) -> ShardIndex:
        record = self.manifest.records[shard]
        for attempts_left in (1, 0):
            try:
                data = self.index_reader.range(record.index_name, 0, file_size(record.samples))
            except ShardError as error:
                if isinstance(error, ShardUnavailable) and not isinstance(error.__cause__, FileNotFoundError):
                    raise  # the store is out of order, not the data set
                raise ManifestMismatch(f"the shard {record.name} has no readable index. {error}") from error
            try:
                index = self.manifest.decode_index(data, shard, self.index_reader.store.describe(record.index_name))
                break
            except ManifestMismatch:  # a bit that flipped on its way is no damage to the index
                if not attempts_left:
                    raise
        if not record.sha256 and not self.reader.s3:
            self._check_version(shard)
        elif self.reader.store.local is not None:
            size = self.reader.store.size(record.name)
            if size != record.size:
                found = "missing" if size is None else f"{size} bytes long"
                raise ShardCorrupt(
                    f"{self.reader.store.describe(record.name)}: {found}, the manifest says {record.size} bytes. "
                    "Build or copy this shard again"
                )
        return index

    def _check_version(self, shard: int) -> None:
        """Only the store can tell of a shard without a digest whether it is the one that was indexed; S3 does with every request."""
        record, shown = self.manifest.records[shard], self.reader.store.describe(self.manifest.records[shard].name)
        for attempt in range(_ATTEMPTS):
            try:
                now = look_up(self.reader.store, record.name)
                break
            except StoreError as error:
                if attempt == _ATTEMPTS - 1:
                    raise ShardUnavailable(f"{shown}: its size and time can't be had. {error}") from error
                time.sleep(_PAUSE * 2**attempt)
        if now is None or (now.size, now.version) != (record.size, record.version):
            what = "missing" if now is None else f"another tar than the one that was indexed ({now.size} bytes, {record.size} before)"
            raise ShardCorrupt(f"{shown}: {what}, and no digest tells its samples. Index it again: python -m shards index")

    def _drop_oldest(self) -> None:
        while self._index_bytes > INDEX_BUDGET and len(self._indexes) > 1:
            oldest = next(iter(self._indexes))
            if not self._indexes[oldest].done():
                return
            self._index_bytes -= self._indexes.pop(oldest).result().rows.nbytes
