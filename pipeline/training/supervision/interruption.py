"""Turns signals into a wish that the loop sees between two steps: save, then end.

SIGTERM and SIGUSR1 come from schedulers (SLURM's time limit, preemption, `scancel`), SIGINT from a keyboard. The
handler only notes the signal, so nothing is ever half written; the price is that the stop takes as long as the step
that is running.

A launcher that is killed outright passes no signal on, and its rank would train on as an orphan beside the run's next
attempt. On Linux the kernel therefore tells the rank when its parent dies. This module imports the standard library
alone: the handlers are in place before torch is.
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
"""Environment variables that `accelerate launch` and torchrun set for what they start."""
PARENT_DIED = "PARENT_DIED"
_STOP = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_SET_DEATH_SIGNAL, _GET_DEATH_SIGNAL = 1, 2  # prctl(2): PR_SET_PDEATHSIG, PR_GET_PDEATHSIG
_IMPORTED_IN, _PARENT = os.getpid(), os.getppid()  # as early as can be: what the parent was before the kernel watched it


class Interruption:
    """Listens for signals from `install` (or `with`) to `close`.

    Args:
        follow_parent: ask to stop when the parent process dies (Linux); None: where a launcher started this process.
            Without a launcher the parent is a shell, and a run that was started with nohup is to survive it.
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
        """Why to stop after this step: SIGTERM, SIGUSR1, SIGINT or PARENT_DIED, whichever came first; None: go on."""
        return self._requested

    def install(self) -> None:
        """Begins to listen; a second call does nothing.

        A SIGINT that was ignored stays so: that is how a shell protects what it runs in the background from the
        keyboard.

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
            if number != signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        if self.follow_parent and sys.platform == "linux":
            # Not SIGTERM: the kernel sends it when only the parent's *thread* ends, too, which the handler has to tell.
            self._before[_death_signal()] = signal.signal(_death_signal(), self._note_death)
            self._death_signal_before = _swap_death_signal(_death_signal())
            self._check_parent()

    def close(self) -> None:
        """Puts back what was there before; `requested` stays. A second call does nothing.

        Raises:
            RuntimeError: called from another thread than the main one.
        """
        _check_main_thread()
        atexit.unregister(self._stop_listening)
        if sys.platform == "linux" and _death_signal() in self._before:
            _swap_death_signal(self._death_signal_before)
        for number, handler in self._before.items():
            ours = signal.getsignal(number) in (self._note, self._note_death)
            if ours and handler is not None:  # None: it was not set from Python, which can't set it again
                signal.signal(number, handler)
        self._before.clear()
        self._process = 0

    def __enter__(self) -> Interruption:
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stop_listening(self) -> None:
        """At the end of the process, where Python would put back the handlers that kill: a signal that comes now asks for what is done."""
        if self._process == os.getpid():
            for number in self._before:
                signal.signal(number, signal.SIG_IGN)

    def _note(self, number: int, _: FrameType | None) -> None:
        """Runs between two bytecodes of the main thread, wherever that is: takes no lock and writes nothing."""
        if os.getpid() != self._process:  # a forked child: to it signals mean what they mean to any process
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
    return int(signal.SIGRTMIN) + 5  # nobody's; before the handler is there it ends the process, as SIGTERM would


def _swap_death_signal(number: int) -> int:
    """Sets the signal that this process gets when its parent dies (0: none), and returns what it was."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    before = ctypes.c_int(0)
    for arguments in ((_GET_DEATH_SIGNAL, ctypes.byref(before)), (_SET_DEATH_SIGNAL, ctypes.c_ulong(number))):
        if prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), f"prctl: {os.strerror(ctypes.get_errno())}")
    return before.value
