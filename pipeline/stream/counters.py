"""Totals of the stream's work, for metrics. All but the gauges (queue_depth and cache_bytes) only grow.

The buckets of request durations are declared here alone; the metrics take them from here through the training.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping

REQUEST_BOUNDS = (0.005, 0.02, 0.05, 0.1, 0.3, 1.0, 5.0, 30.0, math.inf)
"""Upper bounds of the buckets of request durations, in seconds; a request counts in the first bucket whose bound it does not exceed."""
_REQUEST_TOTALS = tuple(f"store_requests_up_to_{bound:g}" for bound in REQUEST_BOUNDS)


def duration(seconds: float) -> dict[str, float]:
    """The totals that a request to the store raises, by its duration in seconds."""
    return {"store_request_seconds": seconds, _REQUEST_TOTALS[bisect_left(REQUEST_BOUNDS, seconds)]: 1}


class Counters:
    """Named totals that any thread may raise."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: dict[str, float] = defaultdict(float)

    def add(self, **amounts: float) -> None:
        """Raises totals by amounts."""
        with self._lock:
            for name, amount in amounts.items():
                self._totals[name] += amount

    def set(self, **values: float) -> None:
        """Sets gauges."""
        with self._lock:
            self._totals.update(values)

    def totals(self) -> Mapping[str, float]:
        """A copy of every total: bytes, seconds or counts, by name."""
        with self._lock:
            return dict(self._totals)
