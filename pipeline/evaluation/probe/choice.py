"""Choices that a classifier makes on its training folds alone: of a penalty, of a number of neighbours, of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

End = Literal["", "lower", "upper"]
_MATTERS = 1e-3
"""Least fraction of the error by which an end must be better than its neighbour to be reported: many curves only level off."""


@dataclass(frozen=True)
class Outcome:
    """A classifier's answer on one test fold.

    Attributes:
        predictions: int64 (test pictures,), predicted classes.
        chosen: penalty or number of neighbours that was chosen on the training folds.
        inner_accuracy: accuracy within the training folds with the chosen value, in [0, 1], by which a layer is chosen.
        at_end: the end of the grid at which the chosen value lies, if a longer grid might hold a better one; empty otherwise.
    """

    predictions: NDArray[np.int64]
    chosen: float
    inner_accuracy: float
    at_end: End = ""


def best_of(errors: Sequence[float]) -> int:
    """Index of the smallest error; the first of equals."""
    return int(np.argmin(np.asarray(errors)))


def end_of_grid(errors: Sequence[float], least: float = 0.0) -> End:
    """The end at which the smallest error lies, if it is smaller there than beside it by more than a thousandth; empty otherwise.

    Args:
        errors: errors of a grid of ascending values.
        least: least difference between the end and its neighbour that counts, where a thousandth of the error is less.
    """
    best = best_of(errors)
    if len(errors) < 2 or 0 < best < len(errors) - 1:
        return ""
    beside = errors[1] if best == 0 else errors[-2]
    if beside - errors[best] <= max(least, _MATTERS * abs(beside)):
        return ""
    return "lower" if best == 0 else "upper"


def chosen_layer(inner_accuracies: Sequence[float]) -> int:
    """Index of the layer with the highest accuracy within the training folds; the first of equals, which lies nearest to the pixels."""
    return best_of([-accuracy for accuracy in inner_accuracies])
