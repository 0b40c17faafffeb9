"""How several data sets share one stream: the slots of a global batch, and the seed of each.

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
from shards.keyed import key_of

_GRANULES = 8  # a source's share is a multiple of an eighth of the lanes, so that it has that many lanes of its own
_SOURCE_SEED = 4  # purpose of random numbers, beside the loader's

Position = tuple[int, int]
"""(epoch, samples consumed) of one source."""


def granule(sources: int, global_batch: int, lanes: int) -> int:
    """What every source's share is a multiple of, and its number of lanes; all of them for a source alone."""
    canonical = math.gcd(lanes, global_batch)
    if sources == 1:
        return canonical
    return max(step for step in range(1, max(1, canonical // _GRANULES) + 1) if canonical % step == 0)


def shares(weights: Sequence[float], global_batch: int, lanes: int) -> list[int]:
    """How many samples of each source a global batch takes: as the weights say, in steps of an eighth of the lanes.

    Args:
        weights: above 0, in any unit.
        global_batch: samples a step over all ranks.
        lanes: of the whole stream.

    Raises:
        OrderError: more sources than the batch has room for.
    """
    step = granule(len(weights), global_batch, lanes)
    units = global_batch // step
    if units < len(weights):
        raise OrderError(f"a global batch of {global_batch} has no room for {len(weights)} sources: raise training.global_batch")
    exact = [weight / sum(weights) * units for weight in weights]
    counts = [max(1, int(wanted)) for wanted in exact]
    while sum(counts) != units:
        change = 1 if sum(counts) < units else -1
        free = [place for place, count in enumerate(counts) if count + change >= 1]
        counts[max(free, key=lambda place: change * (exact[place] - counts[place]))] += change
    return [count * step for count in counts]


def spread(counts: Sequence[int]) -> list[NDArray[np.int64]]:
    """The places of each source in the global batch, evenly spread.

    Args:
        counts: samples of each source.

    Returns:
        For each source int64 (count,), ascending.
    """
    keys = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    places = np.empty(len(keys), np.int64)
    places[np.argsort(keys, kind="stable")] = np.arange(len(keys))
    return np.split(places, np.cumsum(counts)[:-1])


def named_sources(data: DataConfig) -> Mapping[str, SourceConfig]:
    """The data sets of a configuration by name; the only one is called by the empty name."""
    return data.sources or {"": SourceConfig(shards=data.shards)}


def source_seed(seed: int, number: int) -> int:
    """The seed of the order, crops and masks of a run's source; the first one's is the run's own."""
    return seed if number == 0 else key_of(seed, _SOURCE_SEED, number) >> 1
