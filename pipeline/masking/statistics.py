"""Measured properties of masks: their areas, how often each pixel is dropped, and how often shapes did not fit."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.masking.block import RandomBlock
from pipeline.masking.region import RandomRegion
from pipeline.masking.source import MaskSource
from shards.counting import counted
from shards.keyed import key_of


@dataclass(frozen=True)
class MaskStatistics:
    """Properties of masks with the keys `key_of(0)`, `key_of(1)`, ...

    Attributes:
        size: side of the masks in pixels.
        draws: number of masks.
        least, mean, most: smallest, mean and largest fraction of the pixels that a mask drops.
        rarest, commonest: fractions of the masks that drop the pixel which is dropped least often, and most often.
        rectangles: fraction of the masks that are a plain rectangle because no shapes kept the limits.
        repeated: number of masks that are equal to the one before.
    """

    size: int
    draws: int
    least: float
    mean: float
    most: float
    rarest: float
    commonest: float
    rectangles: float
    repeated: int

    def lines(self) -> list[str]:
        """The properties as text."""
        return [
            f"{counted(self.draws, 'mask')} of {self.size} x {self.size} pixels, of which the first are shown",
            f"dropped of a mask: {self.least:.2%} to {self.most:.2%}, mean {self.mean:.2%}",
            f"probability that a pixel is dropped: {self.rarest:.3f} to {self.commonest:.3f}",
            f"plain rectangles: {self.rectangles:.2%}; equal to the mask before: {self.repeated}",
        ]


def measure(source: MaskSource, size: int, draws: int) -> MaskStatistics:
    """Draws masks and measures them.

    Args:
        source: source of the masks.
        size: side of the masks in pixels.
        draws: number of masks, at least 1.

    Raises:
        ValueError, ShapesError, StoreError: the source can't draw.
    """
    drawn, before = np.empty((size, size), np.bool_), np.empty((size, size), np.bool_)
    often, areas, rectangles, repeated = np.zeros((size, size), np.int32), [], 0, 0
    for number in range(draws):
        if isinstance(source, RandomRegion | RandomBlock):
            rectangles += not source.draw_shapes(key_of(number), drawn)
        else:
            source.draw(key_of(number), drawn)
        often += drawn
        areas.append(cv2.countNonZero(drawn.view(np.uint8)))
        repeated += number > 0 and np.array_equal(drawn, before)
        drawn, before = before, drawn
    shares = np.array(areas) / size**2
    return MaskStatistics(
        size,
        draws,
        float(shares.min()),
        float(shares.mean()),
        float(shares.max()),
        int(often.min()) / draws,
        int(often.max()) / draws,
        rectangles / draws,
        repeated,
    )
