"""The shards that a node reads in an epoch, block by block: the order of `pipeline.stream.order`, without permuting a sample."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pipeline.stream.order import SampleOrder


class Need(NamedTuple):
    """Samples of a shard in a lane's block: `rows` of them in all, and `samples` of those in this node's batches (a mean, if several nodes
    read the lane or its end fills no batch)."""

    lane: int
    shard: int
    rows: int
    samples: float


class NodeBlocks:
    """The shards that a node's lanes hold, block by block.

    Args:
        order: order of the run.
        part: the node's slots of the global batch.
    """

    def __init__(self, order: SampleOrder, part: slice) -> None:
        self.order = order
        self.lanes = range(part.start // order.per_lane, -(-part.stop // order.per_lane))
        self.count = -(-order.lane_length // order.shuffle_block)
        """Blocks of a lane."""
        self.named = (order.batches_per_epoch() - 1) * order.per_lane // order.shuffle_block + 1
        """Blocks in which a batch begins, which are those that a rank names to its cache."""
        edges = [(max(part.start, lane * order.per_lane), min(part.stop, (lane + 1) * order.per_lane)) for lane in self.lanes]
        self._fraction = np.array([(stop - start) / order.per_lane for start, stop in edges])
        # with one lane and one block, the shards ahead are all shards in the order in which the epoch lays them end to end
        self._whole = SampleOrder(order.manifest, order.seed, order.global_batch_size, 1, max(1, order.manifest.total_samples))
        self._epoch = -1
        self._shards = self._ends = np.empty(0, np.int64)

    def _load(self, epoch: int) -> None:
        if epoch != self._epoch:
            part = slice(0, self.order.global_batch_size)
            self._shards = np.fromiter(self._whole.shards_ahead(epoch, 0, part, 1), np.int64)
            self._ends = np.cumsum(self.order.manifest.sample_counts[self._shards])
            self._epoch = epoch

    def needs(self, epoch: int, first: int, last: int) -> Iterator[list[Need]]:
        """The needs of blocks `first` to `last` - 1 of an epoch, lane after lane; blocks past the end are the next epoch's."""
        for number in range(first, last):
            yield self._block(epoch + number // self.count, number % self.count)

    def _block(self, epoch: int, number: int) -> list[Need]:
        self._load(epoch)
        length, size = self.order.lane_length, self.order.shuffle_block
        starts = np.array(self.lanes, np.int64) * length + number * size
        stops = np.minimum(starts + min(size, length - number * size), self.order.manifest.total_samples)
        low, high = (np.searchsorted(self._ends, edges, side="right") for edges in (starts, stops - 1))
        spans = high - low + 1
        row = np.repeat(np.arange(len(spans)), spans)
        at = np.repeat(low - np.concatenate([[0], np.cumsum(spans)[:-1]]), spans) + np.arange(spans.sum())
        shards = self._shards[at]
        held = np.minimum(stops[row], self._ends[at]) - np.maximum(starts[row], self._ends[at] - self.order.manifest.sample_counts[shards])
        lanes = row + self.lanes.start
        used = self.order.batches_per_epoch() * self.order.per_lane - number * size
        trained = min(1.0, max(0.0, used / min(size, length - number * size)))  # the end of a lane may fill no batch
        samples = held * self._fraction[row] * trained
        return [Need(*need) for need in zip(lanes.tolist(), shards.tolist(), held.tolist(), samples.tolist(), strict=True)]

    def shards_touched(self, epoch: int) -> int:
        """Different shards that the node's lanes hold in an epoch; lanes are contiguous."""
        self._load(epoch)
        length = self.order.lane_length
        stop = min(self.lanes.stop * length, self.order.manifest.total_samples)
        low, high = np.searchsorted(self._ends, [self.lanes.start * length, stop - 1], side="right")
        return int(high - low + 1)


def node_parts(order: SampleOrder, nodes: int, ranks_per_node: int) -> list[slice]:
    """The slices of the ranks of the busiest node: the one with the most lanes, then the most samples a batch."""
    world = nodes * ranks_per_node

    def weight(node: int) -> tuple[int, int]:
        start, stop = order.rank_slice(node * ranks_per_node, world).start, order.rank_slice((node + 1) * ranks_per_node - 1, world).stop
        return -(-stop // order.per_lane) - start // order.per_lane, stop - start

    busiest = max(range(nodes), key=weight)
    return [order.rank_slice(busiest * ranks_per_node + rank, world) for rank in range(ranks_per_node)]
