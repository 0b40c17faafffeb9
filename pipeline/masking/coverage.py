"""The limits of a mask in pixels, and a mask that always keeps to them."""

from __future__ import annotations

from math import isqrt

import numpy as np
from numpy.typing import NDArray

LARGEST_FRACTION = 0.5


def check_fractions(min_fraction: float, max_fraction: float) -> None:
    """Refuses limits that no generator could keep.

    Raises:
        ValueError: a limit is out of range; the message names the field.
    """
    if not 0 < max_fraction <= LARGEST_FRACTION:
        raise ValueError(f"max_fraction: {max_fraction} is not above 0 and at most {LARGEST_FRACTION}")
    if not 0 < min_fraction <= max_fraction / 2:
        raise ValueError(f"min_fraction: {min_fraction} is not above 0 and at most half of max_fraction ({max_fraction / 2})")


def check_mean(mean_fraction: float | None, min_fraction: float, max_fraction: float) -> None:
    """Refuses a mean outside of the limits; None is no mean.

    Raises:
        ValueError: naming the field.
    """
    if mean_fraction is not None and not min_fraction < mean_fraction < max_fraction:
        raise ValueError(f"mean_fraction: {mean_fraction} is not between min_fraction ({min_fraction}) and max_fraction ({max_fraction})")


def pixel_limits(height: int, width: int, min_fraction: float, max_fraction: float) -> tuple[int, int]:
    """The fewest and the most pixels that a mask of a shape may drop: both fractions are rounded down, the least is 1.

    Raises:
        ValueError: the image is so small that the largest fraction of it is less than a pixel.
    """
    most = int(max_fraction * height * width)
    if most < 1:
        raise ValueError(f"max_fraction: {max_fraction} of {height}x{width} pixels is less than one pixel")
    return max(1, int(min_fraction * height * width)), most


def draw_rectangle(word: int, most: int, out: NDArray[np.bool_]) -> None:
    """Draws a rectangle, as square as the image allows, of at least `most / 2` and at most `most` pixels.

    Generators fall back to it when several draws in a row were outside the limits.

    Args:
        word: 64 random bits, for the rectangle's position.
        most: largest number of pixels, at most half of the image.
        out: bool (H, W), overwritten.
    """
    height, width = out.shape
    tall = min(height, isqrt(most))
    wide = min(width, most // tall)
    tall = min(height, most // wide)
    top = (word & 0xFFFFFFFF) * (height - tall + 1) >> 32
    left = (word >> 32) * (width - wide + 1) >> 32
    out.fill(False)
    out[top : top + tall, left : left + wide] = True
