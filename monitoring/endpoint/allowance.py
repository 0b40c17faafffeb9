"""How much processor time requests may take: so much in the long run, a little of it at once, and whoever comes later waits."""

from __future__ import annotations

import threading
import time

PROCESSOR_SHARE = 0.0075
"""Part of a core that requests may take in the long run for each rank of the node, what the ranks spend on their own answers included. With
the burst no ten seconds take more than a hundredth of a core for each rank, which is what a step may lose where a rank has no core to
spare. A Prometheus that asks for one rank every second takes 4 ms of it here and 3 ms in the rank."""
BURST_SECONDS = 2.0
"""Seconds whose share may be taken at once when there were few requests before: 15 ms of processor time for one rank, which is 0.15 % of a
core over ten seconds, and some hundred scrapes that share a text."""


class Allowance:
    """Any thread may call any method.

    Who comes while there is a crowd waits until half of the burst is there again: many are let in at the same time, who share one text.
    Letting them in one by one would make a text for each, which is dearer than fifty requests.

    Args:
        share: part of a core, in the long run.
        burst: seconds of processor time that may be taken at once.
    """

    def __init__(self, share: float, burst: float) -> None:
        self._share, self._burst = share, burst
        self._lock = threading.Lock()
        self._left, self._counted = burst, time.monotonic()
        self._needed, self._is_letting = 0.0, False

    def spend(self, seconds: float) -> None:
        """Processor time was taken."""
        with self._lock:
            self._count()
            self._left -= seconds

    def wait(self) -> float:
        """Seconds until one more of those who wait may be let in; 0 for at once."""
        with self._lock:
            self._count()
            if self._left >= self._needed:
                self._needed, self._is_letting = 0.0, True
                return 0.0
            if self._is_letting:  # it has run out before all of them were in
                self._needed, self._is_letting = self._burst / 2, False
            return (self._needed - self._left) / self._share

    def all_are_in(self) -> None:
        """Nobody waits."""
        with self._lock:
            self._needed, self._is_letting = 0.0, False

    def _count(self) -> None:
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._counted) * self._share)
        self._counted = now


def allowance_of(ranks: int) -> Allowance:
    """For the requests to an endpoint that serves so many ranks."""
    share = PROCESSOR_SHARE * ranks
    return Allowance(share, share * BURST_SECONDS)
