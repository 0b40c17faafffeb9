"""Pictures of benchmarks/inpainting.py: the curves of the losses, and a grid of photographs that anybody may copy.

The grid shows photographs that scikit-image ships, all in the public domain or CC0, because the pictures of the data sets are not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks.inpainting_tables import NETWORK, TRUTH, read_fills
from monitoring.run_files import EVALUATION, Lines
from pipeline.training.record.grid import save_columns, with_hole

COLUMNS = {"mean": "mean fill", "telea": "Telea", "patchmatch": "PatchMatch"}
"""Fills of the grid, and the names of their columns."""
SMALLEST = 128
"""Side of a picture in the grid in pixels; smaller pictures are enlarged by whole factors, so that the heads of the columns fit."""
COLOURS = ("#1f77b4", "#d62728", "#2ca02c")
WIDTH, HEIGHT, EDGE = 640, 240, 44
"""Size of the curves' picture in pixels, and the room beside the plot."""
SMOOTHED = 25
"""Steps whose losses are averaged for one point of a curve."""


def shipped_crops(target: Path, size: int, side: int) -> Path:
    """Writes the middle squares of scikit-image's photographs into a folder.

    Args:
        target: folder of the squares.
        size: side of a square in pixels.
        side: shorter side of a photograph in pixels before the square is cut out of it.
    """
    from skimage import data  # noqa: PLC0415 - only pictures need it

    target.mkdir(parents=True, exist_ok=True)
    for name in ("astronaut", "chelsea", "coffee"):
        picture = Image.fromarray(getattr(data, name)())
        factor = side / min(picture.size)
        picture = picture.resize((round(picture.width * factor), round(picture.height * factor)), Image.Resampling.LANCZOS)
        left, top = ((length - size) // 2 for length in picture.size)
        picture.crop((left, top, left + size, top + size)).save(target / f"{name}.png")
    return target


def draw_grid(path: Path, evaluations: Mapping[str, Path], hole: NDArray[np.bool_]) -> None:
    """Draws a grid with one row a photograph, and a column for each fill and each loss.

    Args:
        path: path of the PNG.
        evaluations: folder of the evaluation of each loss, all on the same photographs.
        hole: hole of every photograph, bool (H, W).
    """
    first = next(iter(evaluations.values()))
    fills = {title: read_fills(first, name) for name, title in COLUMNS.items()}
    fills |= {loss: read_fills(folder, NETWORK) for loss, folder in evaluations.items()}
    times = max(1, SMALLEST // len(hole))

    def enlarged(values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values.repeat(times, 1).repeat(times, 2))

    truth = enlarged(read_fills(first, TRUTH))
    holes = enlarged(np.repeat(hole[None], len(truth), 0)).unsqueeze(1)
    columns = {"context": with_hole(truth, holes, hatched=True)}
    columns |= {title: with_hole(enlarged(pictures), holes) for title, pictures in fills.items()}
    save_columns(path, {**columns, "truth": truth}, {"context": "hole hatched"})


def draw_curves(path: Path, runs: Mapping[str, Path]) -> None:
    """Draws the reconstruction loss of each run, and its L1 on held-back pictures at the evaluated steps, as one SVG.

    Args:
        path: path of the SVG.
        runs: folder of the run of each loss.
    """
    losses = {name: _losses(run) for name, run in runs.items()}
    held_back = {name: [(row["step"], row["l1"]) for row in Lines(run / EVALUATION)] for name, run in runs.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    plots = [_plot("reconstruction loss, mean of 25 steps", losses, 0), _plot("L1 % on held-back pictures", held_back, WIDTH)]
    text = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">'
    path.write_text("\n".join([text, f'<rect width="{2 * WIDTH}" height="{HEIGHT}" fill="white"/>', *plots, "</svg>\n"]))


def _losses(run: Path) -> list[tuple[float, float]]:
    rows = [(row["step"], row["losses"]["generator"]["reconstruction"]) for row in Lines(run / "history.jsonl")]
    whole = np.array(rows[: len(rows) // SMOOTHED * SMOOTHED]).reshape(-1, SMOOTHED, 2)
    return [(float(step), float(loss)) for step, loss in whole.mean(1)]


def _plot(title: str, curves: Mapping[str, Sequence[tuple[float, float]]], left: int) -> str:
    """One plot with its axes and legend; the vertical axis begins at 0."""
    last = max(step for points in curves.values() for step, _ in points)
    top = 1.05 * max(value for points in curves.values() for _, value in points)
    width, height = WIDTH - 2 * EDGE, HEIGHT - 2 * EDGE
    parts = [f'<g transform="translate({left + EDGE} {EDGE})">', f'<text y="-14">{title}</text>']
    parts.append(f'<path d="M0 0V{height}H{width}" fill="none" stroke="#666"/>')
    for part in (0, 0.5, 1):
        parts.append(f'<text x="-6" y="{height * (1 - part) + 4:.0f}" text-anchor="end">{top * part:.3g}</text>')
        parts.append(f'<text x="{width * part:.0f}" y="{height + 18}" text-anchor="middle">{last * part:.0f}</text>')
    for number, (name, points) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{width * step / last:.1f},{height * (1 - value / top):.1f}" for step, value in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(f'<text x="{width}" y="{16 * number}" text-anchor="end" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</g>"])
