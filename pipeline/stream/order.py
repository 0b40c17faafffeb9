"""The order of samples: a pure function of (manifest, seed, epoch, global batch), never of the machine.

An epoch's shards are permuted and laid end to end, without the samples that are held back: a virtual sequence of N samples. It is cut into
lanes of exactly equal length by sample, so that ranks can't be uneven; a shard on a cut is read by two lanes. Inside a lane consecutive
blocks of `shuffle_block` samples are permuted. A global batch takes the next `global_batch / lanes` samples of every lane, lane after lane,
and a rank takes a contiguous slice of it. So reads are sequential by shard, random inside a block, and a position is two integers:
(epoch, samples consumed).

A lane is N // lanes samples long, whatever the batch: the batch may change in mid-epoch to any multiple of the lanes
and the order of the rest stays the same. What is left out at the end of the lanes adds up to exactly N mod
global_batch samples, other ones each epoch.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.stream.held_back import TrainedSamples
from shards.counting import counted
from shards.dataset.manifest import Manifest
from shards.errors import ExplainedError
from shards.keyed import key_of, permutation

_SHARDS, _BLOCK, _SUBSTITUTE = 1, 2, 3  # purposes of permutations
_LOOKED_UP = 1 << 15  # ids that are looked up at once: more would need memory of a megabyte a step


class OrderError(ExplainedError, ValueError):
    """A batch, a rank's slice or a position that the data set can't give."""


@dataclass(frozen=True)
class _Epoch:
    """One epoch's virtual sequence: `ends[i]` is the number of samples in the first i + 1 shards of `shards`."""

    shards: NDArray[np.int64]
    ends: NDArray[np.int64]


class SampleOrder:
    """The samples of every batch.

    Args:
        manifest: the data set.
        seed: seed of the run.
        global_batch: samples a step over all ranks.
        lanes: canonical streams; the greatest common divisor of this and the batch is used.
        shuffle_block: samples that are shuffled together inside a lane.
        tail: `drop` leaves out the N mod global_batch samples of an epoch that fill no batch; `pad` fills the last batch up with
            samples from the start of its lanes, so that no sample waits for another epoch and some come twice.
        held_back: samples that are in no batch; see `pipeline.stream.held_back`.

    Raises:
        OrderError: the data set holds less than one batch, or a number is out of range.
    """

    def __init__(
        self,
        manifest: Manifest,
        seed: int,
        global_batch: int,
        lanes: int = 64,
        shuffle_block: int = 4096,
        tail: Literal["drop", "pad"] = "drop",
        held_back: int = 0,
    ) -> None:
        if global_batch < 1 or lanes < 1 or shuffle_block < 1:
            raise OrderError(f"global_batch {global_batch}, lanes {lanes} and shuffle_block {shuffle_block} must be 1 or more")
        self.manifest = manifest
        self.samples = TrainedSamples(manifest, held_back)
        self.seed = seed
        self.global_batch_size = global_batch
        self.lanes = math.gcd(lanes, global_batch)
        self.shuffle_block = shuffle_block
        self.tail = tail
        self.per_lane = global_batch // self.lanes
        """Samples a batch takes from each lane."""
        self.lane_length = -(-self.samples.total // self.lanes) if tail == "pad" else self.samples.total // self.lanes
        """Samples of a lane in an epoch."""
        if not self.batches_per_epoch():
            beside, lower = (f" beside {held_back} that are held back", " or evaluation.held_back") if held_back else ("", "")
            raise OrderError(
                f"the data set holds {counted(self.samples.total, 'sample')}{beside}, less than one global batch of {global_batch}: "
                f"lower training.global_batch{lower}, or set data.tail to pad"
            )
        self._lock = threading.RLock()
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()
        self._blocks: OrderedDict[tuple[int, range, int], NDArray[np.int64]] = OrderedDict()

    def batches_per_epoch(self) -> int:
        """Batches in an epoch; the same in every epoch of one data set."""
        if self.tail == "pad":
            return -(-self.lane_length // self.per_lane) if self.samples.total else 0
        return self.lane_length // self.per_lane

    def global_batch(self, epoch: int, index: int) -> NDArray[np.int64]:
        """The sample ids of one batch, over all ranks.

        Args:
            epoch: epoch of the batch, from 0.
            index: index of the batch in the epoch, from 0.

        Returns:
            int64 (global_batch,), lane after lane.

        Raises:
            OrderError: the epoch has no such batch.
        """
        return self.take(epoch, index * self.global_batch_size, slice(0, self.global_batch_size))

    def rank_slice(self, rank: int, world_size: int, unit: int = 1) -> slice:
        """A rank's contiguous slice of every global batch. The slices of ranks differ by at most one unit.

        Args:
            rank: number of the rank, 0 to world_size - 1.
            world_size: number of ranks.
            unit: samples that stay together (a batch-norm group).

        Raises:
            OrderError: more ranks than units, or a batch that is no multiple of the unit.
        """
        return rank_slice(self.global_batch_size, rank, world_size, unit)

    def take(self, epoch: int, consumed: int, part: slice) -> NDArray[np.int64]:
        """The sample ids of a part of the batch that starts after `consumed` samples of the epoch.

        Args:
            epoch: epoch of the batch, from 0.
            consumed: samples of the epoch that earlier batches took, a multiple of the lanes.
            part: slots of the global batch, as `rank_slice` gives them.

        Returns:
            int64 (part.stop - part.start,).

        Raises:
            OrderError: the epoch has no such batch.
        """
        position = self._lane_position(epoch, consumed)
        if part.start == part.stop:
            return np.empty(0, np.int64)
        lanes = range(part.start // self.per_lane, -(-part.stop // self.per_lane))
        pieces, wanted = [], self.per_lane
        while wanted:
            number, within = divmod(position % self.lane_length, self.shuffle_block)  # past their end the lanes start over (tail: pad)
            pieces.append(self._block(epoch, lanes, number)[:, within : within + wanted])
            position += pieces[-1].shape[1]
            wanted -= pieces[-1].shape[1]
        ids = np.concatenate(pieces, axis=1).ravel()
        before = lanes.start * self.per_lane
        return ids[part.start - before : part.stop - before]

    def substitutes(self, epoch: int, consumed: int, slot: int) -> Iterator[int]:
        """Candidates to replace an unreadable sample: the others of its block, then the blocks that follow in its lane, then the lanes
        that follow. Each block is gone through from another place for each sample, so that many bad neighbours aren't all replaced by one.

        Args:
            epoch: epoch of the batch, from 0.
            consumed: samples of the epoch that earlier batches took.
            slot: slot of the unreadable sample in the global batch.
        """
        lane, offset = divmod(slot, self.per_lane)
        position = (self._lane_position(epoch, consumed) + offset) % self.lane_length
        number, within = divmod(position, self.shuffle_block)
        own = self._lane_block(epoch, lane, number)
        key = key_of(self.seed, _SUBSTITUTE, epoch, int(own[within]))
        yield from _turned(np.delete(own, within), key)
        blocks = -(-self.lane_length // self.shuffle_block)
        for ahead in range(1, blocks):
            yield from _turned(self._lane_block(epoch, lane, (number + ahead) % blocks), key)
        for other in range(1, self.lanes):
            for block in range(blocks):
                yield from _turned(self._lane_block(epoch, (lane + other) % self.lanes, block), key)

    def shards_ahead(self, epoch: int, consumed: int, part: slice, blocks: int) -> Iterator[int]:
        """The shards that a rank needs soon: those of the block of a position, then of the blocks after it, into the next epoch.

        Args:
            epoch: epoch of the batch, from 0.
            consumed: samples of the epoch that earlier batches took.
            part: the rank's slots of the global batch.
            blocks: blocks of every lane to look ahead, the position's own included.

        Yields:
            Numbers of shards in the manifest, soonest first, some of them again.
        """
        block, last = consumed // self.lanes // self.shuffle_block, (self.lane_length - 1) // self.shuffle_block
        for _ in range(blocks):
            if block > last:
                epoch, block = epoch + 1, 0
            order = self._epoch(epoch)
            for lane in range(part.start // self.per_lane, -(-part.stop // self.per_lane)):
                start = lane * self.lane_length + block * self.shuffle_block
                stop = min(start + self.shuffle_block, (lane + 1) * self.lane_length, self.samples.total)
                low, high = np.searchsorted(order.ends, [start, stop - 1], side="right")
                yield from (int(shard) for shard in order.shards[low : high + 1] if self.samples.counts[shard])
            block += 1

    def skip_finished_epoch(self, position: tuple[int, int]) -> tuple[int, int]:
        """A position (epoch, samples consumed) itself, or the start of the next epoch if its own has no batch left."""
        return position if self.has_batch(position[1]) else (position[0] + 1, 0)

    def has_batch(self, consumed: int) -> bool:
        """True if an epoch has one more batch after `consumed` samples of it."""
        position = consumed // self.lanes
        return position < self.lane_length if self.tail == "pad" else position + self.per_lane <= self.lane_length

    def _lane_position(self, epoch: int, consumed: int) -> int:
        if epoch < 0 or consumed < 0 or consumed % self.lanes or not self.has_batch(consumed):
            raise OrderError(
                f"epoch {epoch} has no batch of {self.global_batch_size} after {counted(consumed, 'sample')} of {self.samples.total}"
            )
        return consumed // self.lanes

    def _block(self, epoch: int, lanes: range, number: int) -> NDArray[np.int64]:
        """Ids of a block of some lanes, int64 (lanes, samples); all lanes at once, because they reach a block together."""
        with self._lock:  # decoding threads look for substitutes
            key = (epoch, lanes, number)
            found = self._blocks.get(key)
            if found is None:
                found = self._blocks[key] = self._make_block(epoch, lanes, number)
                # room for this block and the next of all lanes, and for blocks of single lanes in which substitutes are looked for
                while sum(map(len, self._blocks.values())) > 3 * self.lanes + 2:
                    self._blocks.popitem(last=False)
            self._blocks.move_to_end(key)
            return found

    def _make_block(self, epoch: int, lanes: range, number: int) -> NDArray[np.int64]:
        start = number * self.shuffle_block
        length = min(self.shuffle_block, self.lane_length - start)
        block = np.empty((len(lanes), length), np.int64)
        for row, lane in zip(block, lanes, strict=True):
            np.add(permutation(length, self.seed, _BLOCK, epoch, lane, number), lane * self.lane_length + start, out=row)
        together = max(1, _LOOKED_UP // length)
        for first in range(0, len(lanes), together):
            few = block[first : first + together]
            few[:] = self._ids(epoch, few % self.samples.total)
        return block

    def _lane_block(self, epoch: int, lane: int, number: int) -> NDArray[np.int64]:
        """Ids of a block of one lane, int64 (samples,)."""
        with self._lock:
            there = (lanes for its_epoch, lanes, block in self._blocks if (its_epoch, block) == (epoch, number) and lane in lanes)
            lanes = next(there, range(lane, lane + 1))  # mostly the rank's own
            ids: NDArray[np.int64] = self._block(epoch, lanes, number)[lane - lanes.start]
            return ids

    def _ids(self, epoch: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sample ids at places of the epoch's virtual sequence."""
        order = self._epoch(epoch)
        at = np.searchsorted(order.ends, places, side="right")
        shard = order.shards[at]
        return self.samples.ids(self.samples.starts[shard] + places - (order.ends[at] - self.samples.counts[shard]))

    def _epoch(self, epoch: int) -> _Epoch:
        with self._lock:
            return self._epoch_of(epoch)

    def _epoch_of(self, epoch: int) -> _Epoch:
        found = self._epochs.get(epoch)
        if found is None:
            shards = permutation(len(self.manifest.records), self.seed, _SHARDS, epoch)
            found = self._epochs[epoch] = _Epoch(shards, np.cumsum(self.samples.counts[shards]))
            while len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return found


def _turned(ids: NDArray[np.int64], key: int) -> list[int]:
    """The ids, rotated to begin at an index that the key chooses."""
    found: list[int] = np.roll(ids, -(key % max(1, len(ids)))).tolist()
    return found


def rank_slice(global_batch: int, rank: int, world_size: int, unit: int = 1) -> slice:
    """`SampleOrder.rank_slice` for any batch."""
    if unit < 1 or global_batch % unit:
        raise OrderError(f"a global batch of {global_batch} is not a multiple of the batch-norm group of {unit}: make it one")
    units = global_batch // unit
    if not 0 <= rank < world_size:
        raise OrderError(f"rank {rank} is not one of {world_size}")
    if world_size > units:
        what = "samples" if unit == 1 else f"batch-norm groups of {unit}"
        raise OrderError(
            f"{counted(world_size, 'rank')} share {units} {what} a step: "
            f"start at most {counted(units, 'rank')} or raise training.global_batch"
        )
    return slice(rank * units // world_size * unit, (rank + 1) * units // world_size * unit)
