"""The batches of one rank: threads decode straight into the batch that the device takes.

Threads instead of worker processes: libjpeg-turbo, resizing and reading release the interpreter lock, and nothing is
copied between processes. A task is several pictures, since a task a picture spends its time on being scheduled; what is done for them is
in `filling`. The position is (epoch, samples consumed) and counts what was handed out, so that a checkpoint taken after a step resumes
with the batch that would have come next.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.config import DataConfig
from pipeline.stream.batch.batch import Batch, LoaderClosed, Pending
from pipeline.stream.batch.filling import Filler, MaskSource
from pipeline.stream.batch.quarantine import Quarantine
from pipeline.stream.buffers import BufferPool
from pipeline.stream.counters import Counters
from pipeline.stream.decode.decoder import make_decoder
from pipeline.stream.order import share
from pipeline.stream.read.fetch import Fetcher
from pipeline.stream.source import Position, Source, granule, open_sources, shares, spread
from shards.errors import ManifestMismatch

__all__ = ["Batch", "LoaderClosed", "MaskSource", "StreamConfig", "StreamLoader"]

_LARGEST_READ = 2 << 20  # bytes of a task's files: more lie longer in no cache
_LARGEST_TASK = 64  # pictures; fewer cost more in scheduling than threads win
_SWITCH_SECONDS = 2e-5  # of waiting for the interpreter's lock


@dataclass(frozen=True)
class StreamConfig:
    """What a loader needs to know.

    Attributes:
        data: where pictures come from and how they are read.
        image_size: side of the crops in pixels.
        global_batch: samples a step over all ranks.
        seed: of order, crops and masks.
        mask: where masks come from; None gives masks without a dropped pixel.
        unit: samples that a rank must not divide.
        ranks_on_node: share the node's cores.
        quarantine: file that names unreadable samples; None keeps the list in memory.
        epochs: epochs (of the first source) after which the iterator ends; None never ends.
    """

    data: DataConfig
    image_size: int
    global_batch: int
    seed: int = 0
    mask: MaskSource | None = None
    unit: int = 1
    ranks_on_node: int = 1
    quarantine: Path | None = None
    epochs: int | None = None


class StreamLoader:
    """An iterable of the batches of one rank, from its position on.

    Its threads share Python's interpreter lock with the training, so it shortens the interpreter's switch interval to 20 us, for as
    long as the process lives.

    Args:
        config: what to read.
        rank: 0 to world_size - 1.
        world_size: any number from 1 to the units of the global batch.
        waiting: called every second while a batch is waited for; an error that it raises ends the iteration, before that batch.

    Raises:
        OrderError: too many ranks, or a batch larger than the data set.
        ShardError: the data set can't be had or is damaged.
        QuarantineFull: while iterating, more samples are unreadable than allowed.
        LoaderClosed: while iterating, after it was closed.
    """

    def __init__(self, config: StreamConfig, rank: int = 0, world_size: int = 1, waiting: Callable[[], None] = lambda: None) -> None:
        data = config.data
        self.config = config
        self.counters = Counters()
        self.decoder = make_decoder(data.decoder)
        """Its `description` is to be kept with what was trained on its pixels."""
        self.part = share(config.global_batch, rank, world_size, config.unit)
        self.sources = open_sources(data, config.seed, self.counters)
        try:
            self._place([granule(len(self.sources), config.global_batch, data.lanes)] * len(self.sources))
            self.quarantine = Quarantine(config.quarantine, self.total_samples, data.max_bad_fraction, self.counters)
        except BaseException:
            for source in self.sources:
                source.close()
            raise
        self.threads = data.threads or max(1, min(16, len(os.sched_getaffinity(0)) // config.ranks_on_node))
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        remote = any(source.samples.reader.store.local is None for source in self.sources)
        self._fetcher = Fetcher(data.requests) if remote else None
        # asking a store for what comes next is not to stand in a line behind those who wait for the store
        self._planner = ThreadPoolExecutor(1, thread_name_prefix="plan") if remote else self._pool
        self._filler = Filler(data, config.mask, self.decoder, self.quarantine, self.counters)
        # a thread that planned many crops without a pause would keep the others, and the training, waiting for Python's usual 5 ms
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_SECONDS))
        self._buffers = BufferPool(pinned=torch.cuda.is_available())
        self._positions: tuple[Position, ...] = ((0, 0),) * len(self.sources)
        self._begun = 0
        self._closed = False
        self.waiting = waiting

    def _place(self, lanes: Sequence[int]) -> None:
        """Gives every source its share of the batch."""
        weights = [source.weight for source in self.config.data.sources.values()] or [1.0]
        counts = shares(weights, self.config.global_batch, self.config.data.lanes)
        for source, count, places, its_lanes in zip(self.sources, counts, spread(counts), lanes, strict=True):
            source.place(count, places, self.part, its_lanes)

    def describe(self) -> list[str]:
        """What a batch is made of, one line a source."""
        lines = []
        for source in self.sources:
            name = f"{source.name}: {source.order.global_batch_size} of every {self.config.global_batch} samples, " if source.name else ""
            what = f"{source.manifest.total_samples} pictures in {len(source.manifest.records)} shards"
            lines.append(f"{name}{what}, {source.order.batches_per_epoch()} batches an epoch")
        return lines

    def cache_failures(self) -> dict[tuple[str, int], str]:
        """Why shards could not be cached, by source and shard; their samples are read as ranges instead."""
        caches = ((source.name, source.samples.cache) for source in self.sources)
        return {(name, shard): why for name, cache in caches if cache is not None for shard, why in cache.failures.items()}

    @property
    def total_samples(self) -> int:
        """Samples of all sources."""
        return sum(source.manifest.total_samples for source in self.sources)

    def state_dict(self) -> dict[str, int]:
        """The position and what makes it meaningful; the same on every rank."""
        state = {
            "seed": self.config.seed,
            "shuffle_block": self.config.data.shuffle_block,
            "pad": int(self.config.data.tail == "pad"),
        }
        for source, position in zip(self.sources, self._positions, strict=True):
            state.update(source.state(position))
        return state

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continues from a position; the number of ranks may be another, and the batch any multiple of the lanes.

        Raises:
            ManifestMismatch: the position is one in another order or data set.
            OrderError: the batch does not fit the lanes.
        """
        mine = self.state_dict()
        for key, setting in {"seed": "seed", "shuffle_block": "data.shuffle_block", "pad": "data.tail"}.items():
            if int(state[key]) != mine[key]:
                raise ManifestMismatch(f"the position to continue from was reached with another {setting}: set it back, or start a new run")
        found = [source.lanes_and_position(state) for source in self.sources]
        if len(state) != len(mine):
            raise ManifestMismatch("the position to continue from was reached with other data.sources: set them back, or start a new run")
        self._place([lanes for lanes, _ in found])
        self._positions = tuple(position for _, position in found)

    def close(self) -> None:
        """Ends the threads. The loader can't be used afterwards."""
        self._closed = True
        for source in self.sources:
            source.abandon()
        if self._fetcher is not None:
            self._planner.shutdown(wait=True, cancel_futures=True)  # before those that it asks
            self._fetcher.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for source in self.sources:
            source.close()

    def __enter__(self) -> StreamLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the position on, epoch after epoch."""
        ahead: deque[Pending] = deque()
        positions = self._positions
        wanted = self.config.data.ready_batches if self._fetcher is None else 1  # the first batch has the store to itself
        self._hold_downloads(True)
        try:
            while True:
                if self._closed:
                    raise LoaderClosed
                positions = self._fill_up(ahead, wanted, positions)
                if not ahead:
                    return
                self.counters.set(queue_depth=sum(pending.done() for pending in ahead))
                pending = ahead[0]
                batch = pending.batch(self.sources[0].order.global_batch_size, self.waiting, labelled=self._labelled)
                ahead.popleft()
                if wanted == 1:
                    wanted = self.config.data.ready_batches
                    positions = self._fill_up(ahead, wanted - 1, positions)  # while the first is trained on
                self._hold_downloads(False)
                self._positions = self._each(Source.after, pending.positions)
                yield batch
        finally:
            for pending in ahead:
                pending.abandon()

    def _fill_up(self, ahead: deque[Pending], wanted: int, positions: tuple[Position, ...]) -> tuple[Position, ...]:
        """Starts batches from a position on until as many as wanted are under way; returns the position behind them."""
        while len(ahead) < wanted:
            positions = self._each(Source.next, positions)
            if self.config.epochs is not None and positions[0][0] >= self.config.epochs:
                break
            ahead.append(self._begin(positions))
            positions = self._each(Source.after, positions)
        return positions

    @property
    def _labelled(self) -> bool:
        return all(source.manifest.classes for source in self.sources)

    def _each(self, move: Callable[[Source, Position], Position], positions: Sequence[Position]) -> tuple[Position, ...]:
        return tuple(move(source, position) for source, position in zip(self.sources, positions, strict=True))

    def _hold_downloads(self, held: bool) -> None:
        for source in self.sources:
            if source.samples.cache is not None:
                source.samples.cache.hold_back(held)

    def _begin(self, positions: tuple[Position, ...]) -> Pending:
        """The batch that follows a position. Another thread plans it, which takes milliseconds that the training has a use for: where all
        lies on this machine one of those that decode, since one more would only wait for a core."""
        self._begun += 1
        for source, position in zip(self.sources, positions, strict=True):
            source.prefetch(position)  # in turn: the cache takes the shards that it was told of last for those that are needed next
        pending = Pending(self._begun, positions)
        pending.planned = self._planner.submit(self._plan, pending)
        return pending

    def _plan(self, pending: Pending) -> None:
        """Hands the samples of a batch to the threads."""
        try:
            self._hand_out(pending)
        finally:
            if pending.abandoned:
                pending.let_go()

    def _hand_out(self, pending: Pending) -> None:
        count, size = self.part.stop - self.part.start, self.config.image_size
        images = self._buffers.take((count, size, size, 3), torch.uint8)
        pending.write_into(images, self._buffers.take((count, size, size), torch.bool))
        for source, position in zip(self.sources, pending.positions, strict=True):
            epoch, consumed = position
            ids = source.order.take(epoch, consumed, source.part)
            samples = self._filler.samples(source, epoch, source.places, ids)
            pending.expect(samples)
            shards, rows = samples.shards, samples.rows
            absent = source.samples.absent(shards)
            if self._fetcher is not None and absent.any():
                places, data = source.places[absent], self._fetcher.start(source.samples, pending.number, shards[absent], rows[absent])
                pending.fetched.update(zip(places.tolist(), data, strict=True))
            by_place_in_store = np.lexsort((rows, shards))  # a task's samples lie near each other
            # a small share has work for every thread, too, and large files are not all read before the first is decoded
            pictures = max(1, min(_LARGEST_TASK, len(ids) // (2 * self.threads), _LARGEST_READ // source.mean_bytes))
            for start in range(0, len(ids), pictures):
                task = samples.some(by_place_in_store[start : start + pictures])
                pending.tasks.append(self._pool.submit(self._filler.fill, pending, source, position, task))
