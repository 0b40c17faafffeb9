"""Tables of benchmarks/inpainting.py, made of what `launch/evaluate.py inpainting` writes.

In: the folder of each run's evaluation, with table.json, pictures.csv and fills/METHOD. Out: Markdown tables of a data set: the figures of
every method, the differences between the joint loss and everything else picture by picture, and the gradient energy inside the hole.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.evaluation.probe.intervals import Interval, mean

NETWORK, TRUTH, OWN = "context_encoder", "truth", "nearest_encoder"
"""Names of the checkpoint, of the true pictures, and of the method that describes pictures with the checkpoint's own features."""
ENERGY = "energy"
"""Name of the gradient energy beside the figures of the evaluation."""
FIGURES = {"l1": ("L1 %", 2), "l2": ("L2 %", 2), "psnr": ("PSNR dB", 2), "ssim": ("SSIM", 4)}
WHOLE = {"whole_l1": ("L1 %, whole", 2), "whole_l2": ("L2 %, whole", 2), "whole_psnr": ("PSNR dB, whole", 2)}
LARGER_IS_BETTER = ("psnr", "ssim")
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of one run.

    Attributes:
        title: name of the run in tables.
        titles: title of each method, by name, in the order of the table.
        figures: figures of each method, by their names: float64 (pictures,), all in the same order of pictures.
    """

    title: str
    titles: Mapping[str, str]
    figures: Mapping[str, Mapping[str, Values]]


def gradient_energy(pictures: NDArray[np.uint8], hole: NDArray[np.bool_]) -> Values:
    """Computes the mean squared gradient of each picture inside a hole: how sharp a fill is, whether it is right or not.

    The gradient is the difference of neighbouring pixels that both lie in the hole, across and down, of values in [0, 1].

    Args:
        pictures: uint8 (n, H, W, 3).
        hole: bool (H, W), True inside the hole.

    Returns:
        float64 (n,), times 1000.
    """
    values = pictures / 255.0
    across, down = hole[:, 1:] & hole[:, :-1], hole[1:] & hole[:-1]
    squares = np.square(np.diff(values, axis=2))[:, across].mean((1, 2)) + np.square(np.diff(values, axis=1))[:, down].mean((1, 2))
    return 1000 * np.asarray(squares)


def read_evaluation(folder: Path, title: str, hole: NDArray[np.bool_]) -> Evaluation:
    """Reads the evaluation of a run.

    Args:
        folder: output folder of the evaluation.
        title: name of the run in tables.
        hole: hole of every picture, bool (H, W).
    """
    table = json.loads((folder / "table.json").read_text())
    figures: dict[str, dict[str, Any]] = defaultdict(lambda: defaultdict(list))
    with (folder / "pictures.csv").open(newline="") as lines:
        for row in csv.DictReader(lines):
            for name in (*FIGURES, *WHOLE):
                figures[row["method"]][name].append(float(row[name]))
    for method in [*figures, TRUTH]:
        figures[method][ENERGY] = gradient_energy(read_fills(folder, method), hole)
    found = {method: {name: np.asarray(values) for name, values in each.items()} for method, each in figures.items()}
    return Evaluation(title, {each["name"]: each["title"] for each in table["methods"]}, found)


def read_fills(folder: Path, method: str) -> NDArray[np.uint8]:
    """Reads the pictures that a method filled, in their order: uint8 (n, H, W, 3)."""
    return np.stack([np.asarray(Image.open(path)) for path in sorted((folder / "fills" / method).glob("*.png"))])


def shown(found: Interval, digits: int) -> str:
    """A mean with half of its interval."""
    return f"{found.value:.{digits}f} ± {found.half_width:.{digits}f}"


def figures_table(joint: Evaluation, others: list[Evaluation]) -> str:
    """Makes the table of all methods; those that need no network stand once.

    Args:
        joint: evaluation of the run with the joint loss, on the same pictures as the others.
        others: evaluations of the other runs.
    """
    columns = {**FIGURES, **WHOLE, ENERGY: ("gradient energy", 2)}
    head = ["method", *(name for name, _ in columns.values())]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]

    def add(title: str, figures: Mapping[str, Values]) -> None:
        cells = [shown(mean(figures[name]), digits) if name in figures else "" for name, (_, digits) in columns.items()]
        lines.append(f"| {' | '.join([title, *cells])} |")

    for name, title in joint.titles.items():
        if name not in (NETWORK, OWN):
            add(title, joint.figures[name])
    for each in (joint, *others):
        if OWN in each.titles:
            add(f"{each.titles[OWN]}, {each.title}", each.figures[OWN])
    for each in (joint, *others):
        add(f"**{each.title}**", each.figures[NETWORK])
    add("truth", joint.figures[TRUTH])
    return "\n".join(lines)


def verdict(name: str, difference: Interval) -> str:
    """A word about a difference of two methods' figures: better, worse, or not distinguishable."""
    if difference.lower <= 0 <= difference.upper:
        return "not distinguishable"
    return "better" if (difference.value > 0) == (name in LARGER_IS_BETTER) else "worse"


def differences_table(joint: Evaluation, others: list[Evaluation]) -> str:
    """Makes the table of the joint loss less everything else, picture by picture."""
    head = [f"{joint.title} less", *(f"{FIGURES[name][0]}" for name in FIGURES)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    own = joint.figures[NETWORK]
    rows = [(title, joint.figures[name]) for name, title in joint.titles.items() if name != NETWORK]
    rows += [(each.title, each.figures[NETWORK]) for each in others]
    for title, figures in rows:
        cells = []
        for name, (_, digits) in FIGURES.items():
            found = mean(own[name] - figures[name])
            cells.append(f"{found.value:+.{digits}f} ± {found.half_width:.{digits}f}, {verdict(name, found)}")
        lines.append(f"| {' | '.join([title, *cells])} |")
    return "\n".join(lines)


def sharpness_line(joint: Evaluation, reconstruction: Evaluation) -> str:
    """The sentence about gradient energy: of the truth, and the part of it that each loss paints."""
    truth = joint.figures[TRUTH][ENERGY].mean()
    own, plain = (each.figures[NETWORK][ENERGY] for each in (joint, reconstruction))
    found = mean(own - plain)
    return (
        f"Gradient energy inside the hole, x 1000: truth {truth:.2f}; {joint.title} {own.mean():.2f}, {own.mean() / truth:.1%} of the "
        f"truth's; {reconstruction.title} {plain.mean():.2f}, {plain.mean() / truth:.1%}; {joint.title} less {reconstruction.title} "
        f"{found.value:+.3f} ± {found.half_width:.3f}."
    )
