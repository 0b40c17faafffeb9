"""A batch before a byte is read: which sample fills which slot, where the sample lies, and the random numbers drawn for it.

In: sample ids as `pipeline.stream.order` gives them. Out: `PlannedSamples` of each data set and the `BatchPlan` of all of them, pure
functions of seed, epoch and ids. A slot is an index in the rank's slice of the global batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.stream.decode.crop import Crop, draws_of
from pipeline.stream.mixture import Position
from shards.dataset.manifest import Manifest
from shards.keyed import derived_keys, key_of, sample_keys

_MASK = 2  # purpose of the mask's random numbers, beside those of the crop and the model
_BATCH_MASK = 7  # purpose of those of a mask for a whole batch, beside those of `fixed`


class PlannedSample(NamedTuple):
    """One sample of a plan; `PlannedSamples` explains the fields."""

    slot: int
    sample_id: int
    shard: int
    row: int
    key: int
    mask_key: int
    draws: list[float]


class PlannedSamples(NamedTuple):
    """Samples of one data set, one column for each field of `PlannedSample`.

    Attributes:
        slots: int64 (n,), slots that the samples fill.
        sample_ids: int64 (n,), ids of the samples in the whole stream.
        shards: int64 (n,), shards of the samples in the data set's manifest.
        rows: int64 (n,), rows of the samples in their shards' indexes.
        keys: uint64 (n,), keys of `shards.keyed.sample_keys`.
        mask_keys: uint64 (n,), keys that the masks are drawn from.
        draws: float64 (n, numbers), numbers of `draws_of` for the crops.
    """

    slots: NDArray[Any]
    sample_ids: NDArray[Any]
    shards: NDArray[Any]
    rows: NDArray[Any]
    keys: NDArray[Any]
    mask_keys: NDArray[Any]
    draws: NDArray[Any]

    def some(self, chosen: NDArray[np.int64]) -> PlannedSamples:
        """The samples at the given indexes of the columns, in that order."""
        return PlannedSamples(*(column[chosen] for column in self))

    def each(self) -> list[PlannedSample]:
        """The samples one by one, as plain Python numbers."""
        return list(map(PlannedSample._make, zip(*(column.tolist() for column in self), strict=True)))


@dataclass(frozen=True)
class BatchPlan:
    """A rank's slice of one global batch.

    Attributes:
        number: number of the batch since the loader was made, from 1.
        index: index of the batch in the first data set's epoch, from 0.
        positions: position of each data set where the batch begins.
        parts: samples of each data set; together they fill every slot once.
        mask_key: key of the one mask of all samples, on every rank; None where each sample has its own.
    """

    number: int
    index: int
    positions: tuple[Position, ...]
    parts: tuple[PlannedSamples, ...]
    mask_key: int | None = None

    @property
    def epoch(self) -> int:
        """Epoch of the first data set, from 0."""
        return self.positions[0][0]


def batch_mask_key(seed: int, position: Position) -> int:
    """Returns the key of the one mask of a global batch, which is the same on every rank.

    Args:
        seed: seed of the run.
        position: position of the first data set where the batch begins.
    """
    return key_of(seed, *position, _BATCH_MASK)


def plan_samples(
    manifest: Manifest, seed: int, epoch: int, first_id: int, crop: Crop, slots: NDArray[np.int64], ids: NDArray[np.int64]
) -> PlannedSamples:
    """Draws and looks up all that the threads need to know of some samples; for many at once, which costs next to nothing.

    Args:
        manifest: manifest of the samples' data set.
        seed: seed of the data set.
        epoch: epoch of the data set, from 0.
        first_id: id of the data set's first sample in the whole stream.
        crop: kind of the crops.
        slots: int64 (n,), slots that the samples fill.
        ids: int64 (n,), ids of the samples in the manifest.
    """
    keys = sample_keys(seed, epoch, ids)
    return PlannedSamples(slots, first_id + ids, *manifest.locate(ids), keys, derived_keys(keys, _MASK), draws_of(keys, crop))
