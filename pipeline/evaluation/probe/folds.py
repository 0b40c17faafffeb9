"""Folds of a cross-validation: disjoint test sets that together hold every picture once, each with every class in its share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold

INNER_FOLDS = 5
"""Folds that the training folds are divided into again, to choose a penalty."""
FEW = 2000
"""Pictures up to which every inner fold is used. Above, one is enough, because it holds 400 pictures or more."""


@dataclass(frozen=True)
class Fold:
    """One division of the rows.

    Attributes:
        training: int64 (n,), rows to learn from, ascending.
        test: int64 (m,), rows to be judged on, ascending.
    """

    training: NDArray[np.int64]
    test: NDArray[np.int64]


def stratified_folds(labels: NDArray[np.int64], count: int, seed: int) -> list[Fold]:
    """Divides rows into folds, by scikit-learn's `StratifiedKFold`; the same for the same labels, count and seed.

    Args:
        labels: int64 (n,), class of every row.
        count: number of folds, 2 or more; every class has that many rows.
        seed: seed of the division.
    """
    splitter = StratifiedKFold(count, shuffle=True, random_state=seed)
    divided = splitter.split(np.zeros((len(labels), 1)), labels)
    return [Fold(training.astype(np.int64), test.astype(np.int64)) for training, test in divided]


def inner_folds(labels: NDArray[np.int64], seed: int) -> list[Fold]:
    """Divides the training rows again, to choose a penalty on them alone.

    Args:
        labels: int64 (n,), class of every training row.
        seed: seed of the division.

    Returns:
        `INNER_FOLDS` folds, or as many as the smallest class has rows; of more than `FEW` rows the first fold alone.
    """
    smallest = int(np.unique(labels, return_counts=True)[1].min())
    folds = stratified_folds(labels, max(2, min(INNER_FOLDS, smallest)), seed)
    return folds if len(labels) <= FEW else folds[:1]
