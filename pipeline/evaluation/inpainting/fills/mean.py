"""Mean fill: one colour for a whole hole."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.inpainting.method import Holes


class MeanFill:
    """Fills the hole of each picture with the mean colour of its visible pixels."""

    name: ClassVar[str] = "mean"
    title: ClassVar[str] = "Mean colour of the visible part"

    def fill(self, holes: Holes) -> NDArray[np.float32]:
        """Fills holes: float32 (n, H, W, 3) in [0, 1]. The sums are of whole numbers, so that their order does not matter."""
        visible = ~holes.masks
        sums = np.where(visible[..., None], holes.images, 0).sum((1, 2), dtype=np.int64)
        means = sums / (255.0 * visible.sum((1, 2))[:, None])
        return np.broadcast_to(means[:, None, None, :], holes.images.shape).astype(np.float32)
