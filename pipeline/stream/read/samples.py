"""From a sample's id to its bytes, proven to be those that were stored.

In: the shard of a sample and its row in the shard's index (offset, length, digest, label). Out: bytes and label. The digest is checked on
every path that the bytes take. After a mismatch the sample is read from the store once more before it counts as bad. Without the digest a
flipped bit would go unseen, because most damaged JPEGs decode to other pixels without an error.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from pipeline.stream.buffers import Scratch
from pipeline.stream.counters import Counters
from pipeline.stream.read.cache import ShardCache
from pipeline.stream.read.local_files import LocalFile
from pipeline.stream.read.storage import ResumingReader, ShardUnavailable
from shards.counting import counted
from shards.dataset.index import NO_DIGEST, ShardIndex, digest, file_size, member_name
from shards.dataset.manifest import Manifest
from shards.errors import ManifestMismatch, ShardCorrupt, ShardError, StoreError
from shards.tar.version import look_up

INDEX_BUDGET = 64 << 20
"""Most bytes of indexes that a rank keeps."""
BAD_CAUSES = ("digest", "undecodable", "unavailable")
"""Causes of a bad sample: its bytes are not those that were stored, are no picture, or could not be fetched."""
_TAR_HEADER = 512
_ATTEMPTS = 5  # at learning the version of a tar
_PAUSE = 0.5  # seconds after the first failure

_Row = tuple[int, int, int, int]
"""Offset, digest, length and label of a sample, as `ShardIndex.row` gives them."""


class BadSample(Exception):
    """A sample that can't be used: its id, its name, its shard and the cause (`digest`, `undecodable` or `unavailable`)."""

    def __init__(self, sample_id: int, name: str, shard: str, cause: str, reason: str) -> None:
        super().__init__(f"sample {sample_id} ({name} in {shard}): {reason}")
        self.sample_id, self.name, self.shard, self.cause, self.reason = sample_id, name, shard, cause, reason


def _proven(data: bytes | memoryview, row: _Row) -> bool:
    """True if these are the bytes that were stored; where no digest was taken, nothing says otherwise."""
    return row[1] in (NO_DIGEST, digest(data))


def _filled(place: memoryview, file: LocalFile, offset: int) -> bool:
    """Reads from a shard's file; False if it gave fewer bytes than the place has."""
    try:
        return os.preadv(file.handle, (place,), offset) == len(place)
    except OSError:
        return False


class SampleReader:
    """Reads samples by id.

    Args:
        manifest: manifest of the data set.
        reader: reader of the store that holds the shards.
        index_reader: reader of the store that holds their indexes.
        cache: cache of whole shards; None reads every sample from the store.
        counters: gets cache_hits, cache_misses, cache_repairs, bytes_read_cache; for shards on this machine store_requests and
            bytes_read_store.
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
        """Finds the samples that must come from a remote store, because the node's cache does not hold their shard.

        Args:
            shards: int64 (n,), shards of the samples.

        Returns:
            bool (n,); all False for shards on this machine.
        """
        if self.reader.store.local is not None:
            return np.zeros(len(shards), np.bool_)
        if self.cache is None:
            return np.ones(len(shards), np.bool_)
        different, numbers = np.unique(shards, return_inverse=True)
        held = np.array([self.cache.holds(shard) for shard in different.tolist()], np.bool_)
        missing: NDArray[np.bool_] = ~held[numbers]
        self._count(missing=int(missing.sum()))
        return missing

    def read_range(self, shard: int, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a shard from its store.

        Raises:
            ShardError: the shard can't be read.
        """
        record = self.manifest.records[shard]
        # without a digest only the store can say that the shard is still the one that was indexed
        return self.reader.range(record.name, start, stop, "" if record.sha256 else record.version)

    def read(self, sample_id: int, shard: int, row: int, fetched: Future[bytes] | None = None) -> tuple[bytes, int]:
        """The picture's bytes and its label (-1 where unknown).

        Args:
            sample_id: id of the sample, for errors.
            shard: shard of the sample in the manifest.
            row: row of the sample in the shard's index.
            fetched: the bytes to come, if they were asked for ahead.

        Raises:
            BadSample: its bytes are wrong in the store itself.
            ShardError: the shard or its index can't be read.
        """
        ahead = fetched.result() if fetched is not None else None
        entry = self.index(shard).row(row)
        for data in self._copies(shard, entry, ahead):
            if _proven(data, entry):
                return data, entry[3]
        raise self.bad(sample_id, shard, row, "digest", "its bytes are not those that were stored (digest)")

    def _copies(self, shard: int, row: _Row, ahead: bytes | None) -> Iterator[bytes]:
        """Two copies of a sample, the second for the case that the first is wrong: the one that was asked for ahead, the cache's or the
        store's, then the store's."""
        offset, _, length, _ = row
        if ahead is not None:
            yield ahead
        elif self.cache is not None and (cached := self.cache.read(shard, offset, length)) is not None:
            self._count(found=1, size=length)
            yield cached
            self.counters.add(cache_repairs=1)
            self.cache.forget(shard)
        else:
            if self.cache is not None:
                self._count(missing=1)
            yield self.read_range(shard, offset, offset + length)
        yield self.read_range(shard, offset, offset + length)

    def read_here(self, shards: Sequence[int], rows: Sequence[int], memory: Scratch) -> list[tuple[memoryview, int] | None]:
        """Samples that lie on this machine: looks once for all their indexes, and opens the file of consecutive samples' shard once.

        Args:
            shards: shards of the samples in the manifest.
            rows: rows of the samples in their shards' indexes.
            memory: memory to read into; the next call writes over it.

        Returns:
            Bytes and label of each sample; None for one that `read` has to read, which also says what is wrong with it.
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
            place = block[start : start + entry[2]]
            start += entry[2]
            right = file is not None and _filled(place, file, entry[0]) and _proven(place, entry)
            found.append((place, entry[3]) if right else None)
        size = sum(len(place) for place, _ in filter(None, found))
        self._count(len(found) - entries.count(None), len(found) - found.count(None), size=size)
        return found

    def _count(self, asked: int = 0, found: int = 0, missing: int = 0, size: int = 0) -> None:
        """Counts reads of this machine's copy of the shards.

        Args:
            asked: samples that were looked for in a file.
            found: samples whose bytes were there and right.
            missing: samples that have to come from the store, because the cache does not hold their shard.
            size: bytes of the samples that were found.
        """
        if self.cache is not None:
            self.counters.add(cache_hits=found, cache_misses=missing, bytes_read_cache=size)
        else:
            self.counters.add(store_requests=asked, bytes_read_store=size)

    def _entries(self, shards: Sequence[int], rows: Sequence[int]) -> list[tuple[int, int, int, int] | None]:
        """Rows of the indexes that are in memory, if their shards may be read on this machine; None for the others."""
        indexes: dict[int, ShardIndex] = {}
        with self._lock:
            for shard in dict.fromkeys(shards) if self._here else ():
                known = self._indexes.get(shard)
                if known is not None and known.done():
                    self._indexes.move_to_end(shard)
                    indexes[shard] = known.result()
        return [indexes[shard].row(row) if shard in indexes else None for shard, row in zip(shards, rows, strict=True)]

    def _file(self, shard: int) -> LocalFile | None:
        """The file of a shard on this machine, or None."""
        return self.cache.file(shard) if self.cache is not None else self.reader.local_file(self.manifest.records[shard].name)

    def bad(self, sample_id: int, shard: int, row: int, cause: str, reason: str) -> BadSample:
        """The error for a sample, with the name that its tar header gives it."""
        name = self.manifest.records[shard].name
        offset, *_ = self.index(shard).row(row)
        try:
            member = member_name(self.reader.range(name, offset - _TAR_HEADER, offset))
        except ShardError:
            member = f"row {row}"  # the sample is bad, also if its name can't be read
        return BadSample(sample_id, member, self.reader.store.describe(name), cause, reason)

    def index(self, shard: int) -> ShardIndex:
        """A shard's index, read once for all threads that ask and kept while it is in use.

        Raises:
            ManifestMismatch: the index is missing, damaged or another shard's.
            ShardCorrupt: the shard on this machine has another length than it should have, or a shard without a digest was replaced.
            ShardUnavailable: the store does not answer.
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
                data = self.index_reader.range(record.index_name, 0, file_size(record.count))
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
                found = "missing" if size is None else f"{counted(size, 'byte')} long"
                raise ShardCorrupt(
                    f"{self.reader.store.describe(record.name)}: {found}, the manifest says {counted(record.size, 'byte')}. "
                    "Build or copy this shard again"
                )
        return index

    def _check_version(self, shard: int) -> None:
        """Asks the store whether a shard without a digest is the one that was indexed; S3 checks that with every request."""
        record, shown = self.manifest.records[shard], self.reader.store.describe(self.manifest.records[shard].name)
        for attempt in range(_ATTEMPTS):
            try:
                now = look_up(self.reader.store, record.name)
                break
            except StoreError as error:
                if attempt == _ATTEMPTS - 1:
                    raise ShardUnavailable(f"{shown}: its size and time can't be read. {error}") from error
                time.sleep(_PAUSE * 2**attempt)
        if now is None or (now.size, now.version) != (record.size, record.version):
            what = (
                "missing"
                if now is None
                else f"another tar than the one that was indexed ({counted(now.size, 'byte')}, {record.size:,} before)"
            )
            raise ShardCorrupt(f"{shown}: {what}, and no digests prove its samples. Index it again: python -m shards index")

    def _drop_oldest(self) -> None:
        while self._index_bytes > INDEX_BUDGET and len(self._indexes) > 1:
            oldest = next(iter(self._indexes))
            if not self._indexes[oldest].done():
                return
            self._index_bytes -= self._indexes.pop(oldest).result().rows.nbytes
