"""The visible part of pictures with holes, the only thing that a fill may depend on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.inpainting.fills.errors import FillError
from pipeline.evaluation.inpainting.method import Holes


def visible_mean(holes: Holes) -> NDArray[np.float64]:
    """Computes the mean colour of each picture's visible pixels.

    Returns:
        float64 (n, 3), RGB from 0 to 255. The sums are of whole numbers, so that their order does not matter.

    Raises:
        FillError: no pixel of a picture is visible.
    """
    visible = ~holes.masks
    counts = visible.sum((1, 2))
    if not counts.all():
        number = int(holes.numbers[int((counts == 0).argmax())])
        raise FillError(f"picture {number}: the hole covers all of it, so there is nothing to fill it from. Use a smaller mask")
    means: NDArray[np.float64] = np.where(visible[..., None], holes.images, 0).sum((1, 2), dtype=np.int64) / counts[:, None]
    return means


def blanked(holes: Holes) -> NDArray[np.uint8]:
    """Overwrites the hidden pixels with the mean colour of the visible ones, because OpenCV reads some where a hole meets the border.

    Returns:
        uint8 (n, H, W, 3), RGB.

    Raises:
        FillError: no pixel of a picture is visible.
    """
    colours = visible_mean(holes).round().astype(np.uint8)
    return np.where(holes.masks[..., None], colours[:, None, None, :], holes.images)
