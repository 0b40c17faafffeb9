"""The quality of the shuffle: how many shards a batch draws from, and how often neighbours of a shard stay together.

Real batches of the real order are counted if permuting their blocks is cheap; otherwise the figures are expectations over all permutations
of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pipeline.simulation.blocks import NodeBlocks
from pipeline.stream.order import SampleOrder

PERMUTED = 8_000_000
"""Most samples that are permuted to count batches."""
_MOST_BATCHES, _WHOLE_EPOCH = 64, 2000  # most batches that are counted in a long epoch; most batches of an epoch that is counted whole
_EXPECTED_BLOCKS = 4


@dataclass(frozen=True)
class Quality:
    """The shuffle of one epoch.

    Attributes:
        shards_per_batch: least, mean and most different shards that a global batch draws from.
        perfect_shards_per_batch: the mean of a perfect shuffle.
        meeting: probability that two samples of a shard are in the same batch.
        perfect_meeting: the same for a perfect shuffle, whose end fills no batch either.
        moved: mean distance that the shuffle of a block moves a sample, in samples of the lane.
        perfect_moved: the same for a perfect shuffle of the data set.
        batches: batches that were counted; 0 if the figures are expectations.
        exact: True if every batch of the epoch was counted.
    """

    shards_per_batch: tuple[float, float, float]
    perfect_shards_per_batch: float
    meeting: float
    perfect_meeting: float
    moved: float
    perfect_moved: float
    batches: int
    exact: bool


def quality(order: SampleOrder) -> Quality:
    """Measures the first epoch of an order."""
    counts = order.manifest.sample_counts
    total, batch, batches = order.manifest.total_samples, order.global_batch_size, order.batches_per_epoch()
    pairs = float((counts.astype(np.float64) * (counts - 1)).sum())
    block = min(order.shuffle_block, order.lane_length)
    batch_cost = max(block * order.lanes, batch)
    epoch_cost = max(-(-order.lane_length // block) * block * order.lanes, batch)
    chosen = range(batches)
    if batches > _WHOLE_EPOCH or epoch_cost > PERMUTED:
        affordable = min(_MOST_BATCHES, batches, PERMUTED // batch_cost)
        chosen = np.unique(np.linspace(0, batches - 1, affordable).astype(int)).tolist() if affordable else []
    if len(chosen):
        met, different = [], []
        for index in chosen:
            shards, _ = order.manifest.locate(order.global_batch(0, index))
            _, together = np.unique(shards, return_counts=True)
            different.append(len(together))
            met.append(float((together * (together - 1)).sum()))
        spread = (float(min(different)), float(np.mean(different)), float(max(different)))
        meetings = float(np.mean(met))
    else:
        mean, meetings = _expected(order)
        spread = (mean, mean, mean)
    sizes, alike = np.unique(counts, return_counts=True)
    # probability that a sample is in a batch at all; another one is then in the same batch with (batch - 1) / (total - 1)
    kept = batches * batch / total
    return Quality(
        spread,
        sum(often * (1 - missed(total, int(size), batch)) for size, often in zip(sizes.tolist(), alike.tolist(), strict=True)),
        meetings * batches / pairs if pairs else 0.0,
        kept * (batch - 1) / (total - 1) if total > 1 and pairs else 0.0,
        _moved(order.lane_length, order.shuffle_block),
        _moved(total, total),
        len(chosen),
        len(chosen) == batches,
    )


def missed(total: int, held: int, drawn: int) -> float:
    """Probability that `drawn` of `total` samples, drawn without replacement, contain none of the `held` ones."""
    if drawn > total - held:
        return 0.0
    logarithm = (
        math.lgamma(total - held + 1) - math.lgamma(total - held - drawn + 1) - math.lgamma(total + 1) + math.lgamma(total - drawn + 1)
    )
    return min(1.0, math.exp(logarithm))


def _expected(order: SampleOrder) -> tuple[float, float]:
    """Expected shards of a batch, and expected ordered pairs of one shard in it, over the permutations of a block's samples."""
    blocks = NodeBlocks(order, slice(0, order.global_batch_size))
    drawn = order.per_lane
    different = met = 0.0
    numbers = np.unique(np.linspace(0, max(0, blocks.count - 2), _EXPECTED_BLOCKS).astype(int)).tolist()
    for number in numbers:
        (needs,) = blocks.needs(0, number, number + 1)
        held: dict[int, int] = {}
        for need in needs:
            held[need.lane] = held.get(need.lane, 0) + need.rows
        absent: dict[int, float] = {}
        for need in needs:
            length, count = held[need.lane], need.rows
            taken = min(drawn, length)
            absent[need.shard] = absent.get(need.shard, 1.0) * missed(length, count, taken)
            if length > 1:
                met += count * (count - 1) * taken * (taken - 1) / (length * (length - 1))
        different += sum(1 - chance for chance in absent.values())
    return different / len(numbers), met / len(numbers)


def _moved(length: int, block: int) -> float:
    """Mean distance that a random permutation of consecutive blocks moves: (n * n - 1) / 3n in a block of n."""

    def total(sizes: Iterable[int]) -> float:
        return sum((size * size - 1) / 3 for size in sizes)

    full, rest = divmod(length, min(block, length))
    return (full * total([min(block, length)]) + (total([rest]) if rest else 0.0)) / length
