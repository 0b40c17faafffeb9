"""Sweeps the settings that decide how a run starts, and judges every run on held-back pictures beside two baselines.

Every fifth photograph of a folder is held back; the others are trained on, through the loader and the step of a real run. A run is judged
in evaluation mode at a few steps, always on the same crops and masks. The baselines are the mean colour of all held-back pictures, and the
mean colour of each picture's visible part. Prints one Markdown table a group of benchmarks/defaults.yaml.

    python -m benchmarks.defaults PHOTOGRAPHS
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.machine import measured_here
from monitoring.run_files import BASELINES
from pipeline import recipes
from pipeline.config import Config, parse
from pipeline.stream.loader import Batch, StreamConfig, StreamLoader
from pipeline.training.held_back.opening import open_evaluation
from pipeline.training.ranks import world as distributed
from pipeline.training.resume import build_engines
from pipeline.training.step import TrainStep, rate_factor

POINTS = Path(__file__).with_name("defaults.yaml")
EVERY = 5
"""One photograph of so many is held back."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One training run of the sweep.

    Attributes:
        group: name of the group: a configuration at a size.
        point: name of the point within the group.
        seed: seed of the run.
        arguments: command line of launch/pretrain.py, without the data set.
        resize: shorter side of the stored pictures.
        judged: steps after which the run is judged; the last one ends the run.
    """

    group: str
    point: str
    seed: int
    arguments: tuple[str, ...]
    resize: int
    judged: tuple[int, ...]

    def results(self, folder: Path) -> Path:
        """Returns the file that holds the rows of the run once it is finished."""
        return folder / "results" / (re.sub(r"[^\w.-]+", "_", f"{self.group}_{self.point}_{self.seed}") + ".jsonl")


def read_runs(group: str, facts: Row) -> list[Run]:
    """Makes the runs of a group.

    Args:
        group: name of the group.
        facts: configuration, settings that all points share, judged steps, seeds (by default 0), and the points with their own settings.
    """
    runs = []
    for point, settings in facts["points"].items():
        chosen = {**facts["settings"], **settings}
        seeds = chosen.pop("seeds", facts.get("seeds", [0]))
        arguments = [word for name, value in chosen.items() for word in (f"--{name}", *str(value).split())]
        words = ("--config", facts["config"], *arguments)
        runs += [Run(group, point, seed, words, facts.get("resize", 256), tuple(facts["judged"])) for seed in seeds]
    return runs


def build_shards(photographs: Path, folder: Path, resize: int) -> tuple[Path, Path]:
    """Builds shards of the pictures to train on and of the held-back ones, unless they are there; returns both folders."""
    names = sorted(path for path in photographs.iterdir() if path.is_file())
    found = []
    for part in ("train", "held_back"):
        pictures, shards = folder / part, folder / f"{part}_{resize}"
        if not (shards / "manifest.json").exists():
            pictures.mkdir(parents=True, exist_ok=True)
            for number, path in enumerate(names):
                link = pictures / path.name
                if (number % EVERY == EVERY // 2) == (part == "held_back") and not link.exists():
                    link.symlink_to(path.resolve())
            command = ["build", str(pictures), str(shards), "--resize", str(resize), "--labels", "none"]
            subprocess.run([sys.executable, "-m", "shards", *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        found.append(shards)
    return found[0], found[1]


def trained(run: Run, shards: tuple[Path, Path]) -> Iterator[Row]:
    """Trains one run and yields its evaluation at each judged step, a row as in `evaluation.jsonl`."""
    data = ["--seed", str(run.seed), "--data.shards", str(shards[0]), "--data.threads", "1"]
    held_back = ["--evaluation.shards", str(shards[1]), "--evaluation.pictures", "1000"]
    config: Config[Any] = parse(recipes.SETTINGS, [*run.arguments, *data, *held_back])
    recipe = recipes.make(config.recipe, config.method, config.seed)
    batch, seconds = config.training.global_batch, 0.0
    stream = StreamConfig(config.data, recipe.image_size, batch, config.seed, recipe.mask, recipe.unit)
    with distributed.join(config.training) as world, StreamLoader(stream) as loader, ExitStack() as stack:
        step = TrainStep(recipe, build_engines(recipe, None, world, config.training), world, config.training)
        evaluation = open_evaluation(stack, config, recipe, step.engines, world, loader)
        assert not isinstance(evaluation, str), evaluation
        batches: Iterator[Batch] = iter(loader)
        for number in range(max(run.judged) + 1):
            if number in run.judged:
                found = evaluation()
                assert found is not None, f"none of the held-back pictures in {shards[1]} can be read"
                yield {"step": number, "cpu_seconds": round(seconds, 1), **found}
            began = time.process_time()
            step(next(batches), rate_factor(config.schedule, number, config.training.steps))
            seconds += time.process_time() - began


def read_results(path: Path) -> list[Row]:
    """Reads the rows of a finished run; none if the file is missing."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def steps_to_gain(rows: Sequence[Row]) -> str:
    """Returns the first judged step from which on a run beats both baselines at every judged step; a dash if it never does."""
    found = "-"
    for row in reversed(rows):
        if row["gain"] <= 0:
            break
        found = str(row["step"])
    return found


def table(group: str, facts: Row, results: Mapping[Run, Sequence[Row]]) -> str:
    """Makes the Markdown section of a group: one line a run.

    Args:
        group: name of the group.
        facts: facts of the group in the file of points.
        results: rows of the group's finished runs.
    """
    constant, visible = (next(iter(results.values()))[0]["baselines"][name]["l1"] for name in BASELINES)
    settings = " ".join(f"--{name} {value}" for name, value in facts["settings"].items())
    head = ["point", "seed", *map(str, facts["judged"]), "beats both from", "spread", "dead early", "dead at the end", "CPU s"]
    lines = [
        f"### {group}",
        "",
        f"`--config {facts['config']} {settings}`",
        "",
        f"L1 of a constant colour: {constant:.2f} %, of the visible part's mean: **{visible:.2f} %**.",
        "",
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
    ]
    for run, rows in results.items():
        own = [f"{name.rpartition('.')[2]} {value}" for name, value in facts["points"][run.point].items() if name != "seeds"]
        cells = [": ".join(filter(None, (run.point, ", ".join(own)))), str(run.seed)]
        cells += [f"**{row['l1']:.2f}**" if row["gain"] > 0 else f"{row['l1']:.2f}" for row in rows]
        cells += [steps_to_gain(rows), f"{rows[-1]['output_spread']:.2f}"]
        cells += [_dead(rows[1]), _dead(rows[-1]), f"{rows[-1]['cpu_seconds']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _dead(row: Row) -> str:
    return ", ".join(str(count) for name, count in row["dead_maps"].items() if name in ("relu3", "relu4", "relu5")) or "-"


def main(arguments: Sequence[str] | None = None) -> None:
    """Takes the runs that the folder holds no results of, and prints the tables."""
    parser = argparse.ArgumentParser(description="Sweeps the settings that decide how a run starts.")
    parser.add_argument("photographs", type=Path, help="folder of pictures")
    parser.add_argument("--points", type=Path, default=POINTS, help="YAML file of the groups and their points")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="take only runs whose GROUP/POINT holds one of these texts")
    parser.add_argument("--folder", type=Path, help="folder of shards and results, which a later call continues; else a temporary one")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        groups = yaml.safe_load(options.points.read_text())
        for group, facts in groups.items():
            runs = [run for run in read_runs(group, facts) if _chosen(run, options.only)]
            for run in runs:
                take(run, options.photographs, folder)
            if results := {run: rows for run in runs if (rows := read_results(run.results(folder)))}:
                print(table(group, facts, results))
    print(f"{measured_here()}; torch {torch.__version__}, 1 thread a run")


def _chosen(run: Run, texts: Sequence[str]) -> bool:
    return not texts or any(text in f"{run.group}/{run.point}" for text in texts)


def take(run: Run, photographs: Path, folder: Path) -> None:
    """Trains a run and writes its rows into the folder, unless they are there."""
    path = run.results(folder)
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    shards = build_shards(photographs, folder, run.resize)
    part = path.with_suffix(f".{os.getpid()}")
    with part.open("w") as lines:
        for row in trained(run, shards):
            lines.write(json.dumps(row) + "\n")
            lines.flush()
            print(f"{run.group}/{run.point}, seed {run.seed}, step {row['step']}: gain {row['gain']:.1%}", file=sys.stderr, flush=True)
    part.rename(path)


if __name__ == "__main__":
    main()
