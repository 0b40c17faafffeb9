"""Mean fill: one colour for a whole hole."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.inpainting.fills.visible import visible_mean
from pipeline.evaluation.inpainting.method import Holes


class MeanFill:
    """Fills the hole of each picture with the mean colour of its visible pixels."""

    name: ClassVar[str] = "mean"
    title: ClassVar[str] = "Mean fill (visible part)"

    def fill(self, holes: Holes) -> NDArray[np.float32]:
        """Fills holes: float32 (n, H, W, 3) in [0, 1].

        Raises:
            FillError: no pixel of a picture is visible.
        """
        colours = (visible_mean(holes) / 255).astype(np.float32)
        return np.array(np.broadcast_to(colours[:, None, None, :], holes.images.shape))
