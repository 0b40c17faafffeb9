"""Times ZeRO's waits for other ranks: DeepSpeed's own collectives, spread over forward, backward and optimiser.

Every collective goes through one object of DeepSpeed's, its backend. A proxy stands before that object, passes each call on unchanged, and
marks the start and the end of each wait in the phases of the step. Without the proxy, in stages 2 and 3 a rank that waits for a slow one
would look as slow.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

Collective = Callable[[], AbstractContextManager[None]]
_WAITS = ("all_reduce", "all_gather", "all_to_all", "reduce", "broadcast", "gather", "scatter", "barrier", "inference_all_reduce")


class TimedBackend:
    """Proxy of DeepSpeed's communication backend that times its waits.

    Args:
        backend: the real backend.
        collective: returns the context manager that is entered while a call waits for the other ranks.
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
    """A collective that runs beside the computation until its `wait` is called, which is timed."""

    def __init__(self, work: Any, collective: Collective) -> None:
        self._work, self._collective = work, collective

    def wait(self, *arguments: Any, **named: Any) -> Any:
        with self._collective():
            return self._work.wait(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def time_waits(communication: Any, collective: Collective) -> None:
    """Times every wait from now on. A second call replaces the `collective` of the first.

    Args:
        communication: DeepSpeed's module `deepspeed.comm.comm`.
        collective: returns the context manager that is entered while a call waits for the other ranks.
    """
    backend = communication.cdb
    communication.cdb = TimedBackend(backend.backend if isinstance(backend, TimedBackend) else backend, collective)


def leave_waits(communication: Any) -> None:
    """Restores DeepSpeed's own backend."""
    if isinstance(communication.cdb, TimedBackend):
        communication.cdb = communication.cdb.backend
