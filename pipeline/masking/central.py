"""The central region: one fixed rectangle in the middle, the same for every sample (section 3.2, "central region")."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class CentralRegion:
    """Drops a centred region of the image's own aspect: a square in a square image.

    In the features recipe a quarter of the image. In the inpainting recipe the predicted 64x64 patch of a 128x128 image
    overlaps the visible context by 4 pixels on each side, so that 56x56 pixels are dropped: `CentralRegion(0.5, overlap_pixels=4)`.

    Attributes:
        side_fraction: sides of the region as a fraction of the image's sides, above 0 and below 1.
        overlap_pixels: pixels on each side of the region that stay visible.

    Raises:
        ValueError: a field is out of range; from `draw`, the overlap leaves nothing of the region.
    """

    side_fraction: float = 0.5
    overlap_pixels: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.side_fraction < 1:
            raise ValueError(f"side_fraction: {self.side_fraction} is not between 0 and 1")
        if self.overlap_pixels < 0:
            raise ValueError(f"overlap_pixels: {self.overlap_pixels} is negative")

    def draw(self, key: int, out: NDArray[np.bool_]) -> None:  # noqa: ARG002 - the same for every key
        """Fills `out`, bool (H, W), with True where pixels are dropped; the key does not matter."""
        height, width = out.shape
        tall = int(height * self.side_fraction) - 2 * self.overlap_pixels
        wide = int(width * self.side_fraction) - 2 * self.overlap_pixels
        if tall < 1 or wide < 1:
            raise ValueError(
                f"overlap_pixels: {self.overlap_pixels} on each side leaves nothing of a central region that is "
                f"{self.side_fraction} of {height}x{width} pixels"
            )
        top, left = (height - tall) // 2, (width - wide) // 2
        out.fill(False)
        out[top : top + tall, left : left + wide] = True
