"""What do the metrics of a run cost it: its steps with them on, beside the same steps with them off?

One process trains a small inpainting network on the CPU, with the step and the reporting of a real run. Steps that record alternate with
steps that don't, in pairs whose order is drawn. Beside that, the calls that the steps make are taped and played again and again without
the training, which says what they cost by themselves; the verdict is on that, since a busy machine hides them in the pairs. Prints one
Markdown table.

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
from pipeline.training.reporting.reporter import Reporting
from pipeline.training.reporting.telemetry import LOADER_SERIES, Telemetry
from pipeline.training.resume import enter
from pipeline.training.step import TrainStep
from pipeline.training.supervision.watchdog import Watchdog

MOST = 0.005
"""Share of a step that recording may cost."""
Call = Callable[[Any, Any], object]


class Totals:
    """Counters of a loader whose every total has moved since they were last read: the most that a logged step can have to record."""

    def __init__(self) -> None:
        self.counters = self
        self._names = [name for definition in complete(LOADER_SERIES) for name in definition.feeds]
        self._read = 0

    def totals(self) -> dict[str, float]:
        """Totals by name."""
        self._read += 1
        return dict.fromkeys(self._names, float(self._read))

    def cache_failures(self) -> dict[tuple[str, int], str]:
        """None."""
        return {}


class Silent:
    """In the place of the metrics and of the phases: takes every call and does nothing."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return nullcontext if name == "collective" else self._nothing

    @staticmethod
    def _nothing(*_: object, **__: object) -> tuple[()]:
        return ()


class Tape:
    """In the same place: passes every call on, and keeps it so that it can be played again.

    Args:
        calls: where they are kept, in their order.
        part: of a pair of objects that they are for: 0 the metrics, 1 the phases.
        of: the real one.
    """

    def __init__(self, calls: list[Call], part: int, of: Any) -> None:
        self._calls, self._part, self._of = calls, part, of

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method, part = getattr(self._of, name), self._part

        def call(*arguments: Any, **named: Any) -> Any:
            self._calls.append(lambda *pair: getattr(pair[part], name)(*arguments, **named))
            return method(*arguments, **named)

        return call

    @contextmanager
    def collective(self) -> Iterator[None]:
        """A wait, which is played as one that has nothing to wait for."""

        def play(*pair: Any) -> None:
            with pair[1].collective():
                pass

        self._calls.append(play)
        with self._of.collective():
            yield


class Training:
    """A small network, a batch of noise that it is trained on again and again, and the reporting of a run."""

    def __init__(self, config: Config[Any], world: World, folder: RunFolder, watchdog: Watchdog) -> None:
        recipe = recipes.make(config.recipe, config.method, 0)
        batch, side = config.training.global_batch, recipe.image_size
        self.contestants = enter(recipe, None, world, config.training)
        self.step = TrainStep(
            recipe, self.contestants, world, global_batch=batch, largest_share=batch, micro_batch=batch, bf16=False, max_nonfinite_steps=10
        )
        telemetry = Telemetry(config, world, folder, watchdog)
        self.reporting = Reporting(config, world, folder, Totals(), 0, recipe.players, telemetry)  # type: ignore[arg-type]
        self.reporting.model(1e9)
        masks = torch.zeros(batch, side, side, dtype=torch.bool)
        masks[:, side // 4 : -side // 4, side // 4 : -side // 4] = True
        images, ids = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8), torch.arange(batch)
        self.batch = Batch(images, masks, None, ids, 0, 0, ids)
        self.steps = 0
        self.real: tuple[Any, Any] = (self.reporting.metrics, self.step.phases)

    def record_with(self, metrics: Any, phases: Any) -> None:
        """What is told of the next steps."""
        self.reporting.metrics, self.step.phases = metrics, phases

    def __call__(self) -> float:
        """One step, as the loop takes it; returns its seconds, with everything that is told of it."""
        began = time.perf_counter()
        phases = self.step.phases
        phases.begin()
        result = self.step(self.batch, 1.0)
        self.steps += 1
        seconds = time.perf_counter() - began
        phases.end(seconds)
        self.reporting.rates({each.player.name: each.player.optimiser.learning_rate for each in self.contestants})
        self.reporting.step(self.steps, self.batch, result, 1.0, seconds, 0.001, 0, (0, 0))
        self.reporting.times(phases.read())
        return time.perf_counter() - began


@contextmanager
def prepared(batch: int, log_every: int) -> Iterator[Training]:
    """A training that is past its first steps, of so many pictures a step, which logs every so many steps."""
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
        stack.callback(training.reporting.close)
        for _ in range(20):
            training()
        yield training


def taped(training: Training, steps: int) -> Callable[[], None]:
    """What `steps` steps tell, to be told again and again without the training."""
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
    """Seconds of the fastest of several repeats."""
    found = math.inf
    for _ in range(repeats):
        began = time.perf_counter()
        play()
        found = min(found, time.perf_counter() - began)
    return found


def alternate(training: Training, pairs: int) -> tuple[list[float], list[float]]:
    """Seconds of steps without and with recording, neighbours of each other. What is logged every few steps is part of both."""
    off, on = list[float](), list[float]()
    for _ in range(pairs):
        for recorded in random.sample((False, True), 2):
            training.record_with(*(training.real if recorded else (Silent(), Silent())))
            (on if recorded else off).append(training())
    return off, on


def _row(batch: int, off: Sequence[float], on: Sequence[float], calls: float) -> str:
    step, fastest = statistics.median(off), min(off)
    shares = sorted((with_it - without) / step for without, with_it in zip(off, on, strict=True))
    middle, spread = statistics.median(shares), 1.25 * statistics.stdev(_trimmed(shares)) / math.sqrt(len(shares))
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
    """Without the tenth at either end, where another process was in the way."""
    cut = len(values) // 10
    return values[cut : len(values) - cut]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="What recording costs a step.")
    parser.add_argument("--pairs", type=int, default=600, help="of steps with and without recording, a line")
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16], help="pictures a step, a line each")
    parser.add_argument("--log-every", type=int, default=10, help="training.log_every: 1 records all there is with every step")
    arguments = parser.parse_args()
    rows = []
    for batch in arguments.batches:
        with prepared(batch, arguments.log_every) as training:
            steps = 10 * arguments.log_every
            calls = least(taped(training, steps), 50) / steps
            rows.append(_row(batch, *alternate(training, arguments.pairs), calls))
    print(f"\n{measured_here()}; torch {torch.__version__}, 1 thread, {arguments.pairs} pairs, logged every {arguments.log_every} steps\n")
    print(
        "| pictures a step | step ms, off | step ms, on | cost in pairs | calls us | fastest step ms | calls / fastest | calls under 0.5 % "
        "| for steps from ms |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
