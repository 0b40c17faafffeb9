"""Intervals of accuracies over pictures, of the difference of two classifiers on the same pictures, and of the mean of any figure.

Every picture is judged once, in the fold that tests it, by a classifier that never saw it. The intervals say how far the figures would
move with other pictures of the same kind. They take the training folds as given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Interval:
    """A figure with the interval around it; accuracies are in [0, 1], their differences in [-1, 1]."""

    value: float
    lower: float
    upper: float

    @property
    def half_width(self) -> float:
        """Half of the interval's length."""
        return (self.upper - self.lower) / 2


def accuracy(right: NDArray[np.bool_], level: float = 0.95) -> Interval:
    """The fraction of pictures that were classified rightly, with Wilson's score interval.

    Args:
        right: bool (pictures,).
        level: probability of the interval.
    """
    count, z = len(right), NormalDist().inv_cdf((1 + level) / 2)
    share = float(right.mean())
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    spread = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Interval(share, max(0.0, middle - spread), min(1.0, middle + spread))


def difference(right: NDArray[np.bool_], other: NDArray[np.bool_], level: float = 0.95) -> Interval:
    """The accuracy of a classifier less another one's on the same pictures, with the paired interval of Agresti and Min (2005).

    Only pictures on which the two disagree tell them apart. The interval is Wald's after half a picture was added to each of the four
    outcomes, which keeps it honest where few pictures disagree.

    Args:
        right: bool (pictures,), True where the first classifier was right.
        other: bool (pictures,), the same of the other one.
        level: probability of the interval.
    """
    count, z = len(right) + 2, NormalDist().inv_cdf((1 + level) / 2)
    won, lost = float((right & ~other).sum()) + 0.5, float((other & ~right).sum()) + 0.5
    middle = (won - lost) / count
    spread = z * math.sqrt(won + lost - (won - lost) ** 2 / count) / count
    value = float(right.mean()) - float(other.mean())
    return Interval(value, max(-1.0, middle - spread), min(1.0, middle + spread))


def mean(values: NDArray[np.float64], level: float = 0.95) -> Interval:
    """The mean of a figure over pictures, with Student's interval: how far the mean would move with other pictures of the same kind.

    Args:
        values: float64 (pictures,), at least one; with one the interval is infinite.
        level: probability of the interval.
    """
    count, value = len(values), float(values.mean())
    if count == 1:
        return Interval(value, -math.inf, math.inf)
    spread = student((1 + level) / 2, count - 1) * float(values.std(ddof=1)) / math.sqrt(count)
    return Interval(value, value - spread, value + spread)


def student(probability: float, degrees: int) -> float:
    """The quantile of Student's distribution, to about a thousandth for the usual probabilities.

    One and two degrees of freedom have closed forms; for more, the series of Fisher and Cornish (Abramowitz and Stegun 26.7.5).

    Args:
        probability: probability below the quantile, 0 to 1.
        degrees: degrees of freedom, at least 1.
    """
    if degrees == 1:
        return math.tan(math.pi * (probability - 0.5))
    if degrees == 2:
        return (2 * probability - 1) * math.sqrt(1 / (2 * probability * (1 - probability)))
    z = NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / degrees**power for power, term in enumerate(terms))
