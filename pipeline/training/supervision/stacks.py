"""Where every thread of a rank is, written into a file of the run folder: on request, and by the watchdog before it ends a process.

`faulthandler` writes from C, so that it also works while a thread is stuck there. This module imports the standard library alone: the
signal is answered before torch is there, since without a handler it would end the process.
"""

from __future__ import annotations

import faulthandler
import os
import signal
from contextlib import suppress
from pathlib import Path

SIGNAL = signal.SIGUSR2
"""Asks a rank for its stacks, and does nothing else to it."""
STDERR = 2


def answer(file: int = STDERR) -> None:
    """Makes the signal write the stacks of this process, from now on.

    Args:
        file: descriptor to write to.
    """
    faulthandler.register(SIGNAL, file=file, all_threads=True, chain=False)


class Stacks:
    """The file of one rank and attempt, `RUN/stacks/rank_<r>_attempt_<n>.txt`. What can't be written there goes to stderr.

    Args:
        folder: the run folder.
        rank: of this process.
        attempt: of the run, from 1.
    """

    def __init__(self, folder: Path, rank: int, attempt: int) -> None:
        self.path = folder / "stacks" / f"rank_{rank}_attempt_{attempt}.txt"
        self._stale = f"rank_{rank}_attempt_*.txt"
        self._file: int | None = None

    @property
    def where(self) -> str:
        """Where the stacks go, for a message."""
        return str(self.path) if self._file is not None else "stderr"

    def open(self) -> None:
        """Opens the file, and makes the signal write into it. A second call does nothing."""
        if self._file is not None:
            return
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for path in self.path.parent.glob(self._stale):  # of attempts that were killed before they had anything to write
                if path.stat().st_size == 0:
                    path.unlink(missing_ok=True)
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            answer(self._file)

    @property
    def descriptor(self) -> int:
        """What to write to."""
        return STDERR if self._file is None else self._file

    def write(self, heading: str) -> None:
        """Appends a heading and the stacks of all threads. Takes no lock that a stuck thread could hold."""
        with suppress(OSError):
            os.write(self.descriptor, f"{heading}\n".encode())
        faulthandler.dump_traceback(self.descriptor, all_threads=True)
        with suppress(OSError):
            os.write(self.descriptor, b"\n")

    def close(self) -> None:
        """Closes the file and removes it where nothing was written; the signal writes to stderr again. A second call does nothing."""
        if self._file is None:
            return
        answer()
        os.close(self._file)
        self._file = None
        with suppress(OSError):
            if self.path.stat().st_size == 0:
                self.path.unlink()
                self.path.parent.rmdir()  # fails, as it should, while other ranks have theirs in it
