"""The picture grid of a table: one row a picture, one column a method, drawn as the grids of a training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.training.record.grid import save_columns, with_hole


def save_methods_grid(
    path: Path, truth: NDArray[np.uint8], masks: NDArray[np.bool_], fills: Mapping[str, NDArray[np.uint8]], title: str
) -> None:
    """Writes the grid.

    Args:
        path: path of the PNG.
        truth: true pictures, uint8 (n, H, W, 3), n at least 1.
        masks: bool (n, H, W), True where pixels are dropped.
        fills: pictures with filled holes, uint8 (n, H, W, 3), by the name of the column.
        title: line above the columns.

    Raises:
        OSError: the file can't be written.
    """
    pictures, holes = torch.from_numpy(truth), torch.from_numpy(masks).unsqueeze(1)
    columns = {"context": with_hole(pictures, holes, hatched=True)}
    columns |= {name: with_hole(torch.from_numpy(filled), holes) for name, filled in fills.items()}
    save_columns(path, {**columns, "truth": pictures}, {"context": "hole hatched"}, title)
