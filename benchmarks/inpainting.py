"""Trains the inpainting recipe with the joint loss and with reconstruction alone, and compares both with fills that need no training.

Two data sets: crops of the photographs of BSDS500, and 40 classes of Tiny ImageNet. Held back are whole photographs: those of val.txt, and
the validation pictures. All runs of a data set have the same budget, steps and seed; benchmarks/inpainting.yaml has them. The tables are
printed last. FOLDER keeps shards, runs and evaluations, so that a later call takes only what is not there.

    python -m benchmarks.inpainting FOLDER

FOLDER/pictures gets the loss curves and, for each data set, a grid of photographs that scikit-image ships, filled by the trained networks
and by the fills that need no training.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from benchmarks.inpainting_pictures import COLUMNS, draw_curves, draw_grid, shipped_crops
from benchmarks.inpainting_tables import OWN, differences_table, figures_table, read_evaluation, sharpness_line
from benchmarks.machine import measured_here
from launch.evaluate import main as evaluate
from pipeline import recipes
from pipeline.config import Config, parse
from pipeline.training.loop import pretrain
from pipeline.training.slurm.attempts import is_finished
from pipeline.training.supervision.interruption import Interruption
from shards.__main__ import main as shards

ROOT = Path(__file__).resolve().parents[1]
BUDGET = Path(__file__).with_suffix(".yaml")
SIDE, CROP = 192, 128
"""Shorter side of a BSDS photograph in pixels before crops are cut out of it, and side of a crop."""
STRIDES = {"train": 16, "val": 128}
"""Pixels between neighbouring crops of a photograph; those of a held-back one don't overlap."""


@dataclass(frozen=True)
class Run:
    """One training run of the benchmark.

    Attributes:
        data_set: name of the data set.
        loss: name of the loss.
        words: command line of launch/pretrain.py, without the data set and the run folder.
    """

    data_set: str
    loss: str
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return f"{self.data_set}_{self.loss}"


def read_runs(budget: Mapping[str, Any]) -> list[Run]:
    """Makes the runs of a file such as benchmarks/inpainting.yaml."""
    runs = []
    for data_set, facts in budget["data_sets"].items():
        for loss, weights in budget["losses"].items():
            chosen = {**budget["settings"], **facts["settings"], **weights}
            words = [word for name, value in chosen.items() for word in (f"--{name}", str(value))]
            runs.append(Run(data_set, loss, ("--config", str(ROOT / budget["config"]), *words)))
    return runs


def crops(pixels: NDArray[np.uint8], size: int, stride: int) -> Iterator[NDArray[np.uint8]]:
    """Cuts squares out of a picture, at every multiple of a stride where they fit.

    Args:
        pixels: picture, uint8 (H, W, 3).
        size: side of a square in pixels.
        stride: distance of neighbouring squares in pixels.
    """
    for top in range(0, pixels.shape[0] - size + 1, stride):
        for left in range(0, pixels.shape[1] - size + 1, stride):
            yield pixels[top : top + size, left : left + size]


def cut_photographs(photographs: Path, split: str, target: Path) -> None:
    """Writes the crops of the photographs of a split, PASCAL VOC's layout, into a folder.

    Args:
        photographs: folder with JPEGImages and ImageSets/Segmentation/{train,val}.txt.
        split: name of the split.
        target: folder of the crops.
    """
    target.mkdir(parents=True, exist_ok=True)
    for name in (photographs / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split():
        with Image.open(photographs / "JPEGImages" / f"{name}.jpg") as picture:
            factor = SIDE / min(picture.size)
            size = (round(picture.width * factor), round(picture.height * factor))
            pixels = np.asarray(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS))
        for number, crop in enumerate(crops(pixels, CROP, STRIDES[split])):
            Image.fromarray(crop).save(target / f"{name}_{number:03d}.jpg", quality=95, subsampling=0)


def build_shards(data: Path, folder: Path, data_set: str) -> dict[str, Path]:
    """Builds the shards of a data set, unless they are there; returns the folders of `train` and `val`."""
    found = {}
    for split in ("train", "val"):
        found[split] = target = folder / "shards" / f"{data_set}_{split}"
        if (target / "manifest.json").exists():
            continue
        if data_set == "bsds":
            source, options = folder / "crops" / split, []
            cut_photographs(data / "bsds_voc_layout" / "VOC2012", split, source)
        else:
            source, options = data / "tiny_imagenet" / "tiny_imagenet_40.tar", ["--split", split]
        build(source, target, *options)
    return found


def build(source: Path, target: Path, *options: str) -> None:
    """Builds shards of the pictures of a folder or a tar as they are, unless they are there."""
    if not (target / "manifest.json").exists():
        words = ["build", str(source), str(target), "--resize", "none", "--labels", "none", *options]
        with redirect_stdout(sys.stderr):
            if shards(words):
                raise SystemExit(f"{target}: the build failed; its message is above")


def configured(run: Run, data: Mapping[str, Path], target: Path) -> Config[Any]:
    """Returns the settings of a run's training."""
    words = [*run.words, "--data.shards", str(data["train"]), "--evaluation.shards", str(data["val"]), "--run", str(target)]
    return parse(recipes.SETTINGS, [*words, "--monitoring.enabled", "False"])


def train(run: Run, data: Mapping[str, Path], folder: Path) -> Path:
    """Trains a run to its end, unless it is finished; returns its folder."""
    target = folder / "runs" / run.name
    config = configured(run, data, target)
    if not is_finished(target, config.training.steps):
        with redirect_stdout(sys.stderr), (folder / "hours.txt").open("a") as hours:
            began = time.monotonic()
            pretrain(config, Interruption())
            hours.write(f"{run.name} {time.monotonic() - began:.0f} s\n")
    return target


def judge(run: Path, shards_url: Path, target: Path, words: Sequence[str]) -> Path:
    """Evaluates a trained run by launch/evaluate.py, unless that is done; returns the folder of the table, `target`.

    Args:
        run: folder of the run.
        shards_url: data set of the pictures to judge on.
        target: folder of the table.
        words: further words of the command line.
    """
    if not (target / "table.json").exists():
        command = ["inpainting", str(run), "--data.shards", str(shards_url), "--out", str(target), "--save", "True", *words]
        with redirect_stdout(sys.stderr):
            if evaluate(command):
                raise SystemExit(f"{target}: the evaluation failed; its message is above")
    return target


def hole_of(config: Config[Any]) -> NDArray[np.bool_]:
    """The hole of every picture of a run with a central region: bool (S, S), True inside the hole."""
    recipe = recipes.make(config.recipe, config.method, config.seed)
    hole = np.zeros((recipe.image_size, recipe.image_size), np.bool_)
    assert recipe.mask is not None, "the inpainting recipe drops pixels"
    recipe.mask.draw(0, hole)
    return hole


def report(title: str, runs: Sequence[Run], words: Sequence[str], data: Path, folder: Path) -> str:
    """Trains and evaluates the runs of a data set, the joint loss first, and returns the tables.

    Args:
        title: name of the data set in the heading.
        runs: runs of the data set.
        words: further words of the evaluation's command line.
        data: folder of the photographs.
        folder: folder of shards, runs and evaluations.
    """
    built = build_shards(data, folder, runs[0].data_set)
    hole = hole_of(configured(runs[0], built, folder))
    trained = {run.loss: train(run, built, folder) for run in runs}
    shipped = shipped_crops(folder / "crops" / f"shipped_{runs[0].data_set}", len(hole), SIDE if len(hole) == CROP else len(hole))
    public = folder / "shards" / f"shipped_{runs[0].data_set}"
    build(shipped, public)
    results, grids = [], {}
    for run in runs:
        own, fills = ("all", ",".join(COLUMNS)) if run is runs[0] else (OWN, "none")  # the other methods fill alike beside every run
        out = judge(trained[run.loss], built["val"], folder / "evaluations" / run.name, ["--methods", own, *words])
        results.append(read_evaluation(out, run.loss, hole))
        out = folder / "evaluations" / f"{run.name}_shipped"
        grids[run.loss] = judge(trained[run.loss], public, out, ["--methods", fills])
    pictures = folder / "pictures"
    draw_grid(pictures / f"{runs[0].data_set}.png", grids, hole)
    draw_curves(pictures / f"{runs[0].data_set}.svg", trained)
    joint, *others = results
    parts = [f"### {title}", figures_table(joint, others), differences_table(joint, others)]
    return "\n\n".join([*parts, *(sharpness_line(joint, each) for each in others)]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains and evaluates the runs that are not there, and prints the tables."""
    parser = argparse.ArgumentParser(description="Compares the losses of the inpainting recipe with fills that need no training.")
    parser.add_argument("folder", type=Path, help="folder of shards, runs, evaluations and pictures, which a later call continues")
    parser.add_argument("--budget", type=Path, default=BUDGET, help="YAML file of the runs' settings")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="take only these data sets")
    options = parser.parse_args(arguments)
    data = Path(os.environ.get("CONTEXT_ENCODER_DATA", ROOT.parent / "shared" / "data"))
    budget = yaml.safe_load(options.budget.read_text())
    runs = read_runs(budget)
    tables = []
    for name, facts in budget["data_sets"].items():
        if not options.only or name in options.only:
            own = [run for run in runs if run.data_set == name]
            tables.append(report(facts["title"], own, [str(word) for word in facts["evaluate"]], data, options.folder))
    print("\n".join(tables))
    print((options.folder / "hours.txt").read_text())
    print(f"{measured_here()}; 1 thread")


if __name__ == "__main__":
    main()
