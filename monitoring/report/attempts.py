"""The attempts of a run: which steps each of them trained, and which of these count."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from monitoring.report.lines import integer, number
from monitoring.run_files import death, last_counted_steps

_LONGEST_MESSAGE = 2000
_FACTS = frozenset({"event", "time", "attempt", "step", "world_size", "global_batch"})


@dataclass
class Attempt:
    """One start of a run's ranks, to their end.

    Attributes:
        number: number of the attempt, from 1.
        begun: time of its start, seconds since 1970; NaN where no event has it.
        world_size: number of ranks; 0 where no event has it.
        start: steps that were done before the attempt.
        global_batch: samples of a step; 0 where no event has it.
        facts: everything else in its start event.
        ended: time of its end event; NaN where there is none.
        reason: reason that its end event gives; empty where there is none.
        failed: whether an error ended it.
        message: message of that error.
        last_seen: time of its newest event.
        hung: reason that its watchdog gave before it ended a hanging rank.
        died: rank that died first, and how; empty where no event has it.
        limit: greatest step of the attempt that counts.
        first, last: first and last step that the history has of the attempt; 0 for none.
        counted, undone: number of its steps that count, and of those that a later attempt undid.
        skipped: number of counted steps without an update of the weights.
    """

    number: int
    begun: float = math.nan
    world_size: int = 0
    start: int = 0
    global_batch: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    ended: float = math.nan
    reason: str = ""
    failed: bool = False
    message: str = ""
    last_seen: float = math.nan
    hung: str = ""
    died: str = ""
    limit: float = math.inf
    first: int = 0
    last: int = 0
    counted: int = 0
    undone: int = 0
    skipped: int = 0

    @property
    def is_known(self) -> bool:
        """True where there is an event of its start; else the attempt is inferred from the history."""
        return bool(self.facts) or self.world_size > 0

    @property
    def seconds(self) -> float:
        """Seconds from its start to its end, or to its newest event; NaN where either is unknown."""
        end = self.ended if math.isfinite(self.ended) else self.last_seen
        return max(0.0, end - self.begun)

    def add_step(self, step: int, skipped: bool) -> bool:
        """Adds a step that the history has of this attempt; returns whether the step counts."""
        self.first = min(self.first or step, step)
        self.last = max(self.last, step)
        counts = step <= self.limit
        if counts:
            self.counted += 1
            self.skipped += skipped
        else:
            self.undone += 1
        return counts


class Attempts:
    """The attempts of a run, from its events in their order.

    Attributes:
        all: attempts in the order in which they began.
    """

    def __init__(self) -> None:
        self.all: list[Attempt] = []
        self._by_number: dict[int, Attempt] = {}

    def __getitem__(self, number: int) -> Attempt:
        return self._by_number[number]

    def __contains__(self, number: object) -> bool:
        return number in self._by_number

    def add_event(self, row: Mapping[str, Any]) -> None:
        """Adds an event of any kind to the attempt that it belongs to; a start makes a new attempt."""
        kind, when = row.get("event"), number(row.get("time"))
        when = math.nan if when is None else when
        if kind == "start":
            facts = {key: value for key, value in row.items() if key not in _FACTS}
            self._append(
                Attempt(
                    integer(row.get("attempt")) or len(self.all) + 1,
                    when,
                    integer(row.get("world_size")) or 0,
                    integer(row.get("step")) or 0,
                    integer(row.get("global_batch")) or 0,
                    facts,
                    last_seen=when,
                )
            )
            return
        attempt = self.all[-1] if self.all else None
        if kind in ("stall", "rank_died") and integer(row.get("attempt")) in self._by_number:
            attempt = self._by_number[row["attempt"]]
            if kind == "stall":
                attempt.hung = str(row.get("waiting", "")) or "it hung"
            else:
                attempt.died = attempt.died or death(row)[:_LONGEST_MESSAGE]
        if attempt is None or kind == "restart":  # a restart comes before the start that it leads to
            return
        attempt.last_seen = when if math.isnan(attempt.last_seen) else max(attempt.last_seen, when)
        if kind == "end":
            attempt.ended, attempt.reason = when, str(row.get("reason", "")) or "no reason given"
            attempt.failed, attempt.message = "message" in row, str(row.get("message", ""))[:_LONGEST_MESSAGE]

    def infer(self, spans: Mapping[int, int]) -> None:
        """Adds attempts that are in the history and have no start event.

        Args:
            spans: number of the attempt -> first step that it took.
        """
        for missing, first in spans.items():
            if missing not in self._by_number:
                self._append(Attempt(missing, start=max(0, first - 1)))
        self.all.sort(key=lambda attempt: attempt.number)

    def settle(self) -> None:
        """Decides which steps count; called before the history is read, and again after `infer`."""
        limits = last_counted_steps([attempt.start for attempt in self.all])
        for attempt, limit in zip(self.all, limits, strict=True):
            attempt.limit = limit
            attempt.first = attempt.last = attempt.counted = attempt.undone = attempt.skipped = 0

    def _append(self, attempt: Attempt) -> None:
        self.all.append(attempt)
        self._by_number[attempt.number] = attempt


def images(attempts: Sequence[Attempt]) -> int:
    """Number of samples that the counted steps trained on, where the global batch is known."""
    return sum(attempt.counted * attempt.global_batch for attempt in attempts)
