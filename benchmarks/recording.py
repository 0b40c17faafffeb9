"""Measures the cost of the metrics: steps that record them, beside the same steps without.

One process trains a small inpainting network on the CPU, with the step and the reporting of a real run. Steps with and without metrics
alternate, in pairs whose order is drawn at random. In addition the calls of some steps are taped, and replayed many times without the
training, which gives the cost of the calls alone. The verdict is on the replay, because a busy machine hides so small a cost in the
pairs. Prints one Markdown table.

    python -m benchmarks.recording
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import measured_here
from monitoring.metrics.definitions import complete
from pipeline import recipes
from pipeline.config import Config, parse
from pipeline.stream.loader import Batch
from pipeline.training.phases import Phases
from pipeline.training.ranks import world as distributed
from pipeline.training.ranks.world import World
from pipeline.training.record.run_folder import RunFolder
from pipeline.training.reporting.loader_series import LOADER_SERIES
from pipeline.training.reporting.reporter import Reporter, StepFacts
from pipeline.training.reporting.telemetry import rank_metrics
from pipeline.training.resume import build_engines
from pipeline.training.step import TrainStep
from pipeline.training.supervision.watchdog import Watchdog

MOST = 0.005
"""Largest fraction of a step that recording may cost."""
Call = Callable[[Any, Any], object]


class Totals:
    """Counters of a loader in which every total grows between two readings, so that a logged step records as much as it ever can."""

    def __init__(self) -> None:
        self.counters = self
        self._names = [name for definition in complete(LOADER_SERIES) for name in definition.feeds]
        self._read = 0

    def totals(self) -> dict[str, float]:
        """Returns the totals by name."""
        self._read += 1
        return dict.fromkeys(self._names, float(self._read))

    def cache_failures(self) -> dict[tuple[str, int], str]:
        """Returns no failures."""
        return {}


class Silent:
    """Stands in for the metrics and for the phases: accepts every call and does nothing."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return nullcontext if name == "collective" else self._nothing

    @staticmethod
    def _nothing(*_: object, **__: object) -> tuple[()]:
        return ()


class Tape:
    """Stands in for the metrics or for the phases: passes every call on, and keeps it for a replay.

    Args:
        calls: list that the calls are appended to.
        part: index of the recorded object in a pair: 0 for the metrics, 1 for the phases.
        real: object that the calls are passed on to.
    """

    def __init__(self, calls: list[Call], part: int, real: Any) -> None:
        self._calls, self._part, self._real = calls, part, real

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method, part = getattr(self._real, name), self._part

        def call(*arguments: Any, **named: Any) -> Any:
            self._calls.append(lambda *pair: getattr(pair[part], name)(*arguments, **named))
            return method(*arguments, **named)

        return call

    @contextmanager
    def collective(self) -> Iterator[None]:
        """Records a wait for other ranks, which the replay enters and leaves at once."""

        def play(*pair: Any) -> None:
            with pair[1].collective():
                pass

        self._calls.append(play)
        with self._real.collective():
            yield


class Training:
    """A small network that is trained on one batch of noise again and again, with the reporting of a run."""

    def __init__(self, config: Config[Any], world: World, folder: RunFolder, watchdog: Watchdog) -> None:
        recipe = recipes.make(config.recipe, config.method, 0)
        batch, side = config.training.global_batch, recipe.image_size
        self.engines = build_engines(recipe, None, world, config.training)
        self.step = TrainStep(recipe, self.engines, world, config.training)
        metrics = rank_metrics(config, world, watchdog)
        self.reporter = Reporter(config, world, folder, Totals(), recipe.players, metrics, 1e9)  # type: ignore[arg-type]
        masks = torch.zeros(batch, side, side, dtype=torch.bool)
        masks[:, side // 4 : -side // 4, side // 4 : -side // 4] = True
        images, ids = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8), torch.arange(batch)
        self.batch = Batch(images, masks, None, ids, 0, 0, ids)
        self.steps = 0
        self.real: tuple[Any, Any] = (self.reporter.metrics, self.step.phases)

    def record_with(self, metrics: Any, phases: Any) -> None:
        """Sets the objects that the next steps report to."""
        self.reporter.metrics = self.reporter.alarms.metrics = metrics
        self.step.phases = phases

    def __call__(self) -> float:
        """Takes one step as the training loop does; returns its seconds, reporting included."""
        began = time.perf_counter()
        phases = self.step.phases
        phases.begin()
        result = self.step(self.batch, 1.0)
        self.steps += 1
        seconds = time.perf_counter() - began
        phases.end(seconds)
        self.reporter.step(StepFacts(self.steps, self.batch, result, 1.0, seconds, 0.001, 0, (0, 0), phases.read))
        return time.perf_counter() - began


@contextmanager
def prepared(batch: int, log_every: int, warm_up: int = 20) -> Iterator[Training]:
    """Opens a training that is past its first steps.

    Args:
        batch: pictures per step.
        log_every: steps from one logged step to the next.
        warm_up: steps to take first, because the first ones are slower.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings = ["--recipe", "inpainting", "--method.width", "16", "--method.bottleneck", "64", "--method.batch_norm_group", str(batch)]
        settings += ["--training.global_batch", str(batch), "--training.micro_batch", str(batch), "--training.steps", str(10**9)]
        settings += ["--training.log_every", str(log_every), "--data.shards", "none", "--run", str(folder / "run")]
        config = parse(recipes.SETTINGS, [*settings, "--monitoring.enabled", "False", "--watchdog.enabled", "False"])
        watchdog = stack.enter_context(Watchdog(config))
        world = stack.enter_context(distributed.join(config.training))
        run = RunFolder(Path(config.run), writes=True)
        stack.callback(run.close)
        training = Training(config, world, run, watchdog)
        stack.callback(training.reporter.close)
        for _ in range(warm_up):
            training()
        yield training


def taped(training: Training, steps: int) -> Callable[[], None]:
    """Tapes the calls of `steps` steps; returns a function that replays them without the training."""
    calls: list[Call] = []
    training.record_with(*(Tape(calls, part, real) for part, real in enumerate(training.real)))
    for _ in range(steps):
        training()
    pair = (training.real[0], Phases.of(torch.device("cpu")))

    def play() -> None:
        for call in calls:
            call(*pair)

    return play


def least(play: Callable[[], None], repeats: int) -> float:
    """Returns the seconds of the fastest of several replays."""
    found = math.inf
    for _ in range(repeats):
        began = time.perf_counter()
        play()
        found = min(found, time.perf_counter() - began)
    return found


def alternate(training: Training, pairs: int) -> tuple[list[float], list[float]]:
    """Takes pairs of steps without and with recording; returns the seconds of both kinds. Both include the logging of every few steps."""
    off, on = list[float](), list[float]()
    for _ in range(pairs):
        for recorded in random.sample((False, True), 2):
            training.record_with(*(training.real if recorded else (Silent(), Silent())))
            (on if recorded else off).append(training())
    return off, on


def _row(batch: int, off: Sequence[float], on: Sequence[float], calls: float) -> str:
    step, fastest = statistics.median(off), min(off)
    fractions = sorted((with_it - without) / step for without, with_it in zip(off, on, strict=True))
    middle, spread = statistics.median(fractions), 1.25 * statistics.stdev(_trimmed(fractions)) / math.sqrt(len(fractions))
    cells = [
        str(batch),
        f"{step * 1000:.2f}",
        f"{statistics.median(on) * 1000:.2f}",
        f"{middle:.2%} (± {spread:.2%})",
        f"{calls * 1e6:.0f}",
        f"{fastest * 1000:.2f}",
        f"{calls / fastest:.2%}",
        "yes" if calls / fastest < MOST else "no",
        f"{calls / MOST * 1000:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def _trimmed(values: Sequence[float]) -> Sequence[float]:
    """Leaves out the tenth at either end, where another process disturbed a step."""
    cut = len(values) // 10
    return values[cut : len(values) - cut]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Measures what recording the metrics costs a step.")
    parser.add_argument("--pairs", type=int, default=600, help="pairs of steps with and without recording, for each line")
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16], help="pictures per step, one line each")
    parser.add_argument("--log-every", type=int, default=10, help="training.log_every; 1 logs every step")
    parser.add_argument("--warm-up", type=int, default=20, help="steps to take before the first one that is measured")
    options = parser.parse_args(arguments)
    rows = []
    for batch in options.batches:
        with prepared(batch, options.log_every, options.warm_up) as training:
            steps = 10 * options.log_every
            calls = least(taped(training, steps), 50) / steps
            rows.append(_row(batch, *alternate(training, options.pairs), calls))
    print(f"\n{measured_here()}; torch {torch.__version__}, 1 thread, {options.pairs} pairs, logged every {options.log_every} steps\n")
    print(
        "| pictures per step | step ms, off | step ms, on | cost in pairs | calls us | fastest step ms | calls / fastest "
        "| calls under 0.5 % | for steps from ms |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
