"""Writes the stacks of a rank's threads into a file of the run folder: on request, and by the watchdog before it ends a process.

`faulthandler` writes from C, so it also works while a thread is stuck in C. This module imports the standard library alone, so that the
signal is answered before torch is imported: without a handler the signal would end the process.
"""

from __future__ import annotations

import faulthandler
import os
import signal
from contextlib import suppress
from pathlib import Path

SIGNAL = signal.SIGUSR2
"""Makes a rank write its stacks and go on."""
STDERR = 2


def answer(file: int = STDERR) -> None:
    """Installs the handler that writes the stacks of this process.

    Args:
        file: descriptor that the stacks are written to.
    """
    faulthandler.register(SIGNAL, file=file, all_threads=True, chain=False)


class Stacks:
    """The file of one rank and attempt, `RUN/stacks/rank_<r>_attempt_<n>.txt`. Stacks go to stderr if the file can't be written.

    Args:
        folder: run folder.
        rank: rank of this process.
        attempt: attempt of the run, from 1.
    """

    def __init__(self, folder: Path, rank: int, attempt: int) -> None:
        self.path = folder / "stacks" / f"rank_{rank}_attempt_{attempt}.txt"
        self._stale = f"rank_{rank}_attempt_*.txt"
        self._file: int | None = None

    @property
    def where(self) -> str:
        """The place that the stacks go to, for a message."""
        return str(self.path) if self._file is not None else "stderr"

    def open(self) -> None:
        """Opens the file, and redirects the signal's stacks into it. A second call does nothing."""
        if self._file is not None:
            return
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for path in self.path.parent.glob(self._stale):  # attempts that were killed before they wrote any
                if path.stat().st_size == 0:
                    path.unlink(missing_ok=True)
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            answer(self._file)

    @property
    def descriptor(self) -> int:
        """The descriptor that the stacks are written to."""
        return STDERR if self._file is None else self._file

    def write(self, heading: str) -> None:
        """Appends a heading and the stacks of all threads. Takes no lock that a stuck thread may hold."""
        with suppress(OSError):
            os.write(self.descriptor, f"{heading}\n".encode())
        faulthandler.dump_traceback(self.descriptor, all_threads=True)
        with suppress(OSError):
            os.write(self.descriptor, b"\n")

    def close(self) -> None:
        """Closes the file, removes it if it is empty, and redirects the signal's stacks to stderr. A second call does nothing."""
        if self._file is None:
            return
        answer()
        os.close(self._file)
        self._file = None
        with suppress(OSError):
            if self.path.stat().st_size == 0:
                self.path.unlink()
                self.path.parent.rmdir()  # fails, as intended, while other ranks have files in it
                self.path.parent.parent.rmdir()  # fails, too, unless the run was refused
