"""Who trained which steps, and which of them count.

An attempt continues behind the step of a checkpoint, and so takes back whatever an earlier one did behind that step. Hence a line of
the history counts exactly where no later attempt started at a lower step, which one number for each attempt decides, however long the
history is.
`pipeline/training/record/ledger.py` counts the same way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from monitoring.report.lines import number, whole

_LONGEST_MESSAGE = 2000
_FACTS = frozenset({"event", "time", "attempt", "step", "world_size", "global_batch"})


@dataclass
class Attempt:
    """One start of a run's ranks, to their end.

    Attributes:
        number: from 1.
        begun: when, seconds since 1970; NaN where no event says so.
        world_size: ranks; 0 where nobody says.
        start: steps that were done before it.
        global_batch: samples of a step; 0 where nobody says.
        facts: what else its start says.
        ended: when it said that it ends; NaN where it never did.
        reason: why, in its own words; empty where it never said.
        failed: whether an error ended it.
        message: of that error.
        last_seen: when it was last heard of.
        hung: what its watchdog said before it ended it.
        limit: greatest step of it that counts.
        first, last: steps that the history has of it; 0 for none.
        counted, undone: its steps that count, and those that a later attempt took back.
        skipped: counted steps whose update was left out.
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
    limit: float = math.inf
    first: int = 0
    last: int = 0
    counted: int = 0
    undone: int = 0
    skipped: int = 0

    @property
    def is_known(self) -> bool:
        """Whether an event tells of its start; else it is inferred from the history."""
        return bool(self.facts) or self.world_size > 0

    @property
    def seconds(self) -> float:
        """From its start to when it was last heard of; NaN where that is unknown."""
        end = self.ended if math.isfinite(self.ended) else self.last_seen
        return max(0.0, end - self.begun)

    def take(self, step: int, skipped: bool) -> bool:
        """A line of the history is its; returns whether it counts."""
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
        all: in the order in which they began.
    """

    def __init__(self) -> None:
        self.all: list[Attempt] = []
        self._by_number: dict[int, Attempt] = {}

    def __getitem__(self, number: int) -> Attempt:
        return self._by_number[number]

    def __contains__(self, number: object) -> bool:
        return number in self._by_number

    def take(self, row: Mapping[str, Any]) -> None:
        """Takes an event of any kind."""
        kind, when = row.get("event"), number(row.get("time"))
        when = math.nan if when is None else when
        if kind == "start":
            facts = {key: value for key, value in row.items() if key not in _FACTS}
            self._append(
                Attempt(
                    whole(row.get("attempt")) or len(self.all) + 1,
                    when,
                    whole(row.get("world_size")) or 0,
                    whole(row.get("step")) or 0,
                    whole(row.get("global_batch")) or 0,
                    facts,
                    last_seen=when,
                )
            )
            return
        attempt = self.all[-1] if self.all else None
        if kind == "stall" and whole(row.get("attempt")) in self._by_number:
            attempt = self._by_number[row["attempt"]]
            attempt.hung = str(row.get("waiting", "")) or "it hung"
        if attempt is None or kind == "restart":  # a restart is told before the start that it leads to
            return
        attempt.last_seen = when if math.isnan(attempt.last_seen) else max(attempt.last_seen, when)
        if kind == "end":
            attempt.ended, attempt.reason = when, str(row.get("reason", "")) or "no reason given"
            attempt.failed, attempt.message = "message" in row, str(row.get("message", ""))[:_LONGEST_MESSAGE]

    def infer(self, spans: Mapping[int, int]) -> None:
        """Adds attempts that only the history tells of.

        Args:
            spans: number of the attempt -> the first step that it took.
        """
        for missing, first in spans.items():
            if missing not in self._by_number:
                self._append(Attempt(missing, start=max(0, first - 1)))
        self.all.sort(key=lambda attempt: attempt.number)

    def settle(self) -> None:
        """Decides which steps count, before the history is read."""
        limit = math.inf
        for attempt in reversed(self.all):
            attempt.limit = limit
            attempt.first = attempt.last = attempt.counted = attempt.undone = attempt.skipped = 0
            limit = min(limit, attempt.start)

    def _append(self, attempt: Attempt) -> None:
        self.all.append(attempt)
        self._by_number[attempt.number] = attempt


def images(attempts: Sequence[Attempt]) -> int:
    """Samples that the counted steps trained on, as far as is known."""
    return sum(attempt.counted * attempt.global_batch for attempt in attempts)
