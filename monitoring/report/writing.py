"""Writes the page of a run, whole or not at all; and at the end of a run, in bounded time and whatever happens."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from monitoring.report.page import page
from monitoring.report.record import EVENTS, HISTORY, SETTINGS, read
from shards.errors import ExplainedError

NAME = "report.html"
"""Of the page in the run folder."""
_END_SECONDS = 120.0


class ReportError(ExplainedError):
    """The report can't be written. Says why and what to do."""


@dataclass(frozen=True)
class Report:
    """A page that was written.

    Attributes:
        path: of the file.
        bytes: of it.
        problems: what of the run is missing or damaged; the page says it, too.
    """

    path: Path
    bytes: int
    problems: tuple[str, ...]


def write_report(run: Path, output: Path | None = None) -> Report:
    """Writes one HTML page about a run, which may go on meanwhile.

    Args:
        run: the run folder.
        output: of the page; `report.html` in the run folder when None. One that is there is replaced.

    Raises:
        ReportError: that is no run folder, or the page can't be written.
    """
    try:
        if not any((run / name).is_file() for name in (EVENTS, HISTORY, SETTINGS)):
            raise ReportError(f"{run}: holds neither {EVENTS}, {HISTORY} nor {SETTINGS}. Name the folder of a run, what --run was")
        record = read(run)
    except OSError as error:
        raise ReportError(f"{run}: can't be read ({error.strerror or error}). Ask its owner for the right to") from error
    output = output or run / NAME
    content = page(record).encode("utf-8", "replace")
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        try:
            partial.write_bytes(content)
            os.replace(partial, output)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise ReportError(f"{output}: can't be written ({error.strerror or error}). Name another file with --output") from error
    return Report(output, len(content), tuple(record.problems))


def report_of_finished(run: Path, seconds: float = _END_SECONDS) -> str:
    """Writes the page of a run that is finished; returns a line that says where it is, or why there is none. It never raises, and does not
    keep the end of the run waiting for longer than `seconds`: what takes longer is given up.

    Args:
        run: the run folder.
        seconds: the longest wait.
    """
    said: list[str] = []

    def write() -> None:
        try:
            said.append(f"report: {write_report(run).path}")
        except Exception as error:  # a report must not make a bad end of a good one
            said.append(f"no report was written ({' '.join(str(error).split()) or type(error).__name__})")

    thread = threading.Thread(target=write, name="report", daemon=True)
    with suppress(RuntimeError):  # no more threads on this machine
        thread.start()
        thread.join(seconds)
    return said[0] if said else f"no report was written within {seconds:.0f} s: python launch/report.py {run} takes its time"
