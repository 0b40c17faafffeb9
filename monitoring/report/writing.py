"""Writes the page of a run, whole or not at all; and at the end of a run, in bounded time and without raising."""

from __future__ import annotations

import shlex
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from monitoring.report.page import page
from monitoring.report.record import EVENTS, HISTORY, SETTINGS, read
from shards.errors import ExplainedError
from shards.local_files import whole_file

NAME = "report.html"
"""Name of the page in the run folder."""
_END_SECONDS = 120.0


class RunPageError(ExplainedError):
    """The page of a run can't be written. Says why and what to do."""


@dataclass(frozen=True)
class RunPage:
    """A page that was written.

    Attributes:
        path: path of the file.
        bytes: size of the file.
        problems: missing or damaged parts of the run, one sentence each, which are also on the page.
    """

    path: Path
    bytes: int
    problems: tuple[str, ...]


def write_run_page(run: Path, output: Path | None = None) -> RunPage:
    """Writes one HTML page about a run, which may still be going on.

    Args:
        run: the run folder.
        output: path of the page, which is replaced where it exists; `report.html` in the run folder when None.

    Raises:
        RunPageError: the folder is not that of a run, or the page can't be written.
    """
    try:
        if not has_record(run):
            raise RunPageError(f"{run}: holds neither {EVENTS}, {HISTORY} nor {SETTINGS}. Name the folder of a run, as given to --run")
        record = read(run)
    except OSError as error:
        raise RunPageError(f"{run}: can't be read ({error.strerror or error}). Ask its owner for read permission") from error
    output = output or run / NAME
    content = page(record).encode("utf-8", "replace")
    try:
        with whole_file(output, durable=False) as file:  # a page that a power cut took is written again by one command
            file.write(content)
    except OSError as error:
        raise RunPageError(f"{output}: can't be written ({error.strerror or error}). Name another file with --output") from error
    return RunPage(output, len(content), tuple(record.problems))


def has_record(run: Path) -> bool:
    """Says whether a folder is that of a run, so that it can have a page."""
    return any((run / name).is_file() for name in (EVENTS, HISTORY, SETTINGS))


def page_of_finished_run(run: Path, seconds: float = _END_SECONDS) -> str:
    """Writes the page of a finished run; returns a line that says where the page is, or why there is none. The function never raises, and
    returns after at most `seconds`, so that it can't spoil or delay the end of a run.

    Args:
        run: the run folder.
        seconds: longest wait for the page.
    """
    outcome: list[str] = []

    def write() -> None:
        try:
            outcome.append(f"report: {write_run_page(run).path}")
        except Exception as error:  # a failed page must not make a finished run a failed one
            outcome.append(f"no report was written ({' '.join(str(error).split()) or type(error).__name__})")

    thread = threading.Thread(target=write, name="report", daemon=True)
    with suppress(RuntimeError):  # no more threads on this machine
        thread.start()
        thread.join(seconds)
    command = f"python launch/report.py {shlex.quote(str(run))}"
    return outcome[0] if outcome else f"no report was written within {seconds:.0f} s: run {command} to write it"


def missing_page(run: Path) -> str:
    """Writes the page of a run that has finished before, where it has none; returns the line about it, empty where there is a page.

    Args:
        run: the run folder.
    """
    return "" if (run / NAME).exists() else page_of_finished_run(run)
