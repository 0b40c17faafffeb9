"""The digest by which the history names the samples of a step, whatever the number of ranks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shards.keyed import mix_array


def samples_digest(sample_ids: NDArray[np.int64]) -> int:
    """Returns a signed 64-bit number that, summed over the ranks, is the same for the same samples of a step.

    Args:
        sample_ids: int64 (n,), ids of one rank's samples.
    """
    digests = mix_array(sample_ids.astype(np.uint64))
    return int(digests.view(np.int64).sum())  # wraps around, as the sum over the ranks does


def samples_text(digest: int) -> str:
    """Formats a digest of samples as the history stores it: 16 hexadecimal digits."""
    return f"{digest & (2**64 - 1):016x}"
