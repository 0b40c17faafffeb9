"""Starts the guard of a node's ranks, and tells it how this rank ends.

The launcher prints its own traceback when a rank fails or a signal stops the run, after everything that a rank can say. The guard is a
small process in a session of its own (`guard_process`) that outlives ranks and launcher: it watches the ranks of its node, writes down
which of them died first and how, and prints the last line after the launcher's text. A guard that can't be started is no error, because
every rank says the same itself, earlier.

This module imports the standard library alone, so that the guard watches before torch is imported.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pipeline.training.supervision.interruption import LAUNCHERS

LAUNCHER_LOG = "CONTEXT_ENCODER_LAUNCHER_LOG"
"""Environment variable with the path of the file that has the launcher's own text, where the launcher does not print it."""
Ending = Literal["finished", "stopped", "failed", "noticed", "silent"]
"""End of a rank: all steps are done; a signal stopped it; its own error; the loss of another rank; an error that another rank explains."""
_BLOCKED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTOU}
"""Signals to the whole job, which are meant for the ranks."""
_started: list[subprocess.Popen[bytes]] = []


def watches() -> bool:
    """Returns whether guards watch the ranks of this run: a launcher started them, and the system has pidfds (Linux 5.3)."""
    return any(name in os.environ for name in LAUNCHERS) and hasattr(os, "pidfd_open")


def start(untouched: str = "") -> None:
    """Starts the guard, in the first rank of each node.

    Args:
        untouched: sentence for the last line of a run that ends before it has a run folder.
    """
    if not watches() or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    project = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(filter(None, (project, os.environ.get("PYTHONPATH", ""))))
    code = "from pipeline.training.supervision.guard_process import main; main()"
    launcher = os.getppid()
    with suppress(OSError):
        if not _is_launcher(launcher):
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", code, str(launcher), untouched],
                stdin=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _started.append(process)


def _is_launcher(process: int) -> bool:
    """Returns whether a process may be a launcher, and not a shell or another program that has a launcher's variables in its environment.
    Such a program may go on, and would wait for the guard, which holds its pipes.

    Args:
        process: process id of the parent.

    Raises:
        OSError: the process has ended.
    """
    if "python" not in Path(f"/proc/{process}/exe").resolve().name:
        return False
    # python -m launch and torchrun, which other programs may call, name themselves; accelerate launch of a single rank does not
    named = any(name in os.environ for name in ("TORCHELASTIC_RUN_ID", LAUNCHER_LOG))
    return named or b"launch" in Path(f"/proc/{process}/cmdline").read_bytes()


def note_run(run: Path, attempt: int) -> None:
    """Tells the guard which run folder belongs to this run.

    Args:
        run: run folder.
        attempt: attempt of the run, from 1.
    """
    _tell(run=str(run.absolute()), attempt=attempt)


def note_end(ending: Ending, line: str = "") -> None:
    """Tells the guard how this rank ends.

    Args:
        ending: kind of the end.
        line: sentence that says what happened; empty where there is none.
    """
    _tell(ending=ending, line=line, at=time.monotonic())


def _tell(**facts: Any) -> None:
    for process in _started:
        if process.stdin is not None:
            with suppress(OSError):  # the guard was killed
                process.stdin.write(json.dumps(facts).encode() + b"\n")
                process.stdin.flush()
