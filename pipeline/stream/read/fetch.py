"""Reads samples of a remote store while the decoding threads work on earlier ones.

In: samples that are not in the node's cache. Out: their bytes to come. They are read as ranges, neighbours joined, many at
a time, because a store answers many requests in about the tens of milliseconds that one takes. Requests of an earlier
batch go first. So the first batch waits for its own bytes only, and a run without a cache, or with one that is too small,
is bound by the store's bandwidth and not by its latency.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.stream.read.samples import SampleReader
from shards.dataset.index import ShardIndex

LONGEST_RUN = 8 << 20
"""Bytes of the longest request that joins neighbours."""


@dataclass(frozen=True)
class Wanted:
    """One sample: its row in the shard's index, and the future that gets its bytes."""

    row: int
    data: Future[bytes]


@dataclass(frozen=True)
class Run:
    """Neighbouring samples of one shard that are read with one request: bytes [start, stop), and first and last byte of each member."""

    start: int
    stop: int
    members: Sequence[tuple[Wanted, int, int]]


class Fetcher:
    """Threads that read samples ahead.

    Args:
        requests: most requests to the store at the same time.
    """

    def __init__(self, requests: int) -> None:
        self._work: list[tuple[int, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._ready = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=self._serve, name=f"fetch-{number}", daemon=True) for number in range(requests)]
        for thread in self._threads:
            thread.start()

    def start(self, reader: SampleReader, batch: int, shards: NDArray[np.int64], rows: NDArray[np.int64]) -> list[Future[bytes]]:
        """Begins to read samples.

        Args:
            reader: reader of the samples' data set.
            batch: number of the batch; requests of a smaller number go first.
            shards: int64 (n,), shards of the samples.
            rows: int64 (n,), rows of the samples in their shards' indexes.

        Returns:
            The bytes of each sample to come, not yet compared with their digests; or the ShardError of the shard.
        """
        found: list[Future[bytes]] = [Future() for _ in range(len(rows))]
        for shard in np.unique(shards).tolist():
            wanted = [Wanted(int(rows[number]), found[number]) for number in np.flatnonzero(shards == shard).tolist()]
            self._put(batch, lambda shard=shard, wanted=wanted: self._read_shard(reader, batch, shard, wanted))  # type: ignore[misc]
        return found

    def close(self) -> None:
        """Ends the threads and cancels the reads that have not begun."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()
        for thread in self._threads:
            thread.join()

    def _put(self, batch: int, action: Callable[[], None]) -> None:
        with self._ready:
            if not self._closed:
                heapq.heappush(self._work, (batch, next(self._numbers), action))
                self._ready.notify()
                return
        action()  # cancels its samples, because the fetcher is closed

    def _serve(self) -> None:
        while True:
            with self._ready:
                while not self._work and not self._closed:
                    self._ready.wait()
                if not self._work:
                    return
                _, _, action = heapq.heappop(self._work)
            action()

    def _read_shard(self, reader: SampleReader, batch: int, shard: int, wanted: Sequence[Wanted]) -> None:
        wanted = [one for one in wanted if one.data.set_running_or_notify_cancel()]
        if not wanted:
            return
        try:
            if self._closed:
                raise CancelledError
            first, *rest = runs(reader.index(shard), wanted)
        except BaseException as error:
            for one in wanted:
                one.data.set_exception(error)
            return
        for run in rest:
            self._put(batch, lambda run=run: self._read_run(reader, shard, run))  # type: ignore[misc]
        self._read_run(reader, shard, first)

    def _read_run(self, reader: SampleReader, shard: int, run: Run) -> None:
        try:
            if self._closed:
                raise CancelledError
            data = reader.read_range(shard, run.start, run.stop)
        except BaseException as error:
            for wanted, _, _ in run.members:
                wanted.data.set_exception(error)
            return
        for wanted, start, stop in run.members:
            wanted.data.set_result(data[start - run.start : stop - run.start] if len(run.members) > 1 else data)


def joined_gap(length: float) -> float:
    """Largest gap in bytes between two samples that one request still spans: about the length of the second sample, so that small pictures
    don't multiply the bytes that are read, and never more bytes than a request of its own would cost."""
    return min(max(length, 8 << 10), 64 << 10)


def runs(index: ShardIndex, wanted: Sequence[Wanted]) -> list[Run]:
    """Joins neighbouring samples of a shard into runs, in the order of the shard."""
    found: list[Run] = []
    for one in sorted(wanted, key=lambda one: index.row(one.row)[0]):
        start, _, length, _ = index.row(one.row)
        stop = start + length
        last = found[-1] if found else None
        if last is not None and start - last.stop <= joined_gap(length) and stop - last.start <= LONGEST_RUN:
            found[-1] = Run(last.start, max(stop, last.stop), [*last.members, (one, start, stop)])
        else:
            found.append(Run(start, stop, [(one, start, stop)]))
    return found
