"""Reading ahead: what is near is read at once, many requests are under way, the earlier batch first, and nothing waits for ever."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.stream.counters import Counters
from pipeline.stream.read.fetch import LONGEST_RUN, Fetcher, Wanted, joined_gap, runs
from pipeline.stream.read.samples import SampleReader
from pipeline.stream.read.storage import ResumingReader, ShardUnavailable
from shards.dataset.index import ROW, ShardIndex
from shards.store import Store
from tests.datasets import photographs, write_dataset

COUNTS = [12, 30, 8]


class SlowReader(ResumingReader):
    """A reader of local shards whose requests are seen and can be held up."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[tuple[str, int, int]] = []
        self.under_way = self.most_under_way = 0
        self._lock = threading.Lock()

    def range(self, name: str, start: int, end: int, version: str = "") -> bytes:
        if not name.endswith(".tar"):
            return super().range(name, start, end, version)
        with self._lock:
            self.asked.append((name, start, end))
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            self.gate.wait(20)
            return super().range(name, start, end, version)
        finally:
            with self._lock:
                self.under_way -= 1


@pytest.fixture
def reader(tmp_path: Path) -> SampleReader:
    manifest = write_dataset(tmp_path, photographs(sum(COUNTS)), COUNTS)
    slow = SlowReader(Store(str(tmp_path)))
    return SampleReader(manifest, slow, slow, None, Counters())


@contextmanager
def fetcher(requests: int) -> Iterator[Fetcher]:
    made = Fetcher(requests)
    try:
        yield made
    finally:
        made.close()


def columns(samples: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    shards, rows = zip(*samples, strict=True)
    return np.array(shards, np.int64), np.array(rows, np.int64)


def slow(reader: SampleReader) -> SlowReader:
    assert isinstance(reader.reader, SlowReader)
    return reader.reader


def test_every_sample_gets_its_own_bytes(reader: SampleReader) -> None:
    wanted = [(shard, row) for shard, count in enumerate(COUNTS) for row in range(count)]
    np.random.default_rng(3).shuffle(wanted)
    with fetcher(4) as threads:
        found = threads.start(reader, 1, *columns(wanted))
        for (shard, row), data in zip(wanted, found, strict=True):
            assert reader.read(0, shard, row, data)[0] == reader.read(0, shard, row)[0]
    assert len(slow(reader).asked) < 2 * len(wanted)


def test_requests_are_under_way_together_up_to_the_limit(reader: SampleReader) -> None:
    slow(reader).gate.clear()
    far_apart = [(shard, row) for shard, count in enumerate(COUNTS) for row in range(0, count, 7)]
    with fetcher(5) as threads:
        found = threads.start(reader, 1, *columns(far_apart))
        while slow(reader).under_way < 5:
            threading.Event().wait(0.01)
        threading.Event().wait(0.1)
        assert slow(reader).most_under_way == 5
        slow(reader).gate.set()
        assert all(data.result(timeout=20) for data in found)


def test_an_earlier_batch_goes_first(reader: SampleReader) -> None:
    slow(reader).gate.clear()
    with fetcher(1) as threads:
        first = threads.start(reader, 1, *columns([(0, 0)]))
        while not slow(reader).asked:
            threading.Event().wait(0.01)
        later = threads.start(reader, 3, *columns([(2, 0), (2, 7)]))
        earlier = threads.start(reader, 2, *columns([(1, 0), (1, 20)]))
        slow(reader).gate.set()
        for data in (*first, *earlier, *later):
            data.result(timeout=20)
    assert [name for name, _, _ in slow(reader).asked] == [f"shard-00000{shard}.tar" for shard in (0, 1, 1, 2, 2)]


def test_closing_ends_what_waits(reader: SampleReader) -> None:
    slow(reader).gate.clear()
    threads = Fetcher(1)
    found = threads.start(reader, 1, *columns([(1, row) for row in range(0, 30, 10)]))
    closing = threading.Thread(target=threads.close)
    while not slow(reader).asked:
        threading.Event().wait(0.01)
    closing.start()
    threading.Event().wait(0.1)
    slow(reader).gate.set()
    closing.join(20)
    assert not closing.is_alive()
    assert found[0].result(timeout=1)
    for data in found[1:]:
        with pytest.raises(CancelledError):
            data.result(timeout=1)


def test_an_error_reaches_every_sample_that_it_concerns(reader: SampleReader, tmp_path: Path) -> None:
    reader.index(1)  # held already, so that the missing shard is met by the request
    (tmp_path / "shard-000001.tar").unlink()
    with fetcher(2) as threads:
        found = threads.start(reader, 1, *columns([(1, 0), (1, 1), (1, 25), (0, 3)]))
        for data in found[:3]:
            with pytest.raises(ShardUnavailable, match=r"shard-000001\.tar"):
                data.result(timeout=20)
        assert found[3].result(timeout=20)


@given(st.lists(st.tuples(st.integers(1, 300_000), st.integers(0, 200_000)), min_size=1, max_size=40), st.data())
def test_runs_cover_what_is_wanted_and_little_else(shape: list[tuple[int, int]], data: st.DataObject) -> None:
    rows = np.zeros(len(shape), ROW)
    end = 0
    for row, (length, space) in zip(rows, shape, strict=True):
        row["offset"], row["length"] = end + space, length
        end += space + length
    chosen = data.draw(st.lists(st.integers(0, len(shape) - 1), unique=True, min_size=1))
    made = runs(ShardIndex(rows, end), [Wanted(row, Future()) for row in chosen])
    covered = [(wanted.row, start, stop) for run in made for wanted, start, stop in run.members]
    assert sorted(row for row, _, _ in covered) == sorted(chosen)
    assert all((start, stop) == (rows[row]["offset"], rows[row]["offset"] + rows[row]["length"]) for row, start, stop in covered)
    for run in made:
        assert all(run.start <= start < stop <= run.stop for _, start, stop in run.members)
        assert run.stop - run.start <= LONGEST_RUN or len(run.members) == 1
        wasted = run.stop - run.start - sum(stop - start for _, start, stop in run.members)
        assert wasted <= sum(joined_gap(stop - start) for _, start, stop in run.members[1:])
    for left, right in itertools.pairwise(made):
        assert left.stop < right.start
