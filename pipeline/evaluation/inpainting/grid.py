"""The picture grid of a table: one row a picture, one column a method, drawn as the grids of a training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.evaluation.inpainting.settings import NETWORK
from pipeline.training.record.grid import save_columns, with_hole

_SMALLEST = 128  # pixels of a cell's side, so that the heads of the columns fit; smaller pictures are enlarged by whole factors
_HEADS = {
    "nearest_hog": ("HOG", "nearest neighbour"),
    "nearest_encoder": ("features", "nearest neighbour"),
    "mean": ("mean", "of the visible part"),
    "telea": ("Telea", "OpenCV"),
    "navier_stokes": ("N.-Stokes", "OpenCV"),
    "patchmatch": ("PatchMatch", "content-aware"),
    NETWORK: ("network", "this checkpoint"),
}
"""Head of each method's column, and the line below it."""


def save_methods_grid(
    path: Path, truth: NDArray[np.uint8], masks: NDArray[np.bool_], fills: Mapping[str, NDArray[np.uint8]], title: str
) -> None:
    """Writes the grid.

    Args:
        path: path of the PNG.
        truth: true pictures, uint8 (n, H, W, 3), n at least 1.
        masks: bool (n, H, W), True where pixels are dropped.
        fills: pictures with filled holes, uint8 (n, H, W, 3), by the name of the method, in the order of the columns.
        title: line above the columns.

    Raises:
        OSError: the file can't be written.
    """
    times = max(1, _SMALLEST // truth.shape[1])

    def enlarged(values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values.repeat(times, 1).repeat(times, 2))

    pictures, holes = enlarged(truth), enlarged(masks).unsqueeze(1)
    columns = {"context": with_hole(pictures, holes, hatched=True)}
    columns |= {_HEADS[name][0]: with_hole(enlarged(filled), holes) for name, filled in fills.items()}
    save_columns(path, {**columns, "truth": pictures}, {"context": "hole hatched", **dict(_HEADS.values())}, title)
