"""Reads samples of a remote store while the decoding threads work on earlier ones.

What is not in the node's cache is read as ranges, neighbours joined, many at a time: a store answers one request in
tens of milliseconds and many in about the same. Requests of an earlier batch go first. So the first batch waits for
its own bytes only, and a run whose cache is too small, or that has none, is bound by the store's bandwidth and not by
its latency.
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
    """One sample's row in its shard and where its bytes go."""

    row: int
    data: Future[bytes]


@dataclass(frozen=True)
class Run:
    """Neighbouring samples of one shard that are read with one request: bytes [start, stop) and each sample's place among them."""

    start: int
    stop: int
    members: Sequence[tuple[Wanted, int, int]]


class Fetcher:
    """Threads that read samples ahead.

    Args:
        requests: to the store at the same time.
    """

    def __init__(self, requests: int) -> None:
        self._work: list[tuple[int, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._ready = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=self._serve, name=f"fetch-{number}", daemon=True) for number in range(requests)]
        for thread in self._threads:
            thread.start()

    def start(self, samples: SampleReader, batch: int, shards: NDArray[np.int64], rows: NDArray[np.int64]) -> list[Future[bytes]]:
        """Begins to read samples.

        Args:
            samples: of their data set.
            batch: requests with a smaller number go first.
            shards: int64 (n,), of the samples.
            rows: int64 (n,), in the indexes of the shards.

        Returns:
            The bytes of each, not yet compared with their digests, or the ShardError why they can't be had.
        """
        found: list[Future[bytes]] = [Future() for _ in range(len(rows))]
        for shard in np.unique(shards).tolist():
            wanted = [Wanted(int(rows[place]), found[place]) for place in np.flatnonzero(shards == shard).tolist()]
            self._put(batch, lambda shard=shard, wanted=wanted: self._read_shard(samples, batch, shard, wanted))  # type: ignore[misc]
        return found

    def close(self) -> None:
        """Ends the threads; what was not read by now is cancelled."""
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
        action()  # which cancels what nobody would read any more

    def _serve(self) -> None:
        while True:
            with self._ready:
                while not self._work and not self._closed:
                    self._ready.wait()
                if not self._work:
                    return
                _, _, action = heapq.heappop(self._work)
            action()

    def _read_shard(self, samples: SampleReader, batch: int, shard: int, wanted: Sequence[Wanted]) -> None:
        wanted = [one for one in wanted if one.data.set_running_or_notify_cancel()]
        if not wanted:
            return
        try:
            if self._closed:
                raise CancelledError
            first, *rest = runs(samples.index(shard), wanted)
        except BaseException as error:
            for one in wanted:
                one.data.set_exception(error)
            return
        for run in rest:
            self._put(batch, lambda run=run: self._read_run(samples, shard, run))  # type: ignore[misc]
        self._read_run(samples, shard, first)

    def _read_run(self, samples: SampleReader, shard: int, run: Run) -> None:
        try:
            if self._closed:
                raise CancelledError
            data = samples.read_range(shard, run.start, run.stop)
        except BaseException as error:
            for wanted, _, _ in run.members:
                wanted.data.set_exception(error)
            return
        for wanted, start, stop in run.members:
            wanted.data.set_result(data[start - run.start : stop - run.start] if len(run.members) > 1 else data)


def joined_gap(length: float) -> float:
    """Bytes in front of a picture of `length` bytes that are read over rather than asked for around: about as many as it has
    itself, so that small pictures don't multiply what is read, and never more than a request would cost."""
    return min(max(length, 8 << 10), 64 << 10)


def runs(index: ShardIndex, wanted: Sequence[Wanted]) -> list[Run]:
    """Joins samples of a shard that lie near each other, in the order of the shard."""
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
