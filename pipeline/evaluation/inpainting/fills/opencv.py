"""OpenCV's two fills: both carry the surroundings of a hole into it, pixel by pixel from its edge."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.inpainting.fills.visible import blanked
from pipeline.evaluation.inpainting.method import Holes

RADIUS = 3.0
"""Radius of the neighbourhood that a pixel is computed from, in pixels; larger ones take longer and are hardly better."""


@dataclass(frozen=True)
class OpenCvFill:
    """Fills holes with `cv2.inpaint`.

    Attributes:
        name: name in options and files.
        title: name in tables.
        flags: algorithm, as OpenCV numbers it.
    """

    name: str
    title: str
    flags: int

    def fill(self, holes: Holes) -> NDArray[np.float32]:
        """Fills holes: float32 (n, H, W, 3) in [0, 1], from 8-bit pictures, because Telea leaves the range of float32 ones.

        Raises:
            FillError: no pixel of a picture is visible. OpenCV would return its input.
        """
        pictures = [cv2.inpaint(*each, RADIUS, self.flags) for each in zip(blanked(holes), holes.masks.astype(np.uint8), strict=True)]
        return np.stack(pictures).astype(np.float32) / np.float32(255)


TELEA = OpenCvFill("telea", "Telea (OpenCV)", cv2.INPAINT_TELEA)
NAVIER_STOKES = OpenCvFill("navier_stokes", "Navier-Stokes (OpenCV)", cv2.INPAINT_NS)
