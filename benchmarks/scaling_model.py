"""The model behind docs/scaling.md: seconds of a step on many GPUs, and what the run asks of the store. Pure functions of given constants.

A step is computation, then the part of the gradients' all-reduce that does not hide behind the backward pass, then a few small sums that
wait. Beside all of it the loop sums four integers over the processors of all ranks, which only counts where it takes longer than the step.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

SENT = {"all_reduce": 2, "reduce_scatter": 1, "all_gather": 1, "reduce": 1, "broadcast": 1}
"""Collective -> how often each rank sends its whole tensor, times (ranks - 1) / ranks, where a ring does it."""


@dataclass(frozen=True)
class Cluster:
    """The constants of a machine.

    Attributes:
        node_bandwidth: bytes a second from one GPU to the others of its node, one direction.
        network_bandwidth: bytes a second out of one node, one direction.
        latency: seconds of one hop of a collective between GPUs.
        host_latency: seconds of one hop of a sum between processors, over TCP.
        gpus_per_node: GPUs of a node.
    """

    node_bandwidth: float
    network_bandwidth: float
    latency: float
    host_latency: float
    gpus_per_node: int

    def bandwidth(self, ranks: int) -> float:
        """Returns the bandwidth of a ring; between nodes there is one ring for each GPU of a node, and all share the node's network."""
        return self.node_bandwidth if ranks <= self.gpus_per_node else min(self.node_bandwidth, self.network_bandwidth)


@dataclass(frozen=True)
class Bucket:
    """Gradients that are summed over the ranks together.

    Attributes:
        size: bytes.
        ready: fraction of the backward pass after which the gradients are complete.
    """

    size: int
    ready: float


@dataclass(frozen=True)
class Turn:
    """One player's backward pass.

    Attributes:
        backward: fraction of the step's computation that the backward pass takes.
        buckets: buckets in the order in which they are summed.
    """

    backward: float
    buckets: tuple[Bucket, ...]


@dataclass(frozen=True)
class Work:
    """One recipe's step.

    Attributes:
        fixed: seconds of a step that do not depend on its pictures.
        picture: seconds of computation a picture.
        turns: turns of the players.
        small_sums: sizes in bytes of the sums over the GPUs that every rank waits for.
        host_sums: sums over the processors, beside the computation.
    """

    fixed: float
    picture: float
    turns: tuple[Turn, ...]
    small_sums: tuple[int, ...] = ()
    host_sums: int = 1

    def compute(self, pictures: float) -> float:
        """Returns the seconds that one rank computes."""
        return self.fixed + pictures * self.picture


def sent_bytes(kind: str, size: float, ranks: int) -> float:
    """Returns the bytes that each rank sends in one collective of a ring.

    Args:
        kind: key of SENT.
        size: bytes of the whole tensor.
        ranks: number of ranks.
    """
    return SENT[kind] * size * (ranks - 1) / ranks


def zero_bytes(stage: int, size: float, ranks: int) -> float:
    """Returns the bytes that each rank sends in a step of one micro-batch.

    Args:
        stage: stage of ZeRO; 0 is DDP.
        size: bytes of all gradients, as many as those of the weights.
        ranks: number of ranks.
    """
    if stage == 0:
        return sent_bytes("all_reduce", size, ranks)
    gathers = 2 if stage == 3 else 1  # stage 3 gathers the weights in the forward and in the backward pass
    return sent_bytes("reduce_scatter", size, ranks) + gathers * sent_bytes("all_gather", size, ranks)


def all_reduce_seconds(size: float, ranks: int, cluster: Cluster) -> float:
    """Returns the seconds of an all-reduce: the bytes of a ring, and the hops of a tree up and down."""
    if ranks == 1:
        return 0.0
    return sent_bytes("all_reduce", size, ranks) / cluster.bandwidth(ranks) + 2 * math.ceil(math.log2(ranks)) * cluster.latency


def exposed_seconds(buckets: Sequence[Bucket], backward: float, ranks: int, cluster: Cluster) -> float:
    """Returns the seconds by which the sums of the buckets, one after another, outlast the backward pass.

    Args:
        buckets: buckets in the order in which they are summed.
        backward: seconds of the backward pass.
        ranks: number of ranks.
        cluster: constants of the machine.
    """
    end = 0.0
    for bucket in buckets:
        end = max(end, bucket.ready * backward) + all_reduce_seconds(bucket.size, ranks, cluster)
    return max(0.0, end - backward)


def host_seconds(work: Work, ranks: int, cluster: Cluster) -> float:
    """Returns the seconds of the sums between processors: gloo's ring, whose hops follow one another."""
    return work.host_sums * 2 * (ranks - 1) * cluster.host_latency


def step_seconds(work: Work, pictures: float, ranks: int, cluster: Cluster) -> float:
    """Returns the seconds of a step.

    Args:
        work: the recipe's step.
        pictures: pictures of each rank.
        ranks: number of ranks.
        cluster: constants of the machine.
    """
    compute = work.compute(pictures)
    exposed = sum(exposed_seconds(turn.buckets, turn.backward * compute, ranks, cluster) for turn in work.turns)
    small = sum(all_reduce_seconds(size, ranks, cluster) for size in work.small_sums)
    return max(compute + exposed + small, host_seconds(work, ranks, cluster))


def weak_efficiency(work: Work, pictures: float, ranks: int, cluster: Cluster) -> float:
    """Returns the speed of each rank over that of one alone, with the same pictures a rank."""
    return work.compute(pictures) / step_seconds(work, pictures, ranks, cluster)


def strong_efficiency(work: Work, batch: int, ranks: int, cluster: Cluster, unit: int = 1) -> float | None:
    """Returns the speed of each rank over that of one alone, with the same global batch; None where the batch has fewer groups than ranks.

    Args:
        work: the recipe's step.
        batch: pictures of the global batch.
        ranks: number of ranks.
        cluster: constants of the machine.
        unit: pictures that ranks can't divide, a batch-norm group; the rank that has most of them sets the pace.
    """
    if batch // unit < ranks:
        return None
    largest = -(-batch // unit // ranks) * unit
    return work.compute(batch) / (ranks * step_seconds(work, largest, ranks, cluster))


def cache_hits(shards: int, kept: int, nodes: int, epochs: int, seed: int = 0) -> float:
    """Returns the fraction of its shards that a node finds in its cache over a run, whose epochs deal all shards out anew.

    The least recently used shard goes first. For one node, after the first epoch, that is c + (1 - c) ln(1 - c), where c is the fraction of
    the data set that fits: less than c, because a shuffled pass begins with shards that the pass before has already pushed out.

    Args:
        shards: shards of the data set.
        kept: shards that fit into the cache of a node.
        nodes: number of nodes.
        epochs: epochs of the run, the first of which finds an empty cache.
        seed: seed of the orders.
    """
    draw, cache = random.Random(seed), OrderedDict[int, None]()
    part, hits = max(1, shards // nodes), 0
    for _ in range(epochs):
        for shard in draw.sample(range(shards), part):
            hits += shard in cache
            cache[shard] = None
            cache.move_to_end(shard)
            if len(cache) > kept:
                cache.popitem(last=False)
    return hits / (part * epochs)
