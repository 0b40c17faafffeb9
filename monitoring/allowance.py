"""How much processor time requests may take: so much in the long run, some of it at once, and whoever comes later waits."""

from __future__ import annotations

import threading
import time

PROCESSOR_SHARE = 0.01
"""Part of a core that requests may take in the long run, at least. A whole scrape as OpenMetrics takes some 5 ms of processor time for each
rank: a Prometheus that asks every 15 seconds takes a thirtieth of this for one rank, and a third for 8."""
RANK_SHARE = 0.005
"""Likewise for each rank of the node: two Prometheus servers that ask every 5 seconds take less than half of it."""
BURST_SECONDS = 0.5
"""Processor time that they may take at once when there were few before: some hundred scrapes of one rank, a dozen of 8."""
_DEBT_SECONDS = 0.02  # of processor time: nobody waits for longer than two seconds because of those before


class Allowance:
    """Any thread may call any method.

    Args:
        share: part of a core, in the long run.
        burst: seconds of processor time that may be taken at once.
    """

    def __init__(self, share: float, burst: float) -> None:
        self._share, self._burst = share, burst
        self._lock = threading.Lock()
        self._left, self._counted = burst, time.monotonic()

    def spend(self, seconds: float) -> None:
        """Processor time was taken; negative: less than was thought."""
        with self._lock:
            self._count()
            self._left -= seconds

    def wait(self) -> float:
        """Seconds until one more request may be let in; 0 or less for at once."""
        with self._lock:
            self._count()
            self._left = max(self._left, -_DEBT_SECONDS)
            return -self._left / self._share

    def _count(self) -> None:
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._counted) * self._share)
        self._counted = now


def processor_share(ranks: int) -> float:
    """Part of a core for the requests to an endpoint that serves so many ranks."""
    return max(PROCESSOR_SHARE, RANK_SHARE * ranks)
