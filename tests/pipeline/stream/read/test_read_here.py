"""Reads of a task from this machine: with few looks, few open files, and nothing kept longer than it is needed."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.config import DataConfig
from pipeline.stream.buffers import Scratch
from pipeline.stream.counters import Counters
from pipeline.stream.loader import StreamConfig, StreamLoader
from pipeline.stream.read import cache as cache_module
from pipeline.stream.read import samples as samples_module
from pipeline.stream.read.cache import ShardCache
from pipeline.stream.read.samples import SampleReader
from pipeline.stream.read.storage import ResumingReader
from shards.dataset.index import file_size
from shards.dataset.manifest import Manifest
from shards.store import Store
from tests.datasets import photographs, write_dataset

COUNTS = [3, 4, 5]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("local")
    return folder, write_dataset(folder, photographs(sum(COUNTS)), COUNTS)


def reader_of(local: tuple[Path, Manifest], cache: ShardCache | None = None) -> SampleReader:
    folder, manifest = local
    counters = Counters()
    reader = ResumingReader(Store(str(folder)), counters=counters)
    return SampleReader(manifest, reader, reader, cache, counters)


@pytest.fixture
def filled(local: tuple[Path, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], ShardCache]]:
    """A cache that holds all shards and may have some files open."""
    folder, manifest = local
    made: list[ShardCache] = []

    def make(open_files: int) -> ShardCache:
        monkeypatch.setattr(cache_module, "_OPEN_FILES", open_files)
        reader = ResumingReader(Store(str(folder)))
        made.append(ShardCache(tmp_path / "cache", 10**9, manifest, reader, Counters()))
        for record in manifest.records:
            (tmp_path / "cache" / f"{record.identity}.tar").write_bytes((folder / record.name).read_bytes())
        return made[-1]

    yield make
    for cache in made:
        cache.close()


def claimed(cache: ShardCache) -> list[int]:
    """The shards that can't be evicted right now."""
    found = []
    for number, record in enumerate(cache.manifest.records):
        handle = os.open(cache.folder / f"{record.identity}.tar", os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            found.append(number)
        finally:
            os.close(handle)
    return found


def opened() -> list[str]:
    """Paths of the files that this process has open."""
    found = []
    for handle in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the listing itself
            found.append(str(handle.readlink()))
    return found


def test_the_open_files_of_a_cache_are_those_used_last(filled: Callable[[int], ShardCache]) -> None:
    cache = filled(2)
    assert cache.holds(0)
    assert cache.holds(1)
    assert cache.read(0, 0, 10) is not None
    assert cache.holds(2)
    assert claimed(cache) == [0, 2]


def test_a_cached_shard_is_claimed_for_as_long_as_it_is_read(filled: Callable[[int], ShardCache]) -> None:
    cache = filled(1)
    file = cache.file(0)
    assert file is not None
    cache.prefetch([1])  # nobody says any more that shard 0 is needed
    assert claimed(cache) == [0, 1]
    assert len(os.pread(file.handle, 512, 0)) == 512
    del file
    assert claimed(cache) == [1]
    cache.forget(1)
    assert cache.file(1) is None
    cache.close()
    assert not [file for file in opened() if file.startswith(str(cache.folder))]


@pytest.mark.parametrize("kept", [1, 2])
def test_a_task_reads_from_a_cache_with_few_open_files(
    local: tuple[Path, Manifest], filled: Callable[[int], ShardCache], kept: int
) -> None:
    cache = filled(kept)
    samples = reader_of(local, cache)
    shards, rows = [0, 0, 1, 2, 2, 0], [2, 0, 3, 4, 1, 1]
    assert samples.read_here(shards, rows, Scratch()) == [None] * 6  # nobody has read the indexes
    expected = [samples.read(0, shard, row) for shard, row in zip(shards, rows, strict=True)]
    before = samples.counters.totals()
    found = samples.read_here(shards, rows, Scratch())
    assert [each and (bytes(each[0]), each[1]) for each in found] == expected
    after = samples.counters.totals()
    assert after["cache_hits"] - before.get("cache_hits", 0) == 6
    assert after["bytes_read_cache"] - before.get("bytes_read_cache", 0) == sum(len(data) for data, _ in expected)
    assert len(claimed(cache)) == kept
    assert cache.file(1) is not None
    cache.forget(1)
    assert [each is None for each in samples.read_here(shards, rows, Scratch())] == [False, False, True, False, False, False]


def test_indexes_that_a_task_reads_are_kept_before_others(local: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch) -> None:
    samples, memory = reader_of(local), Scratch()
    monkeypatch.setattr(samples_module, "INDEX_BUDGET", sum(samples.index(shard).rows.nbytes for shard in (0, 2)))
    assert samples.read_here([0], [0], memory)[0] is not None
    samples.index(1)
    assert samples.read_here([0, 1, 2], [0, 0, 0], memory)[0] is not None, "the one that was used last went first"


def test_every_byte_and_request_of_an_epoch_is_counted(local: tuple[Path, Manifest]) -> None:
    folder, _ = local
    data = DataConfig(shards=str(folder), crop="center", threads=1, lanes=1)
    with StreamLoader(StreamConfig(data, 64, global_batch=sum(COUNTS), epochs=3)) as loader:
        before = loader.counters.totals()
        assert len(list(loader)) == 3
        totals = loader.counters.totals()
        lengths = sum(int(loader.datasets[0].reader.index(shard).rows["length"].sum()) for shard in range(len(COUNTS)))
    assert totals["images"] == 3 * sum(COUNTS)
    assert totals["store_requests"] - before["store_requests"] == 3 * sum(COUNTS) + len(COUNTS)  # and the indexes
    assert totals["bytes_read_store"] - before["bytes_read_store"] == 3 * lengths + sum(file_size(count) for count in COUNTS)
