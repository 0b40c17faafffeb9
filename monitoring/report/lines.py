"""JSON lines as a stream: one line in memory at a time, and none that a crash or another program damaged stops the reading."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LONGEST_LINE = 1 << 16
"""Bytes; what is longer is no line that a run writes."""


class Lines:
    """The rows of a file, in order. Iterate once.

    Args:
        path: of the file; one that is not there has no rows.

    Attributes:
        missing: whether there is no such file, or it can't be opened.
        damaged: lines that are no JSON objects.
        cut_short: whether the last line has no end yet: it is being written, or a crash was faster. It is not counted as damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.missing, self.damaged, self.cut_short = not path.is_file(), 0, False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.damaged, self.cut_short = 0, False
        try:
            with open(self.path, "rb") as file:
                while line := file.readline(LONGEST_LINE):
                    ended = line.endswith(b"\n")
                    if len(line) == LONGEST_LINE and not ended:
                        while (rest := file.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                            pass
                        self.damaged += 1
                    elif (row := _row(line)) is not None:
                        yield row
                    elif ended:
                        self.damaged += bool(line.strip())
                    else:
                        self.cut_short = True
        except OSError:
            self.missing = True


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def number(value: object) -> float | None:
    """A value of a row as a number, which may be infinite or NaN; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def whole(value: object) -> int | None:
    """A value of a row as a count or step of at most 2**53, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**53 else None
