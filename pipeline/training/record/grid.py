"""A PNG grid of what the networks paint, for a person: one row a picture, and beside it how far the painting is from the truth.

Columns: the context with its hole hatched, the raw prediction, the prediction pasted into the hole, the truth, and the error of every
predicted pixel on a scale that is the same in every grid. A hole is outlined in the colour of the hatching, which no fill has, and the
outline lies outside the hole so that it hides no predicted pixel. Rows without a hole are drawn without marks.

The places of all cells are in the PNG's text under `monitoring.run_files.GRID_TEXT`, so that the page of a run can cut one picture out of
many grids. The file appears whole or not at all, so that an image viewer on the folder never opens half a picture. Values that are no
colour are magenta: a broken network is something to see, not a reason to stop.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from monitoring.run_files import GRID_TEXT
from pipeline.recipes.player import Paintings
from pipeline.training.record.grid_layout import GridLayout
from shards.counting import counted
from shards.local_files import whole_file

NON_FINITE = (255, 0, 255)
HOLE = (0, 224, 255)
"""Colour of the hatching and of the outlines: far from the grey fills of both recipes, and rare in photographs."""
UNJUDGED = (226, 226, 226)
"""Colour of the error column where nothing was dropped: no colour of the heat map."""
LARGEST_ERROR = 0.5
"""Absolute difference at the end of the heat map; a larger one has the same colour."""
_HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))  # dark where the painting is right
_NOTES = {"context": "hole hatched", "prediction": "raw output", "pasted": "in the hole", "truth": "", "error": ""}


def save_grid(path: Path, paintings: Paintings, l1: Sequence[float] = (), baseline_l1: Sequence[float] = (), title: str = "") -> None:
    """Writes one PNG.

    Args:
        path: path of the file; its folder is made when missing.
        paintings: pictures to draw, on any device. Values outside [0, 1] are clipped, non-finite values are magenta.
        l1: mean absolute error of each row over its dropped pixels, in per cent, printed beside the row; empty for none.
        baseline_l1: error of the mean colour of each row's visible part, in per cent, printed below the row's own; empty for none.
        title: line above the columns, such as the step and the origin of the pictures; empty for none.

    Raises:
        ValueError: a tensor has another shape or dtype than the truth asks for, the numbers of rows differ, or there are no rows.
        OSError: the file can't be written.
    """
    _check(paintings, l1, baseline_l1)
    save_columns(path, _columns(paintings), _NOTES, title, l1, baseline_l1)


def save_columns(
    path: Path,
    columns: Mapping[str, Tensor],
    notes: Mapping[str, str],
    title: str = "",
    l1: Sequence[float] = (),
    baseline_l1: Sequence[float] = (),
) -> None:
    """Writes one PNG of any columns.

    Args:
        path: path of the file; its folder is made when missing.
        columns: pictures uint8 (n, height, width, 3) on the CPU, by the name of the column, all of one size; one column is `truth`.
        notes: line below the name of a column; a column without one has none.
        title: line above the columns; empty for none.
        l1, baseline_l1: as for `save_grid`.

    Raises:
        OSError: the file can't be written.
    """
    rows, height, width = (int(size) for size in columns["truth"].shape[:3])
    layout = GridLayout({name: notes.get(name, "") for name in columns}, rows, height, width, len(l1) > 0, title)
    sheet = layout.sheet(Image.fromarray(_palette()[None].numpy()), f"{100 * LARGEST_ERROR:.0f} %")
    for left, pictures in zip(layout.lefts, columns.values(), strict=True):
        for top, pixels in zip(layout.tops, pictures, strict=True):
            sheet.paste(Image.fromarray(pixels.numpy()), (left, top))
    for row, top in enumerate(layout.tops if len(l1) else ()):
        layout.draw_figures(sheet, top, l1[row], baseline_l1[row] if len(baseline_l1) else math.nan)
    geometry = {
        "cell": [width, height],
        "title": title,
        "columns": [{"name": name, "left": left} for name, left in zip(columns, layout.lefts, strict=True)],
        "rows": [
            {
                "top": top,
                "truth": f"{zlib.crc32(columns['truth'][row].numpy().tobytes()):08x}",
                "l1": _finite(l1[row]) if len(l1) else None,
                "baseline_l1": _finite(baseline_l1[row]) if len(baseline_l1) else None,
            }
            for row, top in enumerate(layout.tops)
        ],
    }
    _write(sheet, geometry, path)


def _check(paintings: Paintings, l1: Sequence[float], baseline_l1: Sequence[float]) -> None:
    """Raises a ValueError that names the tensor which is wrong."""
    rows = len(paintings.truth)
    for name in ("truth", "context", "prediction", "mask"):
        tensor: Tensor = getattr(paintings, name)
        channels, kind = (1, "bool") if name == "mask" else (3, "float")
        fits = tensor.dtype == torch.bool if name == "mask" else tensor.is_floating_point()
        if tensor.ndim != 4 or tensor.shape[1] != channels or 0 in tensor.shape or not fits:
            raise ValueError(f"{name}: {tensor.dtype} {tuple(tensor.shape)} is not {kind} (n, {channels}, H, W)")
        if len(tensor) != rows:
            raise ValueError(f"{name} has {counted(len(tensor), 'picture')}, truth {rows}")
        if tensor.shape[2:] != paintings.truth.shape[2:]:
            raise ValueError(f"{name} has pictures of the size {tuple(tensor.shape[2:])}, truth of {tuple(paintings.truth.shape[2:])}")
    for name, figures in (("l1", l1), ("baseline_l1", baseline_l1)):
        if len(figures) not in (0, rows):
            raise ValueError(f"{name} has {counted(len(figures), 'figure')} for {counted(rows, 'picture')}")


def _columns(paintings: Paintings) -> dict[str, Tensor]:
    """Returns the columns by name, uint8 (n, height, width, 3) on the CPU."""
    context, prediction, truth = (each.detach().float().cpu() for each in (paintings.context, paintings.prediction, paintings.truth))
    mask = paintings.mask.cpu()
    if not mask.any():
        return {
            "context": _pixels(context),
            "prediction": _pixels(prediction),
            "truth": _pixels(truth),
            "error": _heat(prediction, truth, ~mask),
        }
    judged = mask | ~mask.flatten(1).any(1).view(-1, 1, 1, 1)  # a row without a hole is judged everywhere
    return {
        "context": with_hole(_pixels(context), mask, hatched=True),
        "prediction": with_hole(_pixels(prediction), mask),
        "pasted": with_hole(_pixels(torch.where(judged, prediction, truth)), mask),
        "truth": _pixels(truth),
        "error": _heat(prediction, truth, judged),
    }


def with_hole(pixels: Tensor, mask: Tensor, hatched: bool = False) -> Tensor:
    """Outlines the holes of pictures, outside the holes, so that no filled pixel is hidden.

    Args:
        pixels: uint8 (n, height, width, 3).
        mask: bool (n, 1, height, width), True where pixels are dropped.
        hatched: hatch the holes as well.
    """
    outline = (F.max_pool2d(mask.float(), 3, stride=1, padding=1) > 0) & ~mask
    return _marked(_marked(pixels, mask & _stripes(mask.shape[2], mask.shape[3])) if hatched else pixels, outline)


def _pixels(pictures: Tensor) -> Tensor:
    """Converts pictures to uint8 (n, height, width, 3)."""
    broken = ~pictures.isfinite().all(dim=1, keepdim=True)
    colours = (torch.where(broken, 0.0, pictures).clamp(0, 1) * 255).round().to(torch.uint8)
    return torch.where(broken, _colour(NON_FINITE).view(3, 1, 1), colours).permute(0, 2, 3, 1).contiguous()


def _heat(prediction: Tensor, truth: Tensor, judged: Tensor) -> Tensor:
    """Draws the absolute difference, averaged over the channels, of the judged pixels; uint8 (n, height, width, 3)."""
    difference = (prediction.clamp(0, 1) - truth.clamp(0, 1)).abs().mean(1)
    broken = ~(prediction.isfinite() & truth.isfinite()).all(1)
    palette = _palette()
    index = (torch.where(broken, 0.0, difference) / LARGEST_ERROR).clamp(0, 1) * (len(palette) - 1)
    colours = palette[index.round().long()]
    colours = torch.where(judged[:, 0, ..., None], colours, _colour(UNJUDGED))
    return torch.where((broken & judged[:, 0])[..., None], _colour(NON_FINITE), colours)


def _palette() -> Tensor:
    """Returns the colours of the heat map, uint8 (256, 3), from no difference to the largest."""
    anchors = torch.tensor(_HEAT, dtype=torch.float32).T[None]
    return F.interpolate(anchors, 256, mode="linear", align_corners=True)[0].T.round().to(torch.uint8)


def _stripes(height: int, width: int) -> Tensor:
    """Returns a diagonal hatching, bool (height, width), of which about a quarter is True."""
    period = max(6, min(height, width) // 14)
    diagonal = torch.arange(height)[:, None] + torch.arange(width)
    return diagonal % period < max(1, period // 4)


def _marked(pixels: Tensor, where: Tensor) -> Tensor:
    return torch.where(where[:, 0, ..., None], _colour(HOLE), pixels)


def _colour(colour: tuple[int, int, int]) -> Tensor:
    return torch.tensor(colour, dtype=torch.uint8)


def _finite(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None


def _write(sheet: Image.Image, geometry: dict[str, Any], path: Path) -> None:
    text = PngInfo()
    text.add_text(GRID_TEXT, json.dumps(geometry, separators=(",", ":"), allow_nan=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, durable=False, one_writer=True) as file:
        sheet.save(file, format="PNG", pnginfo=text)
