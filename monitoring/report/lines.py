"""The rows of a run's JSON lines as the page reads them: no line that a crash or another program damaged stops the reading.

The values of a row are not trusted either: `number` and `integer` return None for anything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monitoring import run_files

LONGEST_LINE = 1 << 16
"""Bytes; a longer line counts as damaged, because the page keeps the newest events in memory."""


class Lines(run_files.Lines):
    """The rows of a file, in order. A file that can't be read has no further rows.

    Args:
        path: path of the file.

    Attributes:
        missing: whether there is no such file, or it can't be read.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, LONGEST_LINE)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            yield from super().__iter__()
        except OSError:
            self.missing = True


def number(value: object) -> float | None:
    """A value of a row as a number, which may be infinite or NaN; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def integer(value: object) -> int | None:
    """A value of a row as an integer from 0 to 2**53; None where it is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**53 else None
