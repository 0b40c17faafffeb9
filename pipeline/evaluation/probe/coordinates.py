"""Coordinates of the pictures for linear classifiers: no more of them than there are training pictures.

A linear classifier with a penalty on the squared weights needs the inner products of its training pictures alone. So 9,216 features of 176
pictures become 176 coordinates with the same inner products: the classifier and its penalty stay the same to rounding, and cost a fiftieth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.evaluation.probe.table import Standardised

_JITTER = 1e-11  # of the mean square: makes the matrix of inner products, whose rank is not full, one that has a Cholesky factor


@dataclass(frozen=True)
class Coordinates:
    """Pictures as a linear classifier sees them.

    Attributes:
        training: float64 (n, p), training pictures; p is the smaller one of n and the number of features.
        test: float64 (m, p), test pictures.
        features: number of features, to which penalties are relative.
    """

    training: Tensor
    test: Tensor
    features: int


def coordinates(features: Standardised, training: NDArray[np.int64], test: NDArray[np.int64]) -> Coordinates:
    """Finds coordinates of the pictures that keep all inner products with training pictures.

    Args:
        features: features, standardised over the training rows.
        training: int64 (n,), rows of the training pictures, ascending.
        test: int64 (m,), rows of the test pictures, ascending.
    """
    width = features.table.width
    if len(training) > width:
        return Coordinates(features.whole(training), features.whole(test), width)
    learnt = features.whole(training)
    products = learnt @ learnt.T
    jitter = _JITTER * max(1.0, float(products.diagonal().mean()))
    factor = torch.linalg.cholesky(products + jitter * torch.eye(len(products), dtype=products.dtype, device=products.device))
    across = torch.empty(len(test), len(training), dtype=products.dtype, device=products.device)
    for places, rows in features.chunks(test):
        across[places] = rows @ learnt.T
    return Coordinates(factor, torch.linalg.solve_triangular(factor, across.T, upper=False).T.contiguous(), width)


def memory(features: int, training: int, test: int) -> int:
    """Bytes that the coordinates of so many pictures take, with what is needed to find them."""
    each = min(features, training)
    return 8 * ((training + test) * each + (2 * each * each if training > features else training * (features + 2 * training)))
