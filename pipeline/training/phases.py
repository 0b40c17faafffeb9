"""Where the time of a step goes, and how much of it is a rank's own, without ever waiting for the device.

The step says which phase it enters. On CPUs that is a look at the clock; on a GPU it is an event in the stream, whose time is read later,
once the device is past it. What a rank spends in `collective` it waits for the other ranks: they go in step, so the steps of all of them
take as long, and only the time without these waits tells which rank is slow. (Batch norm over the samples of all ranks waits in each of its
layers. Those waits are not told from forward and backward: no rank stands out there.)
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
"""Parts of a step; the empty one is what belongs to none. The wait for the batch is known to the loop and is no part of this."""
_KEPT_STEPS = 64  # that are not read yet: a device that is further behind than that loses the times of the oldest, and nothing else


@dataclass(frozen=True)
class StepTimes:
    """One step that is over, on the device too.

    Attributes:
        seconds: that it took by the clock of the host, with everything since the step before it.
        phases: of it, in seconds.
    """

    seconds: float
    phases: dict[str, float]

    @property
    def own(self) -> float:
        """Seconds without the waits for other ranks: what this rank would have needed alone."""
        return max(0.0, self.seconds - self.phases.get("collective", 0.0))


class Clock(Protocol):
    """Marks moments of the device."""

    def mark(self) -> Any:
        """This moment, in the order of the work that was given to the device."""
        ...

    def is_past(self, mark: Any) -> bool:
        """Whether the device is past it. Never waits."""
        ...

    def between(self, start: Any, end: Any) -> float:
        """Seconds from one mark that is past to another."""
        ...

    def forget(self, mark: Any) -> None:
        """It will not be asked for any more."""
        ...


class HostClock:
    """For devices that are done when the call returns."""

    mark = staticmethod(time.perf_counter)

    def is_past(self, mark: float) -> bool:  # noqa: ARG002
        return True

    def between(self, start: float, end: float) -> float:
        return end - start

    def forget(self, mark: float) -> None:
        pass


class StreamClock:
    """Events in the current stream of a GPU, used again and again.

    Args:
        event: makes one; it has to be one that can be timed.
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
        clock: of the device.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._phase: Phase = ""
        self._marks: list[tuple[Phase, Any]] | None = None
        self._unread: deque[tuple[float, list[tuple[Phase, Any]]]] = deque(maxlen=_KEPT_STEPS)

    @classmethod
    def of(cls, device: torch.device) -> Phases:
        """With the clock that fits a device."""
        return cls(StreamClock() if device.type == "cuda" else HostClock())

    def begin(self) -> None:
        """A step begins; outside of steps nothing is measured."""
        self._marks = []
        self.enter("")

    def enter(self, phase: Phase) -> None:
        """What follows belongs to `phase`, until the next one is entered."""
        if self._marks is not None:
            self._phase = phase
            self._marks.append((phase, self._clock.mark()))

    @contextmanager
    def collective(self) -> Iterator[None]:
        """A call that waits for the other ranks, in the middle of another phase."""
        before = self._phase
        self.enter("collective")
        try:
            yield
        finally:
            self.enter(before)

    def backward(self, loss: Tensor, waits: bool) -> None:
        """The backward pass of `loss` comes next.

        Args:
            loss: what is differentiated.
            waits: the pass ends with the wait for the gradients of the other ranks, as DDP's and ZeRO's do. What is behind the last
                gradient of this rank is `collective` then: autograd calls back at its end in the order in which it was asked to, and this
                asks with the first gradient, DDP with the last.
        """
        self.enter("backward")
        if waits and self._marks is not None:
            loss.register_hook(self._at_own_end)  # type: ignore[no-untyped-call]

    def _at_own_end(self, _: Tensor) -> None:
        Variable._execution_engine.queue_callback(lambda: self.enter("collective"))

    def end(self, seconds: float) -> None:
        """The step is over; it took `seconds` by the host's clock, with what came since the one before it."""
        if self._marks is None:
            return
        self.enter("")
        if len(self._unread) == _KEPT_STEPS:
            self._forget(self._unread.popleft()[1])
        self._unread.append((seconds, self._marks))
        self._marks = None

    def read(self) -> list[StepTimes]:
        """The steps that the device has done since the last call, in their order. Never waits."""
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
