"""The samples of a data set that a run never trains on, so that it can be evaluated on them: a pure function of the manifest.

The ids of a data set are cut into as many equal strata as samples are held back, and a key draws one sample of each stratum. So the
held-back samples spread evenly over shards and classes, and finding them costs as much as there are of them, however large the data set
is. All other samples are numbered densely; the order of a run is made of those numbers. The seed of a run plays no part, so that runs with
other seeds are judged on the same pictures, and a data set that a mixture names twice holds back the same ones under both names.
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from shards.dataset.manifest import Manifest
from shards.keyed import key_of, sample_keys

_HELD_BACK = 5  # purpose of random numbers, beside those of the order and of `mixture`
_WANTED = 256  # samples that tell something, if the data set has ten times as many
_MOST = 50_000  # as many as ImageNet's validation set: more samples would say nothing more
_TOO_SMALL = 80  # samples of a data set that can spare none


def held_back_count(total: int, fraction: float) -> int:
    """Counts the samples of a data set that are held back: the fraction, but 256 where they are less than a tenth, and at most 50,000.

    Args:
        total: samples of the data set; of fewer than 80, none is held back.
        fraction: fraction of them to hold back, 0 to 0.5; 0 holds none back.
    """
    if fraction <= 0 or total < _TOO_SMALL:
        return 0
    return min(max(math.ceil(fraction * total), min(_WANTED, total // 10)), _MOST)


def held_back_ids(manifest: Manifest, count: int) -> NDArray[np.int64]:
    """Draws the held-back samples of a data set.

    Args:
        manifest: manifest of the data set.
        count: number of samples to draw, at most all of them.

    Returns:
        int64 (count,), ids of the samples, ascending.
    """
    edges = np.arange(count + 1, dtype=np.int64) * manifest.total_samples // max(1, count)  # below 2**63 for 50,000 samples of 10**14
    draws = sample_keys(key_of(manifest.fingerprint, _HELD_BACK) >> 1, 0, np.arange(count))
    found: NDArray[np.int64] = edges[:-1] + (draws % np.diff(edges).astype(np.uint64)).astype(np.int64)
    return found


class TrainedSamples:
    """The samples of a data set that are not held back, numbered from 0 without gaps.

    Args:
        manifest: manifest of the data set.
        held_back: number of samples that are held back.

    Attributes:
        held_back: ids of the held-back samples, int64 (held_back,), ascending.
    """

    def __init__(self, manifest: Manifest, held_back: int = 0) -> None:
        self.manifest = manifest
        self.held_back = held_back_ids(manifest, held_back) if held_back else np.empty(0, np.int64)
        self._before = self.held_back - np.arange(held_back)  # trained samples before each held-back one

    @property
    def total(self) -> int:
        """Number of the samples."""
        return self.manifest.total_samples - len(self.held_back)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Number of the samples in each shard, int64 (shards,)."""
        if not len(self.held_back):
            return self.manifest.sample_counts
        return self.manifest.sample_counts - np.diff(np.searchsorted(self.held_back, self.manifest.starts))

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Number of the first sample of each shard, and the number of all samples at the end: int64 (shards + 1,)."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.counts)])

    def ids(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Turns numbers of samples, int64 of any shape, into ids of the data set."""
        if not len(self.held_back):
            return numbers
        return numbers + np.searchsorted(self._before, numbers, side="right")
