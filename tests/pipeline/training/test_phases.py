"""Phases show which part of a step takes its time, and the slow rank is the one whose own time grows."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from monitoring.metrics.definitions import PHASES, PREFIX
from pipeline import recipes
from pipeline.config import parse
from pipeline.recipes.adversarial import AdversarialPair
from pipeline.recipes.player import Losses
from pipeline.stream.loader import StreamLoader
from pipeline.training.engine.engine import Engine, ReplicatedEngine
from pipeline.training.engine.zero import ShardedEngine
from pipeline.training.loop import pretrain
from pipeline.training.phases import Phases, StepTimes, StreamClock
from pipeline.training.reporting.reporter import Reporter, StepFacts
from pipeline.training.supervision.interruption import Interruption
from tests.datasets import photographs, write_dataset
from tests.pipeline.training.engine.test_zero_ranks import forget_accelerate, in_ranks

STEPS, PAUSE = 6, 0.8
PLACES = ("data", "forward", "backward", "optimiser")


class Ticks:
    """A clock of the device by which every mark is one second later, and which the device has passed up to `done`."""

    def __init__(self) -> None:
        self.now, self.done, self.kept = 0, 1 << 30, 0

    def mark(self) -> int:
        self.now += 1
        self.kept += 1
        return self.now

    def is_past(self, mark: int) -> bool:
        return mark <= self.done

    def between(self, start: int, end: int) -> float:
        return float(end - start)

    def forget(self, mark: int) -> None:
        self.kept -= 1


def one_step(phases: Phases) -> None:
    phases.begin()
    phases.enter("forward")
    phases.enter("backward")
    phases.enter("forward")
    with phases.collective():
        pass
    phases.enter("optimiser")
    phases.end(20.0)


def test_a_phase_lasts_until_the_next_and_a_wait_interrupts_it() -> None:
    phases = Phases(Ticks())
    one_step(phases)
    (times,) = phases.read()
    assert times.phases == {"forward": 3.0, "backward": 1.0, "collective": 1.0, "optimiser": 1.0}
    assert times.own == 19.0
    assert phases.read() == [], "each step is returned once"


def test_outside_of_steps_nothing_is_measured() -> None:
    clock = Ticks()
    phases = Phases(clock)
    phases.enter("forward")
    with phases.collective():
        pass
    phases.end(1.0)
    assert (phases.read(), clock.now) == ([], 0)


def test_what_the_device_has_not_done_is_not_asked_for_and_comes_later() -> None:
    clock = Ticks()
    phases = Phases(clock)
    clock.done = 9
    one_step(phases)  # eight marks
    one_step(phases)
    assert len(phases.read()) == 1
    assert phases.read() == []
    clock.done = 16
    assert len(phases.read()) == 1
    assert clock.kept == 0, "every mark is given back"


def test_a_device_that_is_far_behind_costs_the_oldest_times_and_no_memory() -> None:
    clock = Ticks()
    phases = Phases(clock)
    clock.done = 0
    for _ in range(1000):
        one_step(phases)
    assert clock.kept < 1000
    clock.done = clock.now
    assert 10 < len(phases.read()) < 100
    assert clock.kept == 0


class Event:
    """The calls of a CUDA event that a stream clock makes, and none that would wait for the device."""

    made = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        Event.made += 1
        self.recorded = 0.0

    def record(self) -> None:
        self.recorded = time.perf_counter()

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: Event) -> float:
        return 1000 * (end.recorded - self.recorded)


def test_events_of_a_gpu_are_in_milliseconds_and_used_again() -> None:
    phases = Phases(StreamClock(Event))
    for _ in range(50):
        phases.begin()
        phases.enter("forward")
        time.sleep(0.001)
        phases.end(1.0)
        (times,) = phases.read()
        assert 0.001 <= times.phases["forward"] < 1
    assert Event.made == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_is_not_waited_for() -> None:
    phases = Phases.of(torch.device("cuda"))
    torch.cuda._sleep(1)
    torch.cuda.synchronize()
    phases.begin()
    phases.enter("forward")
    torch.cuda._sleep(1 << 30)
    phases.enter("")
    phases.end(1.0)
    assert phases.read() == [], "the kernel is still running"
    torch.cuda.synchronize()
    (times,) = phases.read()
    assert times.phases["forward"] > 0.05


def test_the_end_of_this_ranks_own_gradients_is_seen_before_what_waits_for_the_others() -> None:
    """DDP asks autograd to be called at the end of the pass; so does this, before it."""
    ticks = Ticks()
    phases = Phases(ticks)
    weight = torch.ones(3, requires_grad=True)
    seen: list[int] = []

    def like_ddp(_: Any) -> None:
        torch.autograd.Variable._execution_engine.queue_callback(lambda: seen.append(ticks.now))

    weight.register_hook(like_ddp)  # type: ignore[no-untyped-call]
    phases.begin()
    loss = (weight * 2).sum()
    phases.backward(loss, waits=True)
    begun = ticks.now
    loss.backward()  # type: ignore[no-untyped-call]
    assert seen == [begun + 1], "one mark was made between the beginning of the pass and DDP's turn"
    phases.end(9.0)
    (times,) = phases.read()
    assert times.phases == {"backward": 1.0, "collective": 1.0}
    assert weight.grad is not None


def slow_down(place: str, mode: type[Engine], patch: pytest.MonkeyPatch) -> None:
    """This process takes PAUSE longer for a step, somewhere in it."""
    loss, batches, update = AdversarialPair.painter_losses, StreamLoader.__iter__, mode.update

    def slow_loss(self: AdversarialPair, *arguments: Any) -> Losses:
        found = loss(self, *arguments)
        if place == "forward":
            time.sleep(PAUSE)
        elif place == "backward":
            found.total.register_hook(lambda _: time.sleep(PAUSE))  # type: ignore[no-untyped-call]
        return found

    def slow_update(self: Engine, rate: float) -> float:
        if place == "optimiser" and self.player.name == "generator":
            time.sleep(PAUSE)
        return update(self, rate)

    def slow_batches(self: StreamLoader) -> Iterator[Any]:
        for batch in batches(self):
            if place == "data":
                time.sleep(PAUSE)
            yield batch

    patch.setattr(AdversarialPair, "painter_losses", slow_loss)
    patch.setattr(mode, "update", slow_update)
    patch.setattr(StreamLoader, "__iter__", slow_batches)


def times_of_a_run(arguments: list[str]) -> dict[str, float]:
    """Returns seconds of this rank in a run, without its first step, in which torch imports much."""
    waited: list[float] = []
    times: list[StepTimes] = []
    reporters: list[Reporter] = []
    with pytest.MonkeyPatch.context() as patch:
        step = Reporter.step

        def noted(self: Reporter, facts: StepFacts) -> None:
            def read() -> Sequence[StepTimes]:
                times.extend(now := facts.times())
                return now

            reporters.append(self)
            waited.append(facts.wait_seconds)
            step(self, replace(facts, times=read))

        patch.setattr(Reporter, "step", noted)
        assert pretrain(parse(recipes.SETTINGS, arguments), Interruption()).finished
    assert len(times) == len(waited) == STEPS
    registry = reporters[0].metrics.registry
    labels = {"run": Path(arguments[-1]).name, "node": os.uname().nodename, "rank": os.environ["RANK"]}
    assert registry.get_sample_value(f"{PREFIX}own_seconds_total", labels) == pytest.approx(sum(each.own for each in times))
    found = {phase: sum(each.phases.get(phase, 0.0) for each in times) for phase in PHASES} | {"data_wait": sum(waited)}
    for phase, seconds in found.items():
        name = f"{PREFIX}step_phase_seconds_sum"
        assert registry.get_sample_value(name, {**labels, "phase": phase}) == pytest.approx(seconds), "the metrics have them all"
    counted = {phase: sum(each.phases.get(phase, 0.0) for each in times[1:]) for phase in PHASES} | {"data_wait": sum(waited[1:])}
    return {"own": sum(each.own for each in times[1:]), "whole": sum(each.seconds for each in times[1:]), **counted}


def run_in_places(rank: int, shards: str, folder: str, mode: str, places: tuple[str, ...]) -> list[dict[str, float]]:
    """Runs once for each place, in which rank 1 is slow."""
    found = []
    for attempt, place in enumerate(places):
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(attempt)
        forget_accelerate()
        settings = ["--recipe", "inpainting", "--method.width", "4", "--method.bottleneck", "4", "--method.batch_norm_group", "2"]
        settings += [
            "--training.global_batch",
            "8",
            "--training.micro_batch",
            "2",
            "--training.pictures_every",
            "0",
            "--data.shards",
            shards,
        ]
        settings += ["--training.steps", str(STEPS), "--training.mode", mode, "--monitoring.enabled", "False", "--run", f"{folder}/{place}"]
        with pytest.MonkeyPatch.context() as patch:
            if rank == 1:
                slow_down(place, ReplicatedEngine if mode == "ddp" else ShardedEngine, patch)
            found.append(times_of_a_run(settings))
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", ["ddp", "zero1", "zero2", "zero3"])
def test_the_own_time_of_two_ranks_tells_which_is_slow_and_their_steps_do_not(tmp_path: Path, mode: str) -> None:
    write_dataset(tmp_path / "set", photographs(60, 140, 160), [30, 30])
    places = PLACES if mode == "ddp" else ("forward", "optimiser")
    ranks = in_ranks(2, run_in_places, str(tmp_path / "set"), str(tmp_path), mode, places)
    for place, quick, slow in zip(places, *ranks, strict=True):
        seen = f"{mode}, slow in {place}:\nrank 0 {quick}\nrank 1 {slow}"
        pauses = (STEPS - 1) * PAUSE
        assert quick["whole"] == pytest.approx(slow["whole"], rel=0.25), f"ranks go in step; {seen}"
        assert slow["own"] - quick["own"] > 0.5 * pauses, seen
        assert quick["collective"] > 0.5 * pauses, f"the other one waits that long; {seen}"
        assert slow["collective"] < 0.5 * quick["collective"], seen
        phase = "data_wait" if place == "data" else place
        assert slow[phase] - quick[phase] > 0.5 * pauses, f"its phases say where; {seen}"
