"""The batches of one rank: threads decode straight into the memory that the device takes.

Threads instead of worker processes: libjpeg-turbo, resizing and reading release the GIL, and nothing is copied between processes. A task
is several pictures, because a task per picture would spend its time on being scheduled; `pipeline.stream.batch.filling` does its work. The
position is (epoch, samples consumed) and counts the batches that were handed out, so that a checkpoint taken after a step resumes with the
batch that would have come next.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from pipeline.config import DataConfig
from pipeline.mapping import checked
from pipeline.masking.one_mask import OneMask
from pipeline.masking.source import MaskSource
from pipeline.stream.batch.batch import Batch, Filling, LoaderClosed, Pending
from pipeline.stream.batch.filling import Filler
from pipeline.stream.batch.quarantine import Quarantine
from pipeline.stream.buffers import BufferPool
from pipeline.stream.counters import Counters
from pipeline.stream.dataset import HELD_BACK, Dataset, open_datasets
from pipeline.stream.decode.crop import CropRule
from pipeline.stream.decode.decoder import make_decoder
from pipeline.stream.held_back import held_back_count
from pipeline.stream.mixture import Position, granule, samples_per_dataset, spread
from pipeline.stream.order import rank_slice
from pipeline.stream.plan import BatchPlan, PlannedSamples, batch_mask_key
from pipeline.stream.read.fetch import Fetcher
from shards.errors import ManifestMismatch

__all__ = ["Batch", "LoaderClosed", "StreamConfig", "StreamLoader"]

_LARGEST_READ = 2 << 20  # bytes of a task's files: more would not stay in a cache until they are decoded
_LARGEST_TASK = 64  # pictures; smaller tasks cost more in scheduling than the threads gain
_TURNED = "turned"  # name, in a position's state, of 1 where pictures are turned upright; positions of earlier versions lack it
_SWITCH_SECONDS = 2e-5  # longest time that a thread keeps the GIL from another one


@dataclass(frozen=True)
class StreamConfig:
    """Settings of a loader.

    Attributes:
        data: data sets and how they are read.
        image_size: side of the crops in pixels.
        global_batch: samples a step over all ranks.
        seed: seed of order, crops and masks.
        mask: source of the masks; None gives masks without a dropped pixel.
        unit: samples that stay together on one rank (a batch-norm group).
        ranks_on_node: ranks that divide the node's cores among themselves.
        quarantine: file that names unreadable samples; None keeps the list in memory.
        epochs: epochs (of the first data set) after which the iterator ends; None never ends.
        held_back: fraction of every data set that is in no batch; see `pipeline.stream.held_back`. A position that is loaded keeps the
            number that its run began with.
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
    held_back: float = 0.0


class StreamLoader:
    """An iterable of the batches of one rank, from its position on.

    Its threads share Python's GIL with the training, so it shortens the interpreter's switch interval to 20 us, for as long as the process
    lives.

    Args:
        config: settings of the stream.
        rank: number of the rank, 0 to world_size - 1.
        world_size: any number from 1 to the units of the global batch.
        waiting: called once a second while a batch is waited for; an error that it raises ends the iteration, before that batch.
        copy: function that starts the copy of a batch to a device; when a batch is handed out, also for the next one if it is filled.

    Raises:
        ConfigError: a setting of the data is of the wrong type or out of its bounds.
        OrderError: too many ranks, or a batch larger than the data set.
        ShardError: a data set can't be read or is damaged.
        QuarantineFull: while iterating, more samples are unreadable than allowed.
        LoaderClosed: while iterating, after it was closed.
    """

    def __init__(
        self,
        config: StreamConfig,
        rank: int = 0,
        world_size: int = 1,
        waiting: Callable[[], None] = lambda: None,
        copy: Callable[[Batch], Batch] | None = None,
    ) -> None:
        data = config.data
        checked(replace(data, storage_options={}, sources={}), "data")  # options may be any object that fsspec takes
        self.config = config
        self.counters = Counters()
        self.decoder = make_decoder(data.decoder)
        """The decoder of the run; its `description` is to be kept with what was trained on its pixels."""
        self._rank_slice = rank_slice(config.global_batch, rank, world_size, config.unit)
        self.datasets = open_datasets(data, config.seed, self.counters)
        try:
            lanes = granule(len(self.datasets), config.global_batch, data.lanes)
            self._take_slots([(lanes, held_back_count(each.manifest.total_samples, config.held_back)) for each in self.datasets])
            self.quarantine = Quarantine(config.quarantine, self.total_samples, data.max_bad_fraction, self.counters)
        except BaseException:
            for dataset in self.datasets:
                dataset.close()
            raise
        self.threads = data.threads or max(1, min(16, len(os.sched_getaffinity(0)) // config.ranks_on_node))
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        remote = not all(dataset.is_local for dataset in self.datasets)
        self._fetcher = Fetcher(data.requests) if remote else None
        # a thread of its own, so that a request for later samples never queues behind tasks that wait for the store
        self._planner = ThreadPoolExecutor(1, thread_name_prefix="plan") if remote else self._pool
        self._filler = Filler(data, config.mask, self.decoder, self.quarantine, self.counters)
        # a thread that plans many crops without a pause would make the others, and the training, wait for Python's usual 5 ms
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_SECONDS))
        self._buffers = BufferPool(pinned=torch.cuda.is_available())
        self._positions: tuple[Position, ...] = ((0, 0),) * len(self.datasets)
        self._labelled = all(dataset.manifest.labelled for dataset in self.datasets)
        self._begun = 0
        self._closed = False
        self.waiting = waiting
        self._copy = copy

    def _take_slots(self, orders: Sequence[tuple[int, int]]) -> None:
        """Gives every data set its slots of the batch, its lanes and the number of its held-back samples."""
        weights = [source.weight for source in self.config.data.sources.values()] or [1.0]
        counts = samples_per_dataset(weights, self.config.global_batch, self.config.data.lanes)
        for dataset, count, slots, (lanes, held_back) in zip(self.datasets, counts, spread(counts), orders, strict=True):
            dataset.take_slots(count, slots, self._rank_slice, lanes, held_back)

    def describe(self) -> list[str]:
        """One line for each data set: what it holds, and its part of a batch."""
        return [dataset.describe(self.config.global_batch) for dataset in self.datasets]

    def samples_per_dataset(self) -> dict[str, int]:
        """Samples of each data set in a global batch, by the data set's name."""
        return {dataset.name: dataset.order.global_batch_size for dataset in self.datasets}

    def cache_failures(self) -> dict[tuple[str, int], str]:
        """Reasons why shards could not be cached, by data set and shard; their samples are read as ranges instead."""
        return {(dataset.name, shard): why for dataset in self.datasets for shard, why in dataset.failures().items()}

    @property
    def total_samples(self) -> int:
        """Samples of all data sets."""
        return sum(dataset.manifest.total_samples for dataset in self.datasets)

    @property
    def stored_side(self) -> int | None:
        """Shorter side in pixels that all data sets store their pictures at; None where one does not say, or where they differ."""
        first, *others = {dataset.manifest.stored_side for dataset in self.datasets}
        return None if others else first

    @property
    def may_turn(self) -> bool:
        """False where every data set was built with pictures shrunk, since such a build has turned its pictures upright already."""
        return any(dataset.manifest.stored_side is None for dataset in self.datasets)

    def state_dict(self) -> dict[str, int]:
        """The position and the facts that make it meaningful; the same on every rank."""
        state = {
            "seed": self.config.seed,
            "shuffle_block": self.config.data.shuffle_block,
            "pad": int(self.config.data.tail == "pad"),
            _TURNED: int(self.config.data.orientation == "turned"),
        }
        for dataset, position in zip(self.datasets, self._positions, strict=True):
            state.update(dataset.state(position))
        return state

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continues from a position. The number of ranks may differ, and the batch may be any multiple of the lanes. The run keeps its
        `data.orientation`, whatever the settings say: pictures must not change in the middle of it.

        Raises:
            ManifestMismatch: the position is one in another order or data set.
            OrderError: the batch does not fit the lanes.
        """
        mine = self.state_dict()
        # runs of versions that knew neither held nothing back and turned no picture
        state = {key: 0 for key in mine if key == _TURNED or key.endswith(HELD_BACK)} | dict(state)
        for key, setting in {"seed": "seed", "shuffle_block": "data.shuffle_block", "pad": "data.tail"}.items():
            if int(state[key]) != mine[key]:
                raise ManifestMismatch(f"the position to continue from was reached with another {setting}: set it back, or start a new run")
        found = [dataset.lanes_and_position(state) for dataset in self.datasets]
        if len(state) != len(mine):
            raise ManifestMismatch("the position to continue from was reached with other data.sources: set them back, or start a new run")
        self._take_slots([(lanes, held_back) for lanes, held_back, _ in found])
        self._positions = tuple(position for _, _, position in found)
        self.config = replace(self.config, data=replace(self.config.data, orientation="turned" if state[_TURNED] else "stored"))
        self._filler.rule = CropRule.of(self.config.data)

    def close(self) -> None:
        """Ends the threads. The loader can't be used afterwards."""
        self._closed = True
        for dataset in self.datasets:
            dataset.abandon()
        if self._fetcher is not None:
            self._planner.shutdown(wait=True, cancel_futures=True)  # first, because it asks the fetcher
            self._fetcher.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for dataset in self.datasets:
            dataset.close()

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
                batch = pending.batch(self.waiting)
                ahead.popleft()
                if wanted == 1:
                    wanted = self.config.data.ready_batches
                    positions = self._fill_up(ahead, wanted - 1, positions)  # while the first is trained on
                self._hold_downloads(False)
                self._positions = self._each(Dataset.after, pending.positions)
                if ahead:
                    ahead[0].copy_ahead()  # beside the computation on this batch
                yield batch
        finally:
            for pending in ahead:
                pending.abandon()

    def _fill_up(self, ahead: deque[Pending], wanted: int, positions: tuple[Position, ...]) -> tuple[Position, ...]:
        """Begins batches from a position on until the wanted number is under way; returns the position behind them."""
        while len(ahead) < wanted:
            positions = self._each(Dataset.next, positions)
            if self.config.epochs is not None and positions[0][0] >= self.config.epochs:
                break
            ahead.append(self._begin(positions))
            positions = self._each(Dataset.after, positions)
        return positions

    def _each(self, move: Callable[[Dataset, Position], Position], positions: Sequence[Position]) -> tuple[Position, ...]:
        return tuple(move(dataset, position) for dataset, position in zip(self.datasets, positions, strict=True))

    def _hold_downloads(self, held: bool) -> None:
        for dataset in self.datasets:
            dataset.hold_downloads(held)

    def _begin(self, positions: tuple[Position, ...]) -> Pending:
        """Begins the batch at a position. Another thread plans it, because a plan takes milliseconds that the training can use. For local
        shards that is a decoding thread, because one thread more would only wait for a core."""
        self._begun += 1
        for dataset, position in zip(self.datasets, positions, strict=True):
            dataset.prefetch(position)  # batch by batch: the cache takes the shards named last for those that are needed next
        try:
            return Pending(positions, self._planner.submit(self._start, self._begun, positions), self._copy)
        except RuntimeError:  # another thread closed the loader after this one looked
            if self._closed:
                raise LoaderClosed from None
            raise

    def _start(self, number: int, positions: tuple[Position, ...]) -> Filling:
        """Plans a batch, asks the store for its absent samples, and hands all samples to the threads."""
        index = positions[0][1] // self.datasets[0].order.global_batch_size
        mask_key = batch_mask_key(self.config.seed, positions[0]) if isinstance(self.config.mask, OneMask) else None
        plan = BatchPlan(number, index, positions, tuple(map(Dataset.plan, self.datasets, positions)), mask_key)
        count, size = self._rank_slice.stop - self._rank_slice.start, self.config.image_size
        images = self.decoder.new_images((count, size, size, 3), self._buffers)
        filling = Filling(plan, images, self._buffers.take((count, size, size), torch.bool), self._labelled)
        try:
            for dataset, position, samples in zip(self.datasets, positions, plan.parts, strict=True):
                if self._fetcher is not None:
                    filling.fetched.update(dataset.fetch(samples, number, self._fetcher))
                for task in self._tasks(dataset, samples):
                    filling.tasks.append(self._pool.submit(self._filler.fill, filling, dataset, position, task))
        except BaseException:
            filling.cancel()
            raise
        return filling

    def _tasks(self, dataset: Dataset, samples: PlannedSamples) -> Iterator[PlannedSamples]:
        """Divides samples into tasks, by their order in the store, so that a task's samples lie near each other."""
        by_place_in_store = np.lexsort((samples.rows, samples.shards))
        count = len(by_place_in_store)
        # also a small slice has work for every thread, and large files are not all read before the first is decoded
        pictures = max(1, min(_LARGEST_TASK, count // (2 * self.threads), _LARGEST_READ // dataset.mean_bytes))
        for start in range(0, count, pictures):
            yield samples.some(by_place_in_store[start : start + pictures])
