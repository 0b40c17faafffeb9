"""Whether a run that goes on is well: does it wait for its data, has a player won its game for good.

Both only report: each change of state once, however long it lasts.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

from pipeline.recipes.player import Collapse

_RECOVERED = 0.8  # of the share that starving begins at: a share that wavers about the limit is one report
_EASED = 2.0  # a player has recovered when its means are this many times as far from perfect as a collapse allows


class Starvation:
    """Watches the share of the time that a rank waits for data, over about a window.

    Args:
        share: above which the rank starves.
        seconds: of the window. Nothing is said before one is full.

    Attributes:
        starving: whether the share was too high and has not fallen again.
    """

    def __init__(self, share: float, seconds: float) -> None:
        self._limit, self._window = share, seconds
        self._seconds = self._waited = self._seen = 0.0
        self.starving = False

    @property
    def share(self) -> float:
        """Of the time in the window, 0 to 1."""
        return self._waited / self._seconds if self._seconds else 0.0

    def add(self, seconds: float, wait_seconds: float) -> bool:
        """A step is done.

        Args:
            seconds: that it took, the wait included.
            wait_seconds: of it spent waiting for data.

        Returns:
            Whether `starving` has changed.
        """
        kept = math.exp(-seconds / self._window)
        self._seconds, self._waited = self._seconds * kept + seconds, self._waited * kept + wait_seconds
        self._seen += seconds
        before = self.starving
        if self._seen >= self._window:
            self.starving = self.share > (self._limit * _RECOVERED if before else self._limit)
        return self.starving != before


class CollapseWatch:
    """Watches the logged losses of one player for what its recipe declares as a collapse.

    Args:
        collapse: the declaration.
        steps: over which every loss is averaged.

    Attributes:
        collapse: the declaration.
        collapsed: whether the means looked like one and have not recovered.
        means: of the declared losses over the window, by part.
    """

    def __init__(self, collapse: Collapse, steps: int) -> None:
        self.collapse, self._steps = collapse, steps
        self._rows: deque[tuple[float, ...]] = deque(maxlen=steps)
        self._parts = tuple({**collapse.at_most, **collapse.at_least})
        self.collapsed = False
        self.means: dict[str, float] = {}

    def add(self, losses: Mapping[str, float]) -> bool:
        """The losses of a step; one that is not finite, or that is not logged, leaves the step out.

        Returns:
            Whether `collapsed` has changed.
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
