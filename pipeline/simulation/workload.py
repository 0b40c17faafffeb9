"""The reads of one node in an epoch, block by block: which shards, how often, how many bytes, and which of them its cache serves.

The unit of time is a block of the order (`data.shuffle_block` samples of every lane), because at its beginning a rank names the shards of
this block and the next to its cache. The cache is replayed by the rules of `pipeline.stream.read.cache`: shards that are named are claimed;
the others may be evicted, in the order in which they were claimed; a shard that finds no room is tried again with the next block, and its
samples are read as ranges meanwhile. The replay leaves out time: downloads are taken to be done by the end of the block that named them.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

from pipeline.simulation.blocks import Need, NodeBlocks
from pipeline.simulation.ranges import JoinedRanges
from pipeline.simulation.settings import Subject, index_bytes
from pipeline.stream.order import SampleOrder
from pipeline.stream.read.fetch import LONGEST_RUN
from pipeline.stream.read.samples import INDEX_BUDGET

LANE_BLOCKS = 80_000
"""Most lane blocks and shards that a replay goes through; a longer epoch is sampled."""
_WINDOW, _WARM_UP = 16, 3  # blocks of a window of a sampled epoch, the first of which are not counted


@dataclass
class Traffic:
    """The requests of a node to the store, summed over the blocks that were counted.

    Attributes:
        samples: samples that are trained on.
        downloads, download_bytes: downloads of whole shards, and their bytes.
        again: downloads of a shard that the node had already downloaded in the same epoch.
        ranged: samples that are read by ranges, because their shard is not in the cache.
        ranges, ranged_bytes: requests for those samples, neighbours joined, and their bytes.
        indexes, index_bytes: indexes that all ranks of the node read, and their bytes.
    """

    samples: float = 0.0
    downloads: float = 0.0
    download_bytes: float = 0.0
    again: float = 0.0
    ranged: float = 0.0
    ranges: float = 0.0
    ranged_bytes: float = 0.0
    indexes: float = 0.0
    index_bytes: float = 0.0

    @property
    def requests(self) -> float:
        """Requests in all: one for a whole shard, a run of joined samples or an index."""
        return self.downloads + self.ranges + self.indexes

    @property
    def bytes(self) -> float:
        """Bytes of all requests."""
        return self.download_bytes + self.ranged_bytes + self.index_bytes

    def scaled(self, samples: float) -> Traffic:
        """The same traffic per sample, for another number of samples."""
        factor = samples / self.samples if self.samples else 0.0
        return Traffic(*(value * factor for value in vars(self).values()))


@dataclass
class Walk:
    """The blocks of a node, replayed.

    Attributes:
        epochs: traffic of the epochs that were replayed, the first from an empty cache.
        exact: True if every block was replayed; otherwise windows of blocks were, without cache hits from one epoch to the next.
        working_sets: bytes of the shards of a block and the next, at each replayed moment.
        cold: (bytes, samples of the first block) of each shard that an empty cache downloads first, in that order.
        index_need: most bytes of indexes that a rank has in use.
        lane_blocks: lane blocks that were replayed.
    """

    epochs: list[Traffic]
    exact: bool
    working_sets: list[int] = field(default_factory=list)
    cold: list[tuple[int, float]] = field(default_factory=list)
    index_need: int = 0
    lane_blocks: int = 0


class NodeReplay:
    """Replays the blocks of one node with a cache of `budget` bytes; None is no cache.

    Args:
        subject: data set of the run.
        order: order of the run.
        ranks: slices of the global batch of the node's ranks.
        budget: most bytes in the node's cache.
        ready_batches: batches that are begun before a shard that finds room late has arrived.
    """

    def __init__(self, subject: Subject, order: SampleOrder, ranks: list[slice], budget: int | None, ready_batches: int = 0) -> None:
        self.blocks = NodeBlocks(order, slice(ranks[0].start, ranks[-1].stop))
        self.ranks = ranks
        self._node_samples = ranks[-1].stop - ranks[0].start
        self.order = order
        self.budget = budget
        block = min(order.shuffle_block, order.lane_length)
        self._too_early = min(1.0, ready_batches * order.per_lane / block)  # fraction of a block
        self.sizes = np.fromiter((record.size for record in order.manifest.records), np.int64, len(order.manifest.records))
        self.per_sample = self.sizes * subject.picture_fraction / np.maximum(order.manifest.sample_counts, 1)
        self._lane_ranges = [range(rank.start // order.per_lane, -(-rank.stop // order.per_lane)) for rank in ranks]
        # mean number of samples that a rank takes of a lane for a batch
        self._drawn = self._node_samples / sum(len(lanes) for lanes in self._lane_ranges)
        self._joined: dict[int, JoinedRanges] = {}
        self._subject = subject
        different, numbers = np.unique(order.manifest.sample_counts, return_inverse=True)
        self._index_sizes = np.array([index_bytes(int(count)) for count in different], np.int64)[numbers].tolist()
        self._forget()

    def _forget(self) -> None:
        """Begins again with an empty node."""
        self._held: dict[int, int] = {}  # shard: when it was claimed
        self._used = self._clock = 0
        self._needed: dict[int, None] = {}
        self._free: list[tuple[int, int]] = []  # heap of (claimed, shard) that may be evicted; stale entries are skipped
        self._seen: set[int] = set()
        self._indexes: list[OrderedDict[int, int]] = [OrderedDict() for _ in self.ranks]
        self._index_used = [0] * len(self.ranks)

    def run(self, epochs: int) -> Walk:
        """Replays up to `epochs` epochs: all their blocks if `LANE_BLOCKS` allows, otherwise windows of one epoch."""
        count, lanes = self.blocks.named, len(self.blocks.lanes)
        whole = min(epochs, max(LANE_BLOCKS // (count * lanes + self.blocks.shards_touched(0)), count <= _WINDOW))
        walk = Walk([], exact=whole >= 1)
        for epoch in range(whole):
            walk.epochs.append(self._stretch(walk, epoch, 0, count, 0))
            self._seen.clear()
        if not whole:
            windows = max(1, LANE_BLOCKS // (_WINDOW * lanes))
            total = Traffic()
            for first in np.unique(np.linspace(0, max(0, count - _WINDOW), windows).astype(int)).tolist():
                self._forget()
                part = self._stretch(walk, 0, first, min(first + _WINDOW, count), _WARM_UP)
                total = Traffic(*(one + other for one, other in zip(vars(total).values(), vars(part).values(), strict=True)))
            walk.epochs.append(total.scaled(self._node_samples * self.order.batches_per_epoch()))
        return walk

    def _stretch(self, walk: Walk, epoch: int, first: int, last: int, warm_up: int) -> Traffic:
        traffic = Traffic()
        needs = self.blocks.needs(epoch, first, last + 1)
        now = next(needs)
        for number, ahead in enumerate(needs):
            if number == warm_up and warm_up:
                traffic = Traffic()
            named = dict.fromkeys(need.shard for part in (now, ahead) for need in part)
            walk.working_sets.append(int(self.sizes[list(named)].sum()))
            walk.lane_blocks += len(self.blocks.lanes)
            fresh: set[int] = set()
            cold = self.budget is not None and not walk.cold and not self._held
            if self.budget is not None:
                fresh = self._name(named, traffic, self.budget)
            if cold:
                samples = {shard: 0.0 for shard in named if shard in self._held}
                for need in now:
                    if need.shard in samples:
                        samples[need.shard] += need.samples
                walk.cold = [(int(self.sizes[shard]), count) for shard, count in samples.items()]
            self._read(now, traffic, set() if cold else fresh)
            walk.index_need = max(walk.index_need, self._load_indexes(now, traffic))
            now = ahead
        if last == self.blocks.named < self.blocks.count:
            self._read(now, traffic, set())  # the rest goes to batches that began in the block before
        return traffic

    def _name(self, named: dict[int, None], traffic: Traffic, budget: int) -> set[int]:
        """Replays `ShardCache.prefetch` and the downloads that follow it; returns the downloaded shards."""
        fresh: set[int] = set()
        for shard in self._needed.keys() - named.keys():
            if shard in self._held:
                heapq.heappush(self._free, (self._held[shard], shard))
        for shard in named:
            if shard in self._held and shard not in self._needed:
                self._clock += 1
                self._held[shard] = self._clock
        self._needed = named
        for shard in named:
            if shard in self._held:
                continue
            size = int(self.sizes[shard])
            while self._used + size > budget and self._free:
                claimed, oldest = heapq.heappop(self._free)
                if self._held.get(oldest) == claimed:
                    del self._held[oldest]
                    self._used -= int(self.sizes[oldest])
            if self._used + size > budget:
                continue
            self._clock += 1
            self._held[shard] = self._clock
            self._used += size
            traffic.downloads += 1
            traffic.download_bytes += size
            traffic.again += shard in self._seen
            self._seen.add(shard)
            fresh.add(shard)
        return fresh

    def _read(self, block: list[Need], traffic: Traffic, fresh: set[int]) -> None:
        length: dict[int, int] = {}
        trained: dict[int, float] = {}
        for need in block:
            length[need.lane] = length.get(need.lane, 0) + need.rows
            trained[need.lane] = trained.get(need.lane, 0.0) + need.samples
        for lane, shard, rows, samples in block:
            traffic.samples += samples
            part = 1.0 if shard not in self._held else self._too_early if shard in fresh else 0.0
            if not samples or not part:
                continue
            saved, between = self._joins(length[lane]).joined(rows)
            drawings = trained[lane] / self._drawn  # how often a rank takes its samples of a batch from the block
            volume = samples * float(self.per_sample[shard]) + drawings * between
            traffic.ranged += part * samples
            traffic.ranges += part * max(samples - drawings * saved, volume / LONGEST_RUN)
            traffic.ranged_bytes += part * volume

    def _joins(self, length: int) -> JoinedRanges:
        found = self._joined.get(length)
        if found is None:
            stride = self.order.manifest.total_bytes / self.order.manifest.total_samples
            found = self._joined[length] = JoinedRanges(
                length, min(round(self._drawn), length), stride, stride * self._subject.picture_fraction
            )
        return found

    def _load_indexes(self, block: list[Need], traffic: Traffic) -> int:
        """Replays the indexes that each rank of the node loads for a block; returns the most bytes that a rank has in use."""
        most = 0
        for rank, lanes in enumerate(self._lane_ranges):
            used = dict.fromkeys(need.shard for need in block if need.lane in lanes)
            sizes = {shard: self._index_sizes[shard] for shard in used}
            together = sum(sizes.values())
            most = max(most, together)
            if together > INDEX_BUDGET:  # each batch reads all of them in the same order, so that none is still there
                samples = self.ranks[rank].stop - self.ranks[rank].start
                batches = max(1.0, min(self.order.shuffle_block, self.order.lane_length) / self.order.per_lane)
                loads = batches * min(len(sizes), samples)
                traffic.indexes += loads
                traffic.index_bytes += loads * together / len(sizes)
                continue
            kept = self._indexes[rank]
            for shard, size in sizes.items():
                if shard in kept:
                    kept.move_to_end(shard)
                    continue
                traffic.indexes += 1
                traffic.index_bytes += size
                kept[shard] = size
                self._index_used[rank] += size
                while self._index_used[rank] > INDEX_BUDGET:
                    self._index_used[rank] -= kept.popitem(last=False)[1]
        return most
