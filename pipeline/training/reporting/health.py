"""Watches the health of a run: does it wait for its data, has a player won its game for good.

Both watches only report: each change of state once, however long the state lasts.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

from pipeline.recipes.player import Collapse

_RECOVERED = 0.8  # factor of the limit below which starvation ends, so that a fraction that wavers about the limit is one report
_EASED = 2.0  # a player has recovered when its means are this many times as far from perfect as a collapse allows


class Starvation:
    """Watches the fraction of its time that a rank waits for data, over a sliding window.

    Args:
        limit: fraction above which the rank starves.
        seconds: length of the window. Nothing is reported before the first window is full.

    Attributes:
        present: whether the fraction has risen above the limit and not fallen again.
    """

    def __init__(self, limit: float, seconds: float) -> None:
        self._limit, self._window = limit, seconds
        self._seconds = self._waited = self._seen = 0.0
        self.present = False

    @property
    def fraction(self) -> float:
        """Fraction of the window that was spent waiting, 0 to 1."""
        return self._waited / self._seconds if self._seconds else 0.0

    def add(self, seconds: float, wait_seconds: float) -> bool:
        """Adds a step.

        Args:
            seconds: duration of the step, the wait included.
            wait_seconds: part of `seconds` that was spent waiting for data.

        Returns:
            True if `present` has changed.
        """
        kept = math.exp(-seconds / self._window)
        self._seconds, self._waited = self._seconds * kept + seconds, self._waited * kept + wait_seconds
        self._seen += seconds
        before = self.present
        if self._seen >= self._window:
            self.present = self.fraction > (self._limit * _RECOVERED if before else self._limit)
        return self.present != before


class CollapseWatch:
    """Watches the logged losses of one player for the collapse that its recipe declares.

    Args:
        collapse: thresholds that the recipe declares.
        steps: steps over which every loss is averaged.

    Attributes:
        collapse: thresholds that the recipe declares.
        collapsed: whether the means have crossed the thresholds and not recovered.
        means: means of the declared losses over the window, by part.
    """

    def __init__(self, collapse: Collapse, steps: int) -> None:
        self.collapse, self._steps = collapse, steps
        self._rows: deque[tuple[float, ...]] = deque(maxlen=steps)
        self._parts = tuple({**collapse.at_most, **collapse.at_least})
        self.collapsed = False
        self.means: dict[str, float] = {}

    def add(self, losses: Mapping[str, float]) -> bool:
        """Adds the losses of a step. The step is left out if a declared loss is not finite or is missing.

        Returns:
            True if `collapsed` has changed.
        """
        row = tuple(losses.get(part, math.nan) for part in self._parts)
        if not all(map(math.isfinite, row)):
            return False
        self._rows.append(row)
        if len(self._rows) < self._steps:
            return False
        self.means = {
            part: math.fsum(column) / self._steps for part, column in zip(self._parts, zip(*self._rows, strict=True), strict=True)
        }
        before = self.collapsed
        self.collapsed = self._is_low(_EASED if before else 1.0) or self._is_high(_EASED if before else 1.0)
        if self.collapsed != before:
            self._rows.clear()  # the next report needs a window of its own
        return self.collapsed != before

    def _is_low(self, eased: float) -> bool:
        return bool(self.collapse.at_most) and all(self.means[part] <= eased * most for part, most in self.collapse.at_most.items())

    def _is_high(self, eased: float) -> bool:
        wanted = self.collapse.at_least
        return bool(wanted) and all(1.0 - self.means[part] <= eased * (1.0 - least) for part, least in wanted.items())
