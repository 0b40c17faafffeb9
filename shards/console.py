"""Output of a command on a terminal or in a log: progress, sizes, names, and the error that ended it."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping
from types import FrameType

from tqdm import tqdm

from shards.counting import counted
from shards.errors import ShardError

_SECONDS_BETWEEN_LINES = 10.0
SHOWN_OPTIONS = frozenset({"endpoint_url", "profile", "anon", "region_name", "use_ssl", "requester_pays"})
"""Options of a store that are no secrets."""


class ProgressReport:
    """Shows the progress of a long command on stderr: a bar on a terminal, else a line every ten seconds.

    Args:
        what: plural of the things that are counted, e.g. `pictures`.
        total: number of things to do.
        done: number of things that were done before.
        quiet: show nothing.
    """

    def __init__(self, what: str, total: int, done: int = 0, quiet: bool = False) -> None:
        self._what, self._total, self._done, self._bytes = what, total, done, 0
        self._begun, self._here = time.monotonic(), 0
        self._next_line = self._begun + _SECONDS_BETWEEN_LINES
        self._quiet = quiet
        terminal = sys.stderr.isatty() and not quiet
        self._bar = tqdm(total=total, initial=done, unit=f" {what}", dynamic_ncols=True, smoothing=0.1) if terminal else None

    def advance(self, count: int, size: int) -> None:
        """Adds a number of things and of bytes that were done."""
        self._done += count
        self._here += count
        self._bytes += size
        rate = self._bytes / 1e6 / max(time.monotonic() - self._begun, 1e-3)
        if self._bar is not None:
            self._bar.set_postfix_str(f"{rate:.1f} MB/s", refresh=False)
            self._bar.update(count)
        elif not self._quiet and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
            each = self._here / max(time.monotonic() - self._begun, 1e-3)
            print(f"{self._done:,} of {self._total:,} {self._what}, {each:,.0f}/s, {rate:.1f} MB/s", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()


def megabytes(size: int) -> str:
    """Writes a size in bytes for people, in powers of 1000."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return counted(size, "byte")


def printable(text: str) -> str:
    """Returns text that is safe for any terminal, because file names may hold control characters or bytes that are no text."""
    clean = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return clean.encode(sys.stdout.encoding or "utf-8", "backslashreplace").decode(sys.stdout.encoding or "utf-8")


def next_command(*words: str, storage: Mapping[str, str]) -> str:
    """The line that names the next command, quoted for the shell.

    Args:
        words: words of the command.
        storage: options of the store, without which the command would not find it; values that may be secret are not repeated.
    """
    options = [word for key, value in storage.items() for word in ("--storage", f"{key}={value if key in SHOWN_OPTIONS else 'VALUE'}")]
    return f"next: {shlex.join([*words, *options])}"


def exit_code(command: Callable[[], int], after_interrupt: str) -> int:
    """Runs a command for a person: an error becomes one message on stderr and an exit code.

    Args:
        command: the work; returns the exit code.
        after_interrupt: sentence that is shown when Ctrl-C or SIGTERM, which schedulers send, ends the work.

    Returns:
        Exit code of the command; 1 after a ShardError or when the reader of stdout is gone, 130 after an interrupt.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return command()
    except ShardError as error:
        print("\n".join(map(printable, f"error: {error}".splitlines())), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted. {after_interrupt}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
