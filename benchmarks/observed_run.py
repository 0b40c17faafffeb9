"""A run observed from outside: `pretrain` as it is, with a reporter that also notes when each step ended and where its time went."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch

from pipeline.config import Config
from pipeline.training import loop
from pipeline.training.checkpoint.store import SaveOutcome
from pipeline.training.phases import StepTimes
from pipeline.training.reporting.reporter import Reporter, StepFacts
from pipeline.training.supervision.interruption import Interruption

PHASES = {"host_to_device": "copy", "forward": "forward", "backward": "backward", "optimiser": "optimiser", "collective": "other ranks"}
"""Phase of a step -> its column in the table of where the time goes."""


@dataclass
class Notes:
    """Notes of one run, in seconds.

    Attributes:
        warm: steps at the beginning that are left out.
        clock: clock and CPU time of the process at the end of the steps that begin and end the measurement.
        waits: wait for data of each step.
        times: times of each step that the device has finished.
        grid, evaluation, blocked: a picture grid, an evaluation, and the time for which a save held the steps back.
    """

    warm: int
    clock: list[tuple[float, float]] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    times: list[StepTimes] = field(default_factory=list)
    grid: float = 0.0
    evaluation: float = 0.0
    blocked: float = 0.0

    def step_seconds(self) -> float:
        """Seconds of a step, reporting and the wait for data included."""
        (began, _), (ended, _) = self.clock
        return (ended - began) / (len(self.waits) - self.warm)

    def cores(self) -> float:
        """Cores that the process kept busy."""
        (began, busy_before), (ended, busy) = self.clock
        return (busy - busy_before) / (ended - began)

    def now_and_then(self, config: Config[Any]) -> float:
        """Seconds a step of all that a run does only every so many steps, spread over the steps between."""
        parts = [(self.grid, config.training.pictures_every), (self.evaluation, config.evaluation.every)]
        return sum(seconds / every for seconds, every in [*parts, (self.blocked, config.checkpoint.every)] if every)

    def split(self) -> dict[str, float]:
        """Seconds of a step by what they are spent on."""
        times, waits = self.times[self.warm :], self.waits[self.warm :]
        found = {"wait for data": statistics.fmean(waits)}
        found |= {name: statistics.fmean(each.phases.get(phase, 0.0) for each in times) for phase, name in PHASES.items()}
        return found | {"other": max(0.0, self.step_seconds() - sum(found.values()))}


def _observing(notes: Notes, steps: int) -> type[Reporter]:
    """Returns the reporter of a run that fills notes beside its own work.

    Args:
        notes: notes of the run.
        steps: steps of the run.
    """

    class Observed(Reporter):
        _since = 0.0

        def step(self, facts: StepFacts) -> None:
            if facts.step in (notes.warm, steps):
                notes.clock.append((now(), time.process_time()))
            notes.waits.append(facts.wait_seconds)
            super().step(replace(facts, times=lambda: _kept(notes.times, facts.times())))
            self._since = time.perf_counter()

        def pictures(self, *arguments: Any) -> None:
            super().pictures(*arguments)
            notes.grid, self._since = now() - self._since, time.perf_counter()

        def evaluation(self, *arguments: Any) -> None:
            super().evaluation(*arguments)
            notes.evaluation, self._since = now() - self._since, time.perf_counter()

        def saved(self, report: SaveOutcome) -> None:
            super().saved(report)
            notes.blocked = report.blocked_seconds

    return Observed


def _kept(times: list[StepTimes], new: Sequence[StepTimes]) -> Sequence[StepTimes]:
    times.extend(new)
    return new


def now() -> float:
    """Reads the clock when the device has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def observed(config: Config[Any], warm: int) -> Notes:
    """Pretrains, and returns the notes of the run.

    Args:
        config: settings of a new run.
        warm: steps at the beginning that are left out.
    """
    notes = Notes(warm)
    reporter = _observing(notes, config.training.steps)
    with mock.patch.object(loop, "Reporter", reporter), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        loop.pretrain(config, Interruption())
    return notes
