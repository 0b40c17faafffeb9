"""Output of a command on a terminal or in a log: progress, sizes, names, the error that ended it, and a console that can't be written."""

from __future__ import annotations

import io
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, TextIO

from tqdm import tqdm

from shards.counting import counted
from shards.errors import ShardError
from shards.urls import SHOWN_OPTIONS

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_SECONDS_BETWEEN_LINES = 10.0


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
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # stdout is None where it was closed before the start
    return clean.encode(encoding, "backslashreplace").decode(encoding)


class _LossyFile(io.FileIO):
    """A descriptor that takes everything: bytes that can't be written are lost, and no error is raised."""

    def write(self, data: ReadableBuffer, /) -> int:
        view = memoryview(data).cast("B")
        size = len(view)
        with suppress(OSError):
            while view and (written := super().write(view)):  # None: the reader is slow, and the descriptor does not wait
                view = view[written:]
        return size


def outlive_console() -> None:
    """Lets this process go on when its console is gone, full, or of an encoding that lacks a character: stdout and stderr lose the lines or
    write the character's number, now and while the process ends.

    A descriptor that was closed before the start becomes /dev/null, because the next file that is opened would get its number, and with it
    everything that is printed.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = _lossy(sys.stdout, 1), _lossy(sys.stderr, 2)


def _lossy(stream: TextIO | None, number: int) -> TextIO:
    encoding = "utf-8"
    if stream is not None:  # None: closed before the start
        try:
            number, encoding = stream.fileno(), stream.encoding
        except ValueError:  # no file at all
            return stream
        with suppress(OSError):
            stream.flush()
    return io.TextIOWrapper(_LossyFile(number, "w", closefd=False), encoding=encoding, errors="backslashreplace", write_through=True)


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
        Exit code of the command; 1 after a ShardError or when stdout can't be written, 130 after an interrupt.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        code = command()
        if sys.stdout is not None:
            sys.stdout.flush()  # here, because at the end of the process the error would be a traceback
        return code
    except ShardError as error:
        print("\n".join(map(printable, f"error: {error}".splitlines())), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted. {after_interrupt}", file=sys.stderr)
        return 130
    except OSError as error:
        if not _is_lost(sys.stdout):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # | head
            with suppress(OSError):
                print(f"error: stdout can't be written ({error.strerror}): the output is cut short", file=sys.stderr)
        return 1


def _is_lost(stream: TextIO | None) -> bool:
    """Returns whether a stream can't be written, by writing an empty line."""
    if stream is None:
        return False
    try:
        os.write(stream.fileno(), b"\n")
    except ValueError:  # no file at all, as in tests
        return False
    except OSError:
        return True
    return False


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
