"""Turns signals into a request that the loop reads between two steps: save, then end.

SIGTERM and SIGUSR1 come from schedulers (SLURM's time limit, preemption, `scancel`), SIGINT from a keyboard, SIGHUP from a terminal that
is closed, SIGXCPU from a limit of processor time. The handler only notes the signal, so nothing is ever half written; the price is that a
stop takes as long as the step that is running.

A launcher that is killed outright passes no signal on, and its rank would train on as an orphan beside the run's next attempt. On Linux the
kernel therefore signals the rank when its parent dies. This module imports the standard library alone, so that the handlers are in place
before torch is imported.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

LAUNCHERS = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")
"""Environment variables that `accelerate launch` and torchrun set for the processes that they start."""
PARENT_DIED = "PARENT_DIED"
_STOP = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU)
_MAY_BE_IGNORED = (signal.SIGINT, signal.SIGHUP)
_SET_DEATH_SIGNAL, _GET_DEATH_SIGNAL = 1, 2  # prctl(2): PR_SET_PDEATHSIG, PR_GET_PDEATHSIG
_IMPORTED_IN, _PARENT = os.getpid(), os.getppid()  # read at import, before the kernel watches the parent


class Interruption:
    """Listens for signals from `install` (or `with`) to `close`.

    Args:
        follow_parent: whether the death of the parent process requests a stop (Linux); None: if a launcher started this process.
            Without a launcher the parent is a shell, and a run that was started with nohup must survive its shell.
    """

    def __init__(self, follow_parent: bool | None = None) -> None:
        self.follow_parent = any(name in os.environ for name in LAUNCHERS) if follow_parent is None else follow_parent
        self._requested: str | None = None
        self._interrupts = 0
        self._process = 0
        self._parent = 0
        self._before: dict[int, Any] = {}
        self._death_signal_before = 0

    @property
    def requested(self) -> str | None:
        """Reason to stop after this step: the name of the first signal that came, or PARENT_DIED; None: no stop is requested."""
        return self._requested

    def install(self) -> None:
        """Begins to listen; a second call does nothing.

        An ignored SIGINT or SIGHUP stays ignored, because this is how a shell protects its background processes from the keyboard, and
        how nohup protects a run from the end of its terminal.

        Raises:
            RuntimeError: called from another thread than the main one.
        """
        _check_main_thread()
        if self._process == os.getpid():
            return
        self._process = os.getpid()
        atexit.register(self._stop_listening)
        self._parent = _PARENT if self._process == _IMPORTED_IN else os.getppid()
        for number in _STOP:
            if number not in _MAY_BE_IGNORED or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        if self.follow_parent and sys.platform == "linux":
            # Not SIGTERM: the kernel also sends it when only the parent's *thread* ends, which the handler has to distinguish.
            self._before[_death_signal()] = signal.signal(_death_signal(), self._note_death)
            self._death_signal_before = _swap_death_signal(_death_signal())
            self._check_parent()

    def close(self) -> None:
        """Restores the previous handlers; `requested` stays. A second call does nothing.

        Raises:
            RuntimeError: called from another thread than the main one.
        """
        _check_main_thread()
        atexit.unregister(self._stop_listening)
        if sys.platform == "linux" and _death_signal() in self._before:
            _swap_death_signal(self._death_signal_before)
        for number, handler in self._before.items():
            ours = signal.getsignal(number) in (self._note, self._note_death)
            if ours and handler is not None:  # None: set from C, and Python can't restore it
                signal.signal(number, handler)
        self._before.clear()
        self._process = 0

    def __enter__(self) -> Interruption:
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stop_listening(self) -> None:
        """Ignores signals while the process ends, when Python would restore the handlers that kill: the stop is already under way."""
        if self._process == os.getpid():
            for number in self._before:
                signal.signal(number, signal.SIG_IGN)

    def _note(self, number: int, _: FrameType | None) -> None:
        """Notes a signal. Runs between any two bytecodes of the main thread, so it takes no lock and writes nothing."""
        if os.getpid() != self._process:  # a forked child: signals have their default effect there
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self._requested = self._requested or signal.Signals(number).name
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt

    def _note_death(self, _number: int, _: FrameType | None) -> None:
        self._check_parent()

    def _check_parent(self) -> None:
        if os.getppid() != self._parent:
            self._requested = self._requested or PARENT_DIED


def _check_main_thread() -> None:
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("signals can be handled in the main thread only: install and close Interruption there")


def _death_signal() -> int:
    return int(signal.SIGRTMIN) + 5  # has no other use; before the handler is installed it ends the process, as SIGTERM would


def _swap_death_signal(number: int) -> int:
    """Sets the signal that this process gets when its parent dies (0: none), and returns the previous one."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    before = ctypes.c_int(0)
    for arguments in ((_GET_DEATH_SIGNAL, ctypes.byref(before)), (_SET_DEATH_SIGNAL, ctypes.c_ulong(number))):
        if prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), f"prctl: {os.strerror(ctypes.get_errno())}")
    return before.value
