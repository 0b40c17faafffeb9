"""Times the phases of a step, and the part of it that is a rank's own, without ever waiting for the device.

The step names each phase that it enters. On CPUs a phase begins at a reading of the clock. On a GPU it begins at an event in the stream,
whose time is read later, once the device has passed it. `collective` is the time in which a rank waits for the other ranks. The ranks move
in lockstep, so their steps all take equally long, and only the time without these waits shows which rank is slow. (Batch norm over the
samples of all ranks waits in each of its layers. Those waits are counted as forward and backward, so no rank stands out there.)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.autograd import Variable

Phase = Literal["", "host_to_device", "forward", "backward", "optimiser", "collective"]
"""Phases of a step; the empty one is time that belongs to none of the others. The loop itself measures the wait for the batch."""
_KEPT_STEPS = 64  # most steps that wait to be read: if the device is further behind, the times of the oldest step are dropped


@dataclass(frozen=True)
class StepTimes:
    """Times of one step that is over, on the device too.

    Attributes:
        seconds: duration by the host's clock, since the end of the step before it.
        phases: seconds spent in each phase.
    """

    seconds: float
    phases: dict[str, float]

    @property
    def own(self) -> float:
        """Seconds without the waits for other ranks: the time that this rank would have needed alone."""
        return max(0.0, self.seconds - self.phases.get("collective", 0.0))


class Clock(Protocol):
    """A clock of the device, which marks moments in the order of its work."""

    def mark(self) -> Any:
        """Marks this moment, in the order of the work that was queued on the device."""
        ...

    def is_past(self, mark: Any) -> bool:
        """Returns whether the device has passed a mark. Never waits."""
        ...

    def between(self, start: Any, end: Any) -> float:
        """Returns the seconds between two marks that the device has passed."""
        ...

    def forget(self, mark: Any) -> None:
        """Releases a mark."""
        ...


class HostClock:
    """The clock for devices whose work is done when the call returns."""

    mark = staticmethod(time.perf_counter)

    def is_past(self, mark: float) -> bool:  # noqa: ARG002
        return True

    def between(self, start: float, end: float) -> float:
        return end - start

    def forget(self, mark: float) -> None:
        pass


class StreamClock:
    """The clock of a GPU: events in its current stream, which are reused.

    Args:
        event: makes an event that can be timed.
    """

    def __init__(self, event: Callable[..., Any] = torch.cuda.Event) -> None:
        self._event = event
        self._free: list[Any] = []

    def mark(self) -> Any:
        event = self._free.pop() if self._free else self._event(enable_timing=True)
        event.record()
        return event

    def is_past(self, mark: Any) -> bool:
        return bool(mark.query())

    def between(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end)) / 1000

    def forget(self, mark: Any) -> None:
        self._free.append(mark)


class Phases:
    """The phases of the steps of one rank.

    Args:
        clock: clock of the device.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._phase: Phase = ""
        self._marks: list[tuple[Phase, Any]] | None = None
        self._unread: deque[tuple[float, list[tuple[Phase, Any]]]] = deque(maxlen=_KEPT_STEPS)

    @classmethod
    def of(cls, device: torch.device) -> Phases:
        """Makes phases with the clock that fits a device."""
        return cls(StreamClock() if device.type == "cuda" else HostClock())

    def begin(self) -> None:
        """Begins a step; nothing is measured outside of steps."""
        self._marks = []
        self.enter("")

    def enter(self, phase: Phase) -> None:
        """Enters a phase, which lasts until the next one is entered."""
        if self._marks is not None:
            self._phase = phase
            self._marks.append((phase, self._clock.mark()))

    @contextmanager
    def collective(self) -> Iterator[None]:
        """Surrounds a call that waits for the other ranks, in the middle of another phase."""
        before = self._phase
        self.enter("collective")
        try:
            yield
        finally:
            self.enter(before)

    def backward(self, loss: Tensor, waits: bool) -> None:
        """Enters the backward pass.

        Args:
            loss: scalar that is differentiated next.
            waits: whether the pass ends with the wait for the gradients of the other ranks, as DDP's and ZeRO's do. The time after this
                rank's last gradient is then `collective`. Autograd runs the callbacks at its end in the order in which they were queued;
                this one is queued with the first gradient, DDP's with the last, so this one runs first.
        """
        self.enter("backward")
        if waits and self._marks is not None:
            loss.register_hook(self._at_own_end)  # type: ignore[no-untyped-call]

    def _at_own_end(self, _: Tensor) -> None:
        Variable._execution_engine.queue_callback(lambda: self.enter("collective"))

    def end(self, seconds: float) -> None:
        """Ends the step.

        Args:
            seconds: duration by the host's clock, since the end of the step before it.
        """
        if self._marks is None:
            return
        self.enter("")
        if len(self._unread) == _KEPT_STEPS:
            self._forget(self._unread.popleft()[1])
        self._unread.append((seconds, self._marks))
        self._marks = None

    def read(self) -> list[StepTimes]:
        """Returns the steps that the device has finished since the last call, in their order. Never waits."""
        found = []
        while self._unread and all(self._clock.is_past(mark) for _, mark in reversed(self._unread[0][1])):
            seconds, marks = self._unread.popleft()
            phases: dict[str, float] = {}
            for (phase, start), (_, end) in pairwise(marks):
                if phase:
                    phases[phase] = phases.get(phase, 0.0) + self._clock.between(start, end)
            found.append(StepTimes(seconds, phases))
            self._forget(marks)
        return found

    def _forget(self, marks: list[tuple[Phase, Any]]) -> None:
        for _, mark in marks:
            self._clock.forget(mark)
