"""The batches of one rank: threads decode straight into the batch that the device takes.

Threads instead of worker processes: libjpeg-turbo, resizing and reading release the interpreter lock, and nothing is
copied between processes. A task is several pictures, since a task a picture spends its time on being scheduled. The
position is (epoch, samples consumed) and counts what was handed out, so that a checkpoint taken after a step resumes
with the batch that would have come next.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import DataConfig
from pipeline.stream.buffers import BufferPool
from pipeline.stream.cache import ShardCache, default_folder
from pipeline.stream.counters import Counters
from pipeline.stream.decode import UndecodableError, decode_crop
from pipeline.stream.order import OrderError, SampleOrder
from pipeline.stream.quarantine import Quarantine
from pipeline.stream.samples import BadSample, SampleReader
from pipeline.stream.storage import ResumingReader, reading_store
from shards import manifest as manifests
from shards.errors import ManifestMismatch, ShardCorrupt
from shards.keyed import derived_keys, key_of, sample_keys

_TASK = 8  # pictures; fewer cost more in scheduling than threads win
_MASK, _MODEL = 2, 3  # purposes of random numbers, beside the crop's


class MaskSource(Protocol):
    """Draws the mask of one sample."""

    def draw(self, key: int, out: NDArray[np.bool_]) -> None:
        """Fills `out`, bool (H, W), with True where pixels are dropped: a pure function of the key and the shape."""
        ...


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
        epochs: epochs after which the iterator ends; None never ends.
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


@dataclass(frozen=True)
class Batch:
    """A rank's share of one global batch.

    Attributes:
        images: uint8 (n, H, W, 3), RGB; pinned where there is a GPU.
        masks: bool (n, H, W), True where pixels are dropped.
        labels: int64 (n,), -1 where unknown; None where the data set has no classes.
        sample_ids: int64 (n,), of what was delivered: a substitute's own id where one stands in.
        epoch: of the data set, from 0.
        index: of the batch in the epoch, from 0.
        keys: int64 (n,), random keys for whatever else a model draws a sample.
    """

    images: Tensor
    masks: Tensor
    labels: Tensor | None
    sample_ids: Tensor
    epoch: int
    index: int
    keys: Tensor


class StreamLoader:
    """An iterable of the batches of one rank, from its position on.

    Args:
        config: what to read.
        rank: 0 to world_size - 1.
        world_size: any number from 1 to the units of the global batch.

    Raises:
        OrderError: too many ranks, or a batch larger than the data set.
        ShardError: the data set can't be had or is damaged.
        QuarantineFull: while iterating, more samples are unreadable than allowed.
    """

    def __init__(self, config: StreamConfig, rank: int = 0, world_size: int = 1) -> None:
        data = config.data
        self.config = config
        self.counters = Counters()
        self.manifest = manifests.load(data.shards, data.storage_options)
        self._make_order(data.lanes)
        self.part = self.order.share(rank, world_size, config.unit)
        store = reading_store(self.manifest.url, data.storage_options, data.stall_seconds)
        reader = ResumingReader(store, data.retries, data.stall_seconds, self.counters)
        cache = None
        if store.local is None and data.cache != "none":
            folder = default_folder() if data.cache == "auto" else Path(data.cache).expanduser()
            cache = ShardCache(folder, int(data.cache_gb * 1e9), self.manifest, reader, self.counters)
        self.samples = SampleReader(self.manifest, reader, cache, self.counters)
        self.quarantine = Quarantine(config.quarantine, self.manifest.total_samples, data.max_bad_fraction, self.counters)
        threads = data.threads or max(1, min(16, len(os.sched_getaffinity(0)) // config.ranks_on_node))
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._buffers = BufferPool(pinned=torch.cuda.is_available())
        self._epoch, self._consumed = 0, 0
        self._prefetched: tuple[int, int] | None = None

    def _make_order(self, lanes: int) -> None:
        data = self.config.data
        self.order = SampleOrder(self.manifest, self.config.seed, self.config.global_batch, lanes, data.shuffle_block, data.tail)

    def state_dict(self) -> dict[str, int]:
        """The position and what makes it meaningful; the same on every rank."""
        return {
            "epoch": self._epoch,
            "consumed": self._consumed,
            "seed": self.config.seed,
            "lanes": self.order.lanes,
            "shuffle_block": self.order.shuffle_block,
            "pad": int(self.config.data.tail == "pad"),
            "data_set": self.manifest.fingerprint,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continues from a position; the number of ranks may be another, and the batch any multiple of the lanes.

        Raises:
            ManifestMismatch: the position is one in another order or data set.
            OrderError: the batch does not fit the lanes.
        """
        mine = self.state_dict()
        settings = {
            "seed": "seed",
            "shuffle_block": "data.shuffle_block",
            "pad": "data.tail",
            "data_set": f"data.shards ({self.samples.reader.store.describe()} holds other shards now)",
        }
        for key, setting in settings.items():
            if int(state[key]) != mine[key]:
                raise ManifestMismatch(f"the position to continue from was reached with another {setting}: set it back, or start a new run")
        lanes = int(state["lanes"])
        if self.config.global_batch % lanes:
            raise OrderError(
                f"the run was started with {lanes} lanes: a global batch of {self.config.global_batch} must be a multiple of it"
            )
        self._make_order(lanes)
        self._epoch, self._consumed = int(state["epoch"]), int(state["consumed"])
        self._prefetched = None

    def close(self) -> None:
        """Ends the threads. The loader can't be used afterwards."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self.samples.cache is not None:
            self.samples.cache.close()

    def __enter__(self) -> StreamLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the position on, epoch after epoch."""
        ahead: deque[_Pending] = deque()
        position = (self._epoch, self._consumed)
        try:
            while True:
                while len(ahead) < self.config.data.ready_batches:
                    epoch, consumed = self._next(*position)
                    if self.config.epochs is not None and epoch >= self.config.epochs:
                        break
                    ahead.append(self._start(epoch, consumed))
                    position = (epoch, consumed + self.config.global_batch)
                if not ahead:
                    return
                self.counters.set(queue_depth=sum(pending.done() for pending in ahead))
                pending = ahead.popleft()
                batch = pending.batch(self.config.global_batch, labelled=bool(self.manifest.classes))
                self._epoch, self._consumed = self._next(pending.epoch, pending.consumed + self.config.global_batch)
                yield batch
        finally:
            for pending in ahead:
                pending.cancel()

    def _next(self, epoch: int, consumed: int) -> tuple[int, int]:
        """The position itself, or the start of the next epoch where this one has no batch left."""
        return (epoch, consumed) if self.order.has_batch(consumed) else (epoch + 1, 0)

    def _start(self, epoch: int, consumed: int) -> _Pending:
        """Hands the batch that follows a position to the threads."""
        self._prefetch(epoch, consumed)
        ids = self.order.take(epoch, consumed, self.part)
        size = self.config.image_size
        images = self._buffers.take((len(ids), size, size, 3), torch.uint8)
        masks = self._buffers.take((len(ids), size, size), torch.bool)
        pending = _Pending(epoch, consumed, images, masks)
        shards, rows = self.manifest.locate(ids)
        keys = sample_keys(self.config.seed, epoch, ids)
        by_place_in_store = np.lexsort((rows, shards))  # a task's samples lie near each other
        for start in range(0, len(ids), _TASK):
            places = by_place_in_store[start : start + _TASK]
            pending.tasks.append(self._pool.submit(self._fill, pending, places, shards[places], rows[places], keys[places]))
        return pending

    def _prefetch(self, epoch: int, consumed: int) -> None:
        """Names the shards of this block and the next to the cache, once a block."""
        block = (epoch, consumed // self.order.lanes // self.order.shuffle_block)
        if self.samples.cache is not None and block != self._prefetched:
            self._prefetched = block
            self.samples.cache.prefetch(self.order.shards_ahead(epoch, consumed, self.part, blocks=2))

    def _fill(self, pending: _Pending, *columns: NDArray[Any]) -> None:
        """Reads, decodes and masks some pictures of a batch: columns place, shard, row, key."""
        started = time.thread_time()
        for place, shard, row, key in zip(*(column.tolist() for column in columns), strict=True):
            try:
                self._fill_one(pending, place, shard, row, key)
            except BadSample as error:
                self._substitute(pending, place, error)
        self.counters.add(decode_seconds=time.thread_time() - started, images=len(columns[0]))

    def _fill_one(self, pending: _Pending, place: int, shard: int, row: int, key: int) -> None:
        data = self.config.data
        sample_id = int(self.manifest.starts[shard]) + row
        known = self.quarantine.find(sample_id)
        if known is not None:
            raise known
        picture, label = self.samples.read(sample_id, shard, row)
        try:
            decode_crop(picture, pending.image_rows[place], data.crop, data.flip, key, data.max_pixels)
        except UndecodableError as error:
            raise self.samples.bad(sample_id, shard, row, "undecodable", str(error)) from error
        if self.config.mask is None:
            pending.mask_rows[place] = False
        else:
            self.config.mask.draw(key_of(key, _MASK), pending.mask_rows[place])
        pending.sample_ids[place] = sample_id
        pending.labels[place] = label
        pending.keys[place] = key

    def _substitute(self, pending: _Pending, place: int, error: BadSample) -> None:
        """Fills a place whose sample is bad with the next good one of its block, the same whoever does it."""
        self.quarantine.add(error)
        for candidate in self.order.substitutes(pending.epoch, pending.consumed, self.part.start + place):
            (shard,), (row,) = self.manifest.locate([candidate])
            try:
                (key,) = sample_keys(self.config.seed, pending.epoch, [candidate])
                self._fill_one(pending, place, int(shard), int(row), int(key))
                return
            except BadSample as another:
                self.quarantine.add(another)
        raise ShardCorrupt(f"no sample of its lane can be read in place of another: {error}") from error


class _Pending:
    """A batch in the making: where its position was, what the threads write into, and their tasks."""

    def __init__(self, epoch: int, consumed: int, images: Tensor, masks: Tensor) -> None:
        self.epoch, self.consumed = epoch, consumed
        self.images, self.masks = images, masks
        self.image_rows: NDArray[np.uint8] = images.numpy()
        self.mask_rows: NDArray[np.bool_] = masks.numpy()
        count = images.shape[0]
        self.sample_ids = np.empty(count, np.int64)
        self.labels = np.empty(count, np.int64)
        self.keys = np.empty(count, np.uint64)
        self.tasks: list[Future[None]] = []

    def done(self) -> bool:
        return all(task.done() for task in self.tasks)

    def cancel(self) -> None:
        for task in self.tasks:
            task.cancel()

    def batch(self, global_batch: int, labelled: bool) -> Batch:
        """The batch, when its last task is done; raises what a task raised."""
        for task in self.tasks:
            task.result()
        return Batch(
            images=self.images,
            masks=self.masks,
            labels=torch.from_numpy(self.labels) if labelled else None,
            sample_ids=torch.from_numpy(self.sample_ids),
            epoch=self.epoch,
            index=self.consumed // global_batch,
            keys=torch.from_numpy(derived_keys(self.keys, _MODEL).view(np.int64)),
        )
