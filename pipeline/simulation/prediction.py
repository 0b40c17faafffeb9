"""The prediction of a run: its requests to the store, and how long its GPUs will wait and for which resource.

A step takes as long as the slowest resource that it needs, because the loader prepares batches while the GPU works. First comes the
workload of the busiest node (`workload`), then its time under the limits of `Setup`. Times are estimates from steady rates; no queueing is
modelled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from pipeline.simulation.blocks import node_parts
from pipeline.simulation.quality import Quality, quality
from pipeline.simulation.settings import Setup, SimulationError, Subject, index_bytes
from pipeline.simulation.workload import NodeReplay, Traffic, Walk
from pipeline.stream.order import OrderError, SampleOrder
from shards.counting import counted

_DOWNLOADS = 2  # shards that a rank's cache downloads at the same time
_MOST_ORDERED = 20_000_000  # samples of the first blocks that are put in order for the first batch
_MANIFEST_ROW = 190  # bytes of a shard in the manifest
GPU = "the GPUs"
FIRST, LATER, NO_CACHE, IN_PLACE = "first epoch", "later epochs", "no cache", "in place"


@dataclass(frozen=True)
class Pace:
    """The speed of an epoch on the node: its traffic, and the seconds that a step spends on each resource.

    Attributes:
        traffic: traffic of the epoch.
        seconds: seconds a step, by resource; the largest is the step's duration.
        bound: name of the resource with the largest.
        stall: fraction of the time in which the GPUs wait, from 0 to 1.
        bytes_per_second: bytes that the node would read a second if the GPUs never waited.
        requests_per_second: requests that all nodes would make a second if the GPUs never waited.
    """

    traffic: Traffic
    seconds: dict[str, float]
    bound: str
    stall: float
    bytes_per_second: float
    requests_per_second: float

    @property
    def step(self) -> float:
        """Duration of a step in seconds."""
        return self.seconds[self.bound]


@dataclass(frozen=True)
class FirstBatch:
    """Seconds from the start of an empty node to its first batch: by ranges, as the loader reads it, and by whole shards instead."""

    ranged: float
    whole_shards: float
    shards: int


@dataclass(frozen=True)
class Preemption:
    """The cost of regular kills.

    Attributes:
        lost_steps: mean number of steps since the last checkpoint.
        seconds: seconds that a kill costs: steps done again, the restart and the first batch.
        throughput: fraction of the time that is lost, from 0 to 1; 1 if the next checkpoint is never reached.
        bytes: bytes that a node reads again after a kill.
        traffic: those bytes as a fraction of all that the node reads between two kills.
    """

    lost_steps: float
    seconds: float
    throughput: float
    bytes: float
    traffic: float


@dataclass(frozen=True)
class Prediction:
    """The results of `simulate`, in bytes, samples and seconds. `paces` are named `first epoch`, `later epochs` and `no cache`; for
    shards in a folder of this machine there is `in place` alone."""

    setup: Setup
    subject: Subject
    lanes: int
    lane_length: int
    batches: int
    node_lanes: int
    node_samples: int
    walk: Walk
    shards_touched: int
    paces: dict[str, Pace]
    first_batch: FirstBatch
    quality: Quality
    preemption: Preemption | None

    @property
    def cached(self) -> bool:
        """True if there is a cache; shards on this machine get none."""
        return self.setup.cache_gb > 0 and not self.subject.local

    @property
    def now(self) -> Pace:
        """The pace that most of the run goes at."""
        return next(self.paces[name] for name in (IN_PLACE, LATER, FIRST, NO_CACHE) if name in self.paces)

    @property
    def cache_needed(self) -> int:
        """Bytes of the largest working set that was seen; 0 for shards that are read in place."""
        return 0 if self.subject.local else max(self.walk.working_sets)


def simulate(subject: Subject, setup: Setup) -> Prediction:
    """Predicts a run.

    Raises:
        SimulationError: the data set holds less than a batch, or more bytes than 62 bits can count.
    """
    total = subject.manifest.total_samples
    if subject.manifest.total_bytes >= 2**62:
        raise SimulationError(f"{subject.name} holds {counted(subject.manifest.total_bytes, 'byte')}, 2^62 or more: simulate a part of it")
    if total < setup.global_batch:
        raise SimulationError(
            f"{subject.name} holds {counted(total, 'sample')}, less than one --global-batch of {setup.global_batch:,}: lower it"
        )
    try:
        return _simulated(subject, setup)
    except OrderError as error:
        raise SimulationError(f"--global-batch {setup.global_batch:,}, --lanes {setup.lanes:,}: {error}") from error


def _simulated(subject: Subject, setup: Setup) -> Prediction:
    order = SampleOrder(subject.manifest, setup.seed, setup.global_batch, setup.lanes, setup.shuffle_block)
    ranks = node_parts(order, setup.nodes, setup.ranks_per_node)
    cached = setup.cache_gb > 0 and not subject.local
    replay = NodeReplay(subject, order, ranks, int(setup.cache_gb * 1e9) if cached else None, setup.ready_batches)
    walk = replay.run(setup.epochs)
    bare_walk = NodeReplay(subject, order, ranks, None).run(1) if cached else walk
    clock = _Clock(setup, order, ranks)
    # shards in a folder of this machine ask nothing of a store
    bare = clock.pace(Traffic(samples=bare_walk.epochs[0].samples) if subject.local else bare_walk.epochs[0])
    paces = {}
    if cached:
        first = walk.epochs[0]
        if walk.exact:
            first = clock.with_cold_reads(walk, first, bare)
        paces[FIRST] = clock.pace(first)
        if len(walk.epochs) > 1:
            paces[LATER] = clock.pace(walk.epochs[-1])
    paces[IN_PLACE if subject.local else NO_CACHE] = bare
    prediction = Prediction(
        setup=setup,
        subject=subject,
        lanes=order.lanes,
        lane_length=order.lane_length,
        batches=order.batches_per_epoch(),
        node_lanes=len(replay.blocks.lanes),
        node_samples=clock.node_samples,
        walk=walk,
        shards_touched=replay.blocks.shards_touched(0),
        paces=paces,
        first_batch=clock.first_batch(bare.traffic, subject.local),
        quality=quality(order),
        preemption=None,
    )
    if not setup.preemption_minutes:
        return prediction
    return replace(prediction, preemption=clock.preemption(prediction))


class _Clock:
    """Turns bytes and requests into seconds."""

    def __init__(self, setup: Setup, order: SampleOrder, ranks: list[slice]) -> None:
        self.setup, self.order, self.ranks = setup, order, ranks
        self.rank_samples = -(-order.global_batch_size // setup.world_size)
        """Samples a step of the rank with the most, which the others wait for."""
        self.node_samples = ranks[-1].stop - ranks[0].start
        self.bandwidth = setup.bandwidth * 1e6
        if setup.store_bandwidth:
            self.bandwidth = min(self.bandwidth, setup.store_bandwidth * 1e6 / setup.nodes)
        self.streams = _DOWNLOADS * len(ranks)
        connection = setup.connection_bandwidth * 1e6 or float("inf")
        self.connection = connection
        self.download_bandwidth = min(self.bandwidth, connection * self.streams)

    def pace(self, traffic: Traffic) -> Pace:
        """The step of an epoch with this traffic."""
        setup, steps, ranks = self.setup, self.order.batches_per_epoch(), len(self.ranks)
        volume, requests = traffic.bytes / steps, traffic.requests / steps
        latency = setup.latency / 1e3
        small = (traffic.ranges + traffic.indexes) / steps / ranks  # requests that a rank waits for
        small_bytes = (traffic.ranged_bytes + traffic.index_bytes) / steps / ranks
        streams = (traffic.downloads * latency + traffic.download_bytes / self.connection) / steps / self.streams
        seconds = {
            GPU: self.rank_samples / setup.images_per_second,
            "decoding": self.rank_samples / setup.decode_rate if setup.decode_rate else 0.0,
            "the latency of requests": (small * latency + small_bytes / self.connection) / setup.connections,
            "the node's bandwidth": volume / (setup.bandwidth * 1e6),
            "the store's bandwidth": volume * setup.nodes / (setup.store_bandwidth * 1e6) if setup.store_bandwidth else 0.0,
            "the store's limit of requests": requests * setup.nodes / setup.requests_per_second if setup.requests_per_second else 0.0,
            "two downloads at a time a rank": streams,
        }
        bound = max(seconds, key=lambda name: seconds[name])
        gpu = seconds[GPU]
        return Pace(traffic, seconds, bound, 1 - gpu / seconds[bound], volume / gpu, requests * setup.nodes / gpu)

    def with_cold_reads(self, walk: Walk, traffic: Traffic, bare: Pace) -> Traffic:
        """Adds the samples of the first block that are read by ranges before its shards have arrived."""
        cold = bare.traffic.scaled(self.cold_samples(walk, bare))
        ranged = traffic.ranged + cold.ranged
        return replace(traffic, ranged=ranged, ranges=traffic.ranges + cold.ranges, ranged_bytes=traffic.ranged_bytes + cold.ranged_bytes)

    def cold_samples(self, walk: Walk, bare: Pace) -> float:
        """Samples of an empty node's first block that are read before their shard is there.

        These samples are spread evenly over the block; the batches that the loader prepares ahead are read before the
        first download begins.
        """
        steps = min(self.order.shuffle_block, self.order.lane_length) / self.order.per_lane
        arrived = self.setup.latency / 1e3
        cold = 0.0
        for size, samples in walk.cold:
            arrived += size / self.download_bandwidth
            cold += samples * min(1.0, (arrived / bare.step + self.setup.ready_batches) / steps)
        return cold

    def first_batch(self, bare: Traffic, local: bool) -> FirstBatch:
        """The first batch of an empty node, which reads nothing else before it."""
        setup, manifest, latency = self.setup, self.order.manifest, self.setup.latency / 1e3
        node = slice(self.ranks[0].start, self.ranks[-1].stop)
        if min(self.order.shuffle_block, self.order.lane_length) * self.order.lanes > _MOST_ORDERED:
            shards = np.unique(np.fromiter(self.order.shards_ahead(0, 0, node, 1), np.int64))[: self.node_samples]
        else:
            shards = np.unique(manifest.locate(self.order.take(0, 0, node))[0])
        sizes = sum(manifest.records[shard].size for shard in shards.tolist())
        indexes = sum(index_bytes(int(count)) for count in manifest.sample_counts[shards])
        ranges = bare.scaled(self.node_samples)
        requests = ranges.ranges + len(shards)
        decoding = self.rank_samples / setup.decode_rate if setup.decode_rate else 0.0
        if local:
            return FirstBatch(decoding, decoding, len(shards))
        limit = requests * setup.nodes / setup.requests_per_second if setup.requests_per_second else 0.0
        opened = latency * 2 + len(manifest.records) * _MANIFEST_ROW / self.bandwidth  # the manifest: is it there, and its bytes
        together = setup.connections * len(self.ranks)
        turns = math.ceil(len(shards) / together) + math.ceil(ranges.ranges / together)
        bandwidth = min(self.bandwidth, self.connection * together)
        ranged = max(turns * latency, limit) + (ranges.ranged_bytes + indexes) / bandwidth + decoding
        whole = (1 + math.ceil(len(shards) / self.streams)) * latency + (sizes + indexes) / self.download_bandwidth + decoding
        return FirstBatch(opened + ranged, opened + whole, len(shards))

    def preemption(self, prediction: Prediction) -> Preemption:
        """The cost of a kill without warning at any moment between two checkpoints, with an empty node after it."""
        setup, pace = self.setup, prediction.now
        between = setup.preemption_minutes * 60
        saved = setup.checkpoint_steps * pace.step
        working = between - setup.restart_seconds - prediction.first_batch.ranged
        lost = setup.checkpoint_steps / 2
        seconds = lost * pace.step + setup.restart_seconds + prediction.first_batch.ranged
        per_step = pace.traffic.bytes / prediction.batches
        again = lost * per_step
        if prediction.cached:
            again += min(float(np.mean(prediction.walk.working_sets)), setup.cache_gb * 1e9)
            bare = prediction.paces[NO_CACHE]
            again += bare.traffic.scaled(self.cold_samples(prediction.walk, bare)).ranged_bytes
        if working < saved:  # each start begins at a checkpoint and is killed before the next
            return Preemption(lost, seconds, 1.0, again, 1.0)
        useful = max(working / pace.step - lost, 0.0) * per_step
        return Preemption(lost, seconds, min(1.0, seconds / between), again, again / max(again + useful, 1.0))
