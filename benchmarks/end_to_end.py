"""The speed of a whole run, from shards to trained steps, beside its loader alone and its step alone, and where its time goes.

python -m benchmarks.end_to_end [--config FILE ...] [--pictures FOLDER] [--threads 1 2] [--rounds 5] [--SECTION.SETTING VALUE ...]

The three sides take turns in one process, on the same cores and with the same settings. The run is `pretrain` itself with monitoring,
evaluation, grids and checkpoints on. benchmarks/README.md has the method.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import measured_here
from benchmarks.observed_run import PHASES, Notes, now, observed
from benchmarks.streaming import build
from pipeline import recipes
from pipeline.config import Config, parse
from pipeline.stream.loader import Batch, StreamConfig, StreamLoader
from pipeline.training.ranks.world import join
from pipeline.training.resume import build_engines
from pipeline.training.step import TrainStep

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ("launch/configs/features.yaml", "launch/configs/inpainting.yaml")
TARGET = 0.95
STORED = {"inpainting": "350"}
"""Shorter side of the stored pictures, by recipe; 256 for all others."""
_ON_CPUS = 32  # pictures of a batch there, or a batch-norm group where that is more


@dataclass(frozen=True)
class Speed:
    """Pictures a second on the clock, and the cores that the process kept busy."""

    rate: float
    cores: float


class Sides:
    """The three sides of one configuration: the loader, the step, and the run.

    Args:
        config: settings of the run.
        scratch: folder for the runs.
        seconds: seconds of one measurement, about.
        steps: steps of one measurement; 0: as many as fit into `seconds`.
    """

    def __init__(self, config: Config[Any], scratch: Path, seconds: float, steps: int) -> None:
        self.config, self.seconds, self.steps = config, seconds, steps
        self._run = scratch / "run"
        recipe = recipes.make(config.recipe, config.method, config.seed)
        self._stream = StreamConfig(
            data=config.data,
            image_size=recipe.image_size,
            global_batch=config.training.global_batch,
            seed=config.seed,
            mask=recipe.mask,
            unit=recipe.unit,
            held_back=config.evaluation.held_back,
        )
        self.batch = next(self._batches(0))
        self.warm = max(config.data.ready_batches + 1, 10 if torch.cuda.is_available() else 0)
        self.notes: list[Notes] = []
        if not steps:
            self.steps = 3
            self.steps = max(3, min(2000, round(seconds * self.step().rate / config.training.global_batch)))

    def _batches(self, warm: int) -> Iterator[Batch]:
        """Yields batches after the first few, which were prepared before anybody took one."""
        with StreamLoader(self._stream) as loader:
            self.decoding_threads = loader.threads
            for number, batch in enumerate(loader):
                if number >= warm:
                    yield batch

    def loader(self) -> Speed:
        """Takes batches and drops them, for about as long as a measurement is."""
        pictures, batches = 0, self._batches(self.warm)
        next(batches)
        began, busy = time.perf_counter(), time.process_time()
        for batch in batches:
            pictures += len(batch.sample_ids)
            if (seconds := time.perf_counter() - began) > self.seconds:
                break
        return Speed(pictures / seconds, (time.process_time() - busy) / seconds)

    def step(self) -> Speed:
        """Trains on the same batch in memory again and again."""
        training = self.config.training
        with ExitStack() as stack:
            world = stack.enter_context(join(training))
            recipe = recipes.make(self.config.recipe, self.config.method, self.config.seed)
            engines = [stack.enter_context(each) for each in build_engines(recipe, None, world, training)]
            step = TrainStep(recipe, engines, world, training)
            for _ in range(min(self.warm, 2) if world.device.type == "cpu" else self.warm):
                step(self.batch, 1e-3)
            began, busy = now(), time.process_time()
            for _ in range(self.steps):
                step(self.batch, 1e-3)
            seconds = now() - began
        return Speed(self.steps * len(self.batch.sample_ids) / seconds, (time.process_time() - busy) / seconds)

    def run(self) -> Speed:
        """Pretrains a new run of a few steps, and measures all but its first ones."""
        steps = self.warm + self.steps
        training = replace(self.config.training, steps=steps, pictures_every=steps if self.config.training.pictures_every else 0)
        notes = observed(replace(self.config, training=training, run=str(self._run)), self.warm)
        shutil.rmtree(self._run)
        self.notes.append(notes)
        seconds = notes.step_seconds() + notes.now_and_then(self.config)
        return Speed(training.global_batch / seconds, notes.cores())


def measure(sides: Any, rounds: int) -> dict[str, list[Speed]]:
    """Measures in rounds, in which the three sides take turns, the first one rotating; returns their speeds by side."""
    names = ("loader", "step", "run")
    found: dict[str, list[Speed]] = {name: [] for name in names}
    for number in range(rounds):
        for name in (*names[number % 3 :], *names[: number % 3]):
            found[name].append(getattr(sides, name)())
    return found


def speed_row(head: Sequence[str], found: dict[str, list[Speed]]) -> str:
    """Returns the line of the table of speeds: each round's ratio is that to its own slower side.

    Args:
        head: first cells of the line.
        found: speeds by side, as `measure` returns them.
    """
    ratios = [run.rate / min(loader.rate, step.rate) for loader, step, run in zip(*found.values(), strict=True)]
    ratio = statistics.median(ratios)
    cells = [f"{statistics.median(each.rate for each in speeds):.1f}" for speeds in found.values()]
    cells.append(f"{ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    cells.append(" / ".join(f"{statistics.median(each.cores for each in speeds):.2f}" for speeds in found.values()))
    return _line([*head, *cells, "yes" if ratio >= TARGET else "no"])


def time_row(head: Sequence[str], notes: Sequence[Notes], config: Config[Any]) -> str:
    """Returns the line of the table of where the time goes: milliseconds of a step and their share, medians over the rounds."""
    splits = [each.split() | {"now and then": each.now_and_then(config)} for each in notes]
    middle = {name: statistics.median(split[name] for split in splits) for name in splits[0]}
    whole = sum(middle.values())
    return _line([*head, f"{1000 * whole:.1f}", *(f"{1000 * seconds:.1f} ({seconds / whole:.1%})" for seconds in middle.values())])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _config(path: str, threads: int, shards: Path, scratch: Path, more: Sequence[str]) -> Config[Any]:
    """Reads the settings; on CPUs in fp32 and with a batch that a core can train on."""
    places = ["--data.shards", str(shards), "--run", str(scratch / "run"), "--monitoring.port", "0", "--monitoring.report", "False"]
    settings = ["--config", path, *places, "--training.threads", str(threads)]
    if not torch.cuda.is_available():
        usual = parse(recipes.SETTINGS, settings)
        batch = max(_ON_CPUS, getattr(usual.method, "unit", 1))
        settings += ["--training.precision", "fp32", "--training.global_batch", str(batch), "--training.micro_batch", str(batch)]
    return parse(recipes.SETTINGS, [*settings, *more])


def _arguments(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("CONTEXT_ENCODER_DATA", ROOT.parent / "shared" / "data")) / "imagenet_sample"
    parser.add_argument("--config", nargs="+", default=CONFIGS, metavar="FILE", help="configurations (default: both recipes of the paper)")
    parser.add_argument("--pictures", type=Path, default=default, help="folder of photographs (default: imagenet_sample)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="torch threads, a line each (default: 1, the default of runs)")
    parser.add_argument("--seconds", type=float, default=8.0, help="seconds of one measurement, about (default: 8)")
    parser.add_argument("--steps", type=int, default=0, help="steps of one measurement (default: as many as fit into --seconds)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each side (default: 5)")
    parser.add_argument("--output", type=Path, help="file for the tables, beside standard output")
    options, more = parser.parse_known_args(arguments)
    if not options.pictures.is_dir():
        parser.error(f"no photographs in {options.pictures}: name a folder of them with --pictures")
    return options, more


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    options, more = _arguments(arguments)
    speeds, times = [], []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        shards: dict[str, Path] = {}
        for path in options.config:
            for threads in options.threads:
                config = _config(path, threads, scratch / "later", scratch, more)
                side = STORED.get(config.recipe, "256")
                shards[side] = shards.get(side) or build(options.pictures, scratch, f"stored at {side}", side)
                print(f"{path}, {threads} torch threads ...", file=sys.stderr, flush=True)
                sides = Sides(replace(config, data=replace(config.data, shards=str(shards[side]))), scratch, options.seconds, options.steps)
                head = [config.recipe, f"{threads} + {sides.decoding_threads}", str(config.training.global_batch), str(sides.steps)]
                speeds.append(speed_row(head, measure(sides, options.rounds)))
                times.append(time_row(head[:2], sides.notes, config))
    text = "\n".join([*_heads(options), *times, "", *_SPEEDS, *speeds, ""])
    print(f"\n{text}")
    if options.output:
        options.output.write_text(text, encoding="utf-8")


_SPEEDS = (
    "| recipe | threads: torch + decoding | batch | steps | loader img/s | step img/s | end to end img/s | end to end / slower of both "
    "| cores busy: loader / step / end to end | 0.95 met |",
    "|---|---|---|---|---|---|---|---|---|---|",
)


def _heads(options: argparse.Namespace) -> list[str]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: the loader and the step share the cores"
    columns = ["recipe", "threads", "ms a step", "wait for data", *PHASES.values(), "other", "saves, evaluations, grids"]
    return [
        f"{measured_here()}; {device}; torch {torch.__version__}, {options.rounds} rounds",
        "",
        _line(columns),
        _line(["---"] * len(columns)),
    ]


if __name__ == "__main__":
    main()
