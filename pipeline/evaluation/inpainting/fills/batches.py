"""Batches of one size for a network, so that a picture's result has the same bits wherever the picture stands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.evaluation.inpainting.fills.errors import FillError

BATCH = 32
"""Pictures that a network sees at once. A last batch is filled up with copies, because a network's bits may depend on its batch's size, as
those of the inpainting recipe's generator do on a CPU."""


def in_batches(compute: Callable[..., Tensor], *arrays: NDArray[Any]) -> NDArray[np.float32]:
    """Computes a network's output for any number of pictures.

    Args:
        compute: function of BATCH rows of each array, as tensors, that gives BATCH rows.
        arrays: arrays with a row for each picture, at least one row.

    Returns:
        float32, a row for each picture.

    Raises:
        FillError: a value is not finite.
    """
    count, found = len(arrays[0]), []
    for start in range(0, count, BATCH):
        rows = np.minimum(np.arange(start, start + BATCH), count - 1)
        output = compute(*(torch.from_numpy(each[rows]) for each in arrays))
        found.append(output[: count - start].float().cpu().numpy())
    values = np.concatenate(found)
    if not np.isfinite(values).all():
        raise FillError("the network's output is not finite. Has its training diverged? Choose an earlier checkpoint")
    return values
