"""Any number of steps in a few hundred buckets: the mean of each, and the least and the greatest value, so that no spike is smoothed away.

The width of a bucket is a power of two steps. When there are too many buckets, neighbours are joined and the width doubles. Memory is
therefore bounded, one pass is enough, and the result does not depend on the order of the steps.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

MOST_BUCKETS = 320
"""Largest number of buckets of a curve; a long run uses between half of them and all of them."""
MOST_CURVES = 32
"""Largest number of curves of a run, because a damaged record could name any number."""
_LARGEST = 1e30  # larger values count as infinite
_WAITING = 2048  # steps that are sorted into buckets at once

Name = tuple[str, ...]


@dataclass
class Bucket:
    """Values of neighbouring steps.

    Attributes:
        count: number of finite values.
        total: sum of the finite values.
        least, greatest: extremes of the finite values; infinite while there are none.
        nonfinite: number of values that are NaN, infinite or nearly infinite.
    """

    count: int = 0
    total: float = 0.0
    least: float = math.inf
    greatest: float = -math.inf
    nonfinite: int = 0

    @property
    def mean(self) -> float:
        """Mean of the finite values; NaN where there are none."""
        return self.total / self.count if self.count else math.nan

    def join(self, other: Bucket) -> None:
        """Adds the values of another bucket."""
        self.count += other.count
        self.nonfinite += other.nonfinite
        self.total += other.total
        self.least, self.greatest = min(self.least, other.least), max(self.greatest, other.greatest)


Buckets = dict[int, Bucket]
"""Index of the bucket -> its values. Bucket i holds the steps from i * width to (i + 1) * width - 1."""


@dataclass
class Curve:
    """One quantity over the steps.

    Attributes:
        counted: values of the steps that count.
        undone: values of steps that a later attempt took back.
        latest: value of the last step that counts, in the order of the history.
    """

    counted: Buckets = field(default_factory=dict)
    undone: Buckets = field(default_factory=dict)
    latest: float = math.nan


class Curves:
    """All quantities of a run, by name, over the same buckets. Added steps are in the buckets after `flush` or `settle`.

    Attributes:
        width: number of steps of a bucket.
        first, last: least and greatest step that was added; 0 while there is none.
        left_out: quantities were left out because there were more than `MOST_CURVES`.
    """

    def __init__(self) -> None:
        self.width, self.first, self.last, self.left_out = 1, 0, 0, False
        self._curves: dict[Name, Curve] = {}
        self._top: int | None = None
        self._steps: list[int] = []
        self._counts: list[bool] = []
        self._waiting: dict[Name, tuple[list[int], list[float]]] = {}

    def __getitem__(self, name: Name) -> Curve:
        return self._curves[name]

    def names(self, *beginning: str) -> list[Name]:
        """Names that begin with the given parts, in the order in which they were first added."""
        return [name for name in self._curves if name[: len(beginning)] == beginning]

    def add(self, step: int, counts: bool, values: Iterable[tuple[Name, float]]) -> None:
        """Adds a step.

        Args:
            step: number of the step, at least 0.
            counts: False where a later attempt took the step back.
            values: (name, value) pairs; a value may be infinite or NaN.
        """
        row = len(self._steps)
        self._steps.append(step)
        self._counts.append(counts)
        for name, value in values:
            waiting = self._waiting.get(name)
            if waiting is None:
                if len(self._curves) >= MOST_CURVES:
                    self.left_out = True
                    continue
                self._curves[name], waiting = Curve(), ([], [])
                self._waiting[name] = waiting
            waiting[0].append(row)
            waiting[1].append(value)
        if row + 1 >= _WAITING:
            self.flush()

    def flush(self) -> None:
        """Sorts the steps that were added since the last flush into the buckets."""
        if not self._steps:
            return
        steps, counts = np.array(self._steps, np.int64), np.array(self._counts, bool)
        self._reach(int(steps.min()), int(steps.max()))
        indexes = steps // self.width
        for name, (rows, values) in self._waiting.items():
            if not rows:
                continue
            curve, own, found = self._curves[name], np.array(rows), np.array(values, np.float64)
            counted = counts[own]
            _fill(curve.counted, indexes[own][counted], found[counted])
            _fill(curve.undone, indexes[own][~counted], found[~counted])
            if counted.any():
                curve.latest = float(found[counted][-1])
            rows.clear()
            values.clear()
        self._steps.clear()
        self._counts.clear()

    def settle(self) -> None:
        """Finishes the curves after the last step. A last bucket with less than half of its steps is joined to the one before it, because
        the mean of a few steps beside means of many looks like a jump."""
        self.flush()
        top = self.last // self.width
        if top and 2 * (self.last % self.width + 1) < self.width:
            for curve in self._curves.values():
                for buckets in (curve.counted, curve.undone):
                    if top in buckets:
                        few = buckets.pop(top)
                        buckets.setdefault(top - 1, Bucket()).join(few)
            self._top = top - 1

    def steps(self, index: int) -> tuple[int, int]:
        """Returns the first and the last step of a bucket."""
        return index * self.width, self.last if index >= self.top else (index + 1) * self.width - 1

    @property
    def top(self) -> int:
        """Index of the last bucket."""
        return self.last // self.width if self._top is None else self._top

    def _reach(self, first: int, last: int) -> None:
        """Extends the range of steps, and doubles the width of the buckets until there are few enough."""
        self.first = min(self.first, first) if self.last else first
        self.last = max(self.last, last)
        while self.last // self.width >= MOST_BUCKETS:
            self.width *= 2
            for curve in self._curves.values():
                curve.counted, curve.undone = _halved(curve.counted), _halved(curve.undone)


def finite(buckets: Buckets) -> list[tuple[int, Bucket]]:
    """Returns the buckets that have finite values, by index."""
    return sorted((index, bucket) for index, bucket in buckets.items() if bucket.count)


def pieces(buckets: Buckets) -> Iterator[list[tuple[int, Bucket]]]:
    """Yields the buckets that one line may join. A line has a gap at values that are not finite, and at a distance between two buckets of
    more than twice the median."""
    distances = [after[0] - before[0] for before, after in itertools.pairwise(finite(buckets))]
    most = 2 * statistics.median(distances) if distances else 0
    piece: list[tuple[int, Bucket]] = []
    for index, bucket in sorted(buckets.items()):
        if piece and (not bucket.count or index - piece[-1][0] > most):
            yield piece
            piece = []
        if bucket.count:
            piece.append((index, bucket))
    if piece:
        yield piece


def extremes(buckets: Iterable[Bucket]) -> tuple[float, float]:
    """Returns the least and the greatest value of buckets that have finite values; 0 and 1 where there are none."""
    found = list(buckets)
    return min((bucket.least for bucket in found), default=0.0), max((bucket.greatest for bucket in found), default=1.0)


def _fill(buckets: Buckets, indexes: NDArray[np.int64], values: NDArray[np.float64]) -> None:
    if not len(indexes):
        return
    numbers, positions = np.unique(indexes, return_inverse=True)
    finite = np.abs(values) < _LARGEST  # false for NaN
    inside, own = positions[finite], values[finite]
    counts, totals = np.bincount(inside, minlength=len(numbers)), np.bincount(inside, own, len(numbers))
    least, greatest = np.full(len(numbers), math.inf), np.full(len(numbers), -math.inf)
    np.minimum.at(least, inside, own)
    np.maximum.at(greatest, inside, own)
    others = np.bincount(positions[~finite], minlength=len(numbers))
    columns = (each.tolist() for each in (numbers, counts, totals, least, greatest, others))
    for index, *facts in zip(*columns, strict=True):
        buckets.setdefault(index, Bucket()).join(Bucket(*facts))


def _halved(buckets: Buckets) -> Buckets:
    found: Buckets = {}
    for index, bucket in buckets.items():
        found.setdefault(index // 2, Bucket()).join(bucket)
    return found
