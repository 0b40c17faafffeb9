"""Where ZeRO waits for the other ranks: in collectives of DeepSpeed's own, all over forward, backward and optimiser.

Every one of them goes through one object of DeepSpeed's. Another stands before it here, which passes each call on as it is and tells the
phases of the step when a wait begins and ends. Without it a rank that waits for a slow one could not be told from it in stages 2 and 3.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

Collective = Callable[[], AbstractContextManager[None]]
_WAITS = ("all_reduce", "all_gather", "all_to_all", "reduce", "broadcast", "gather", "scatter", "barrier", "inference_all_reduce")


class TimedBackend:
    """DeepSpeed's backend for communication, with its waits told.

    Args:
        backend: the real one.
        collective: is entered for as long as a call waits for the other ranks.
    """

    def __init__(self, backend: Any, collective: Collective) -> None:
        self.backend, self.collective = backend, collective

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.backend, name)
        return self._timed(found) if name.startswith(_WAITS) and callable(found) else found

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.collective():
                found = call(*arguments, **named)
            return _TimedWork(found, self.collective) if hasattr(found, "wait") else found

        return timed


class _TimedWork:
    """A collective that goes on beside the computation, until somebody waits for it."""

    def __init__(self, work: Any, collective: Collective) -> None:
        self._work, self._collective = work, collective

    def wait(self, *arguments: Any, **named: Any) -> Any:
        with self._collective():
            return self._work.wait(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def time_waits(communication: Any, collective: Collective) -> None:
    """From here on `collective` is told of every wait; again with another replaces it.

    Args:
        communication: DeepSpeed's module `deepspeed.comm.comm`.
        collective: is entered for as long as a call waits for the other ranks.
    """
    backend = communication.cdb
    communication.cdb = TimedBackend(backend.backend if isinstance(backend, TimedBackend) else backend, collective)


def leave_waits(communication: Any) -> None:
    """As DeepSpeed made it."""
    if isinstance(communication.cdb, TimedBackend):
        communication.cdb = communication.cdb.backend
