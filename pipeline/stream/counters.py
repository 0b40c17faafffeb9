"""Totals of what the stream did, for metrics. Monotonic but for the gauges named so."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping

GAUGES = frozenset({"queue_depth", "cache_bytes"})


class Counters:
    """Named totals that any thread may raise."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: dict[str, float] = defaultdict(float)

    def add(self, **amounts: float) -> None:
        """Raises totals."""
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
