"""How several data sets share one stream: the slots of a global batch, and the seed of each data set.

A global batch takes a fixed number of samples of each data set, spread evenly over its slots, so that every rank and every batch-norm
group sees the mixture. A rank's slice of the batch is then a contiguous part of each data set's own slots, and a mixture is as exact and
as elastic as one data set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.config import DataConfig, SourceConfig
from pipeline.stream.order import OrderError
from shards.counting import counted
from shards.keyed import key_of

_GRANULES = 8  # a data set's samples of a batch are a multiple of an eighth of the lanes, so that it has that many lanes of its own
_DATASET_SEED = 4  # purpose of random numbers, beside those of crop, mask and model

Position = tuple[int, int]
"""(epoch, samples consumed) of one data set."""


def granule(datasets: int, global_batch: int, lanes: int) -> int:
    """The number that every data set's samples of a batch are a multiple of, and its number of lanes; all lanes for a single data set."""
    canonical = math.gcd(lanes, global_batch)
    if datasets == 1:
        return canonical
    return max(step for step in range(1, max(1, canonical // _GRANULES) + 1) if canonical % step == 0)


def samples_per_dataset(weights: Sequence[float], global_batch: int, lanes: int) -> list[int]:
    """Divides a global batch among the data sets by their weights, in steps of an eighth of the lanes.

    Args:
        weights: weights of the data sets, above 0, in any unit.
        global_batch: samples a step over all ranks.
        lanes: lanes of the whole stream.

    Raises:
        OrderError: the batch has no room for so many data sets.
    """
    step = granule(len(weights), global_batch, lanes)
    units = global_batch // step
    if units < len(weights):
        raise OrderError(
            f"a global batch of {global_batch} has no room for {counted(len(weights), 'data set')}: raise training.global_batch"
        )
    exact = [weight / sum(weights) * units for weight in weights]
    counts = [max(1, int(wanted)) for wanted in exact]
    while sum(counts) != units:
        change = 1 if sum(counts) < units else -1
        free = [number for number, count in enumerate(counts) if count + change >= 1]
        counts[max(free, key=lambda number: change * (exact[number] - counts[number]))] += change
    return [count * step for count in counts]


def spread(counts: Sequence[int]) -> list[NDArray[np.int64]]:
    """Spreads the samples of each data set evenly over the global batch.

    Args:
        counts: samples of each data set.

    Returns:
        Slots of each data set in the global batch, int64 (count,), ascending.
    """
    keys = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    slots = np.empty(len(keys), np.int64)
    slots[np.argsort(keys, kind="stable")] = np.arange(len(keys))
    return np.split(slots, np.cumsum(counts)[:-1])


def named_sources(data: DataConfig) -> Mapping[str, SourceConfig]:
    """The data sets of a configuration by their names in `data.sources`; the only one has the empty name."""
    return data.sources or {"": SourceConfig(shards=data.shards)}


def dataset_seed(seed: int, number: int) -> int:
    """The seed of the order, crops and masks of a data set.

    Args:
        seed: seed of the run, which is also the first data set's.
        number: number of the data set in `data.sources`, from 0.
    """
    return seed if number == 0 else key_of(seed, _DATASET_SEED, number) >> 1
