"""From a sample's id to its bytes, proven to be those that were stored.

A sample is a row of its shard's index: offset, length, digest, label. The digest is checked whatever the bytes came
through; a mismatch is read from the store once more before the sample counts as bad, since a flipped bit in a JPEG
mostly decodes to other pixels without an error.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future

from pipeline.stream.cache import ShardCache
from pipeline.stream.counters import Counters
from pipeline.stream.storage import ResumingReader
from shards.errors import ManifestMismatch, ShardCorrupt, ShardError
from shards.index import ShardIndex, digest, file_size, member_name
from shards.manifest import Manifest

_INDEX_BYTES = 64 << 20
_TAR_HEADER = 512


class BadSample(Exception):
    """A sample that can't be used: its id, its name, its shard and the cause (`digest` or `undecodable`)."""

    def __init__(self, sample_id: int, name: str, shard: str, cause: str, reason: str) -> None:
        super().__init__(f"sample {sample_id} ({name} in {shard}): {reason}")
        self.sample_id, self.name, self.shard, self.cause, self.reason = sample_id, name, shard, cause, reason


class SampleReader:
    """Reads samples by id.

    Args:
        manifest: the data set.
        reader: of the store that holds the shards.
        cache: of whole shards; None reads every sample from the store.
        counters: gets cache_repairs.
    """

    def __init__(self, manifest: Manifest, reader: ResumingReader, cache: ShardCache | None, counters: Counters) -> None:
        self.manifest = manifest
        self.reader = reader
        self.cache = cache
        self.counters = counters
        self._lock = threading.Lock()
        self._indexes: OrderedDict[int, Future[ShardIndex]] = OrderedDict()
        self._index_bytes = 0

    def read(self, sample_id: int, shard: int, row: int) -> tuple[bytes, int]:
        """The picture's bytes and its label (-1 where unknown).

        Args:
            sample_id: for errors.
            shard: of the manifest.
            row: of the shard's index.

        Raises:
            BadSample: its bytes are wrong in the store itself.
            ShardError: the shard or its index can't be had.
        """
        name = self.manifest.records[shard].name
        offset, expected, length, label = self.index(shard).rows[row].tolist()
        cached = self.cache.read(shard, offset, length) if self.cache is not None else None
        if cached is not None:
            if digest(cached) == expected:
                return cached, label
            self.counters.add(cache_repairs=1)
            if self.cache is not None:
                self.cache.forget(shard)
        for _ in range(2 if cached is None else 1):
            data = self.reader.range(name, offset, offset + length)
            if digest(data) == expected:
                return data, label
        raise self.bad(sample_id, shard, row, "digest", "its bytes are not those that were stored (digest)")

    def bad(self, sample_id: int, shard: int, row: int, cause: str, reason: str) -> BadSample:
        """The error for a sample, with the name that its tar header gives it."""
        name = self.manifest.records[shard].name
        offset = int(self.index(shard).rows[row]["offset"])
        header = self.reader.range(name, offset - _TAR_HEADER, offset)
        return BadSample(sample_id, member_name(header), self.reader.store.describe(name), cause, reason)

    def index(self, shard: int) -> ShardIndex:
        """A shard's index, read once however many threads ask and kept while it is in use.

        Raises:
            ManifestMismatch: missing, damaged or another shard's.
            ShardCorrupt: the shard on this machine is not as long as it should be.
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
        try:
            data = self.reader.range(record.index_name, 0, file_size(record.samples))
        except ShardError as error:
            raise ManifestMismatch(f"the shard {record.name} has no readable index. {error}") from error
        index = self.manifest.decode_index(data, shard, self.reader.store.describe(record.index_name))
        if self.reader.store.local is not None:
            size = self.reader.store.size(record.name)
            if size != record.size:
                found = "missing" if size is None else f"{size} bytes long"
                raise ShardCorrupt(
                    f"{self.reader.store.describe(record.name)}: {found}, the manifest says {record.size} bytes. "
                    "Build or copy this shard again"
                )
        return index

    def _drop_oldest(self) -> None:
        while self._index_bytes > _INDEX_BYTES and len(self._indexes) > 1:
            oldest = next(iter(self._indexes))
            if not self._indexes[oldest].done():
                return
            self._index_bytes -= self._indexes.pop(oldest).result().rows.nbytes
