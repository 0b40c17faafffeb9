"""The totals that the loader counts, turned into increments of counters and values of gauges."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping

from prometheus_client import Gauge

from monitoring.metrics.definitions import BAD_SAMPLES, DIVIDED

_REPORTS = 64  # names without a metric that are reported at most
_log = logging.getLogger(__name__)


class LoaderTotals:
    """The totals as they were last read, and the metric that each of them feeds. Any thread may call any method.

    Args:
        bad_samples: gives the function that raises the counter of bad samples of a cause, for a cause that has no metric yet.
    """

    def __init__(self, bad_samples: Callable[[str], Callable[[float], None]]) -> None:
        self._bad_samples = bad_samples
        self._raised: dict[str, Callable[[float], None]] = {}
        self._set: dict[str, Gauge] = {}
        self._totals: dict[str, float] = {}
        self._lock = threading.Lock()  # the loop and a scrape may report the totals at the same time
        self._followed: Callable[[], Mapping[str, float]] | None = None
        self._reported: set[str] = set()

    def feed_counter(self, total: str, grow: Callable[[float], None]) -> None:
        """Declares that `grow` takes the increments of a total."""
        self._raised[total] = grow

    def feed_gauge(self, total: str, gauge: Gauge) -> None:
        """Declares that a gauge shows a total as it is."""
        self._set[total] = gauge

    def take(self, totals: Callable[[], Mapping[str, float]]) -> None:
        """Reads the totals and passes on what changed. A total that fell is one of a new loader, and is counted from 0.

        Args:
            totals: gives the totals by name. Called under the lock: an older snapshot that arrives late would look like a counter reset.
        """
        with self._lock:
            for name, value in totals().items():
                before = self._totals.get(name)
                if value != before:
                    self._totals[name] = value
                    self._pass_on(name, before, value)

    def follow(self, totals: Callable[[], Mapping[str, float]]) -> None:
        """Has `refresh` read these totals."""
        self._followed = totals

    def refresh(self) -> None:
        """Reads the followed totals; called before each scrape."""
        if self._followed is not None:
            self.take(self._followed)

    def _pass_on(self, name: str, before: float | None, value: float) -> None:
        if (gauge := self._set.get(name)) is not None:
            gauge.set(value)
            return
        grow = self._raised.get(name)
        if grow is None and name.startswith(BAD_SAMPLES):
            grow = self._raised[name] = self._bad_samples(name.removeprefix(BAD_SAMPLES))
        if grow is not None:
            grow(increment(value - before if before is not None and value > before else value))
        elif name not in DIVIDED:
            self._report_once(name)

    def _report_once(self, name: str) -> None:
        if name not in self._reported and len(self._reported) < _REPORTS:
            self._reported.add(name)
            _log.warning("the loader's total %r feeds no metric: declare one in monitoring/metrics/definitions.py", name)


def increment(amount: float) -> float:
    """An amount that a counter can be raised by: a finite float, 0 for a NaN and for the negative step of a clock that was set back."""
    return float(amount) if 0 < amount < math.inf else 0.0
