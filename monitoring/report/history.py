"""The lines of a history as curves, in one pass and bounded memory.

Curves are named ("loss", player, part), ("accuracy", player, kind), ("gradient_norm", player), ("rate",), ("throughput",),
("utilisation",) and ("wait",).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

from monitoring.report.attempts import Attempts
from monitoring.report.curves import Curves, Name
from monitoring.report.lines import Lines, integer, number

_SINGLE: tuple[tuple[Name, str], ...] = (
    (("rate",), "rate"),
    (("throughput",), "images_per_second"),
    (("utilisation",), "model_flop_utilisation"),
    (("wait",), "data_wait_share"),
)
_MOST_UNKNOWN = 100_000  # attempts that are in the history alone


def read(lines: Lines, attempts: Attempts) -> tuple[Curves, int]:
    """Reads a history.

    Args:
        lines: lines of the history; other lines are counted as damaged.
        attempts: attempts from the events. Each learns which steps it has, and attempts without events are added.

    Returns:
        The curves, and the number of attempts that are in the history alone.
    """
    curves, first_steps = _pass(lines, attempts)
    if first_steps:  # their first steps decide which steps of the others count, so all lines are read again
        attempts.infer(first_steps)
        attempts.settle()
        curves, _ = _pass(lines, attempts)
    return curves, len(first_steps)


def _pass(lines: Lines, attempts: Attempts) -> tuple[Curves, dict[int, int]]:
    curves, unknown, odd = Curves(), dict[int, int](), 0
    for row in lines:
        step, attempt = integer(row.get("step")), integer(row.get("attempt"))
        if step is None or attempt is None:
            odd += 1
        elif attempt in attempts:
            if not unknown:
                curves.add(step, attempts[attempt].add_step(step, bool(row.get("skipped"))), _values(row))
        elif len(unknown) < _MOST_UNKNOWN:
            unknown.setdefault(attempt, step)
    curves.settle()
    lines.damaged += odd
    return curves, unknown


def _values(row: Mapping[str, Any]) -> list[tuple[Name, float]]:
    """Returns the quantities of a line of the history. Called once a step, so it looks up nothing twice."""
    found: list[tuple[Name, float]] = []
    losses, norms = row.get("losses"), row.get("gradient_norms")
    if isinstance(losses, dict):
        for player, parts in losses.items():
            if isinstance(parts, dict):
                known = _known(parts)
                for part, value in parts.items():
                    if known == 1 or part == _UNLABELLED or type(value) is not float:
                        _append(found, _loss_name(player, part), value)
                    elif known:
                        found.append((_loss_name(player, part), value / known))
    if isinstance(norms, dict):
        for player, value in norms.items():
            _append(found, ("gradient_norm", player), value)
    for name, key in _SINGLE:
        if key in row:
            _append(found, name, row[key])
    return found


def _known(parts: Mapping[str, Any]) -> float:
    """Returns the fraction of the batch whose class is known. Losses are means over the batch, held-back ones over these pictures alone."""
    unlabelled = parts.get(_UNLABELLED)
    return 1 - unlabelled if type(unlabelled) is float and 0 < unlabelled <= 1 else 1.0


def _append(found: list[tuple[Name, float]], name: Name, value: object) -> None:
    if type(value) is float:  # nearly always
        found.append((name, value))
    elif value is None:  # NaN or infinite, for which JSON has no word
        found.append((name, math.nan))
    elif (converted := number(value)) is not None:
        found.append((name, converted))


_UNLABELLED = "unlabelled"
_FRACTIONS = {"accuracy": "training", _UNLABELLED: _UNLABELLED}  # parts of a classifier's losses -> line of the chart of its accuracy


@functools.lru_cache(maxsize=256)
def _loss_name(player: str, part: str) -> Name:
    if part in _FRACTIONS:
        return ("accuracy", player, _FRACTIONS[part])
    return ("accuracy", player, part.removeprefix("accuracy_")) if part.startswith("accuracy_") else ("loss", player, part)
