"""An antialiased resize that costs less than the decode.

OpenCV's area average is the slowest step of a random-resized crop, and its linear interpolation aliases. Here the picture is smoothed by a
few taps an axis and then interpolated: the two together have the width (the variance) of the triangle filter that Pillow and DALI stretch
over the source, and at a factor of 2 they are that filter exactly. Where a picture shrinks it costs about half of the area average. From a
factor of 1.5 on, its pixels are on average nearer to Pillow's than those of the area average; below, one to three dB farther, at 43 dB or
more. An axis that grows is interpolated alone. Past a factor of 3 the area average would be the cheaper.
"""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.stream.buffers import Scratch

cv2.setNumThreads(1)  # the loader's threads are the parallelism

_LEVELS = 256  # OpenCV's steps of a weight for bytes: whole ones, so that weights still add up to 1 after its rounding
_THREE_TAPS = 2 / 3  # largest variance of three taps, each 1/3
_ALONE = np.ones(1, np.float32)
_smoothed = Scratch()


def resize(part: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Resizes a picture, antialiased along each axis that shrinks.

    Args:
        part: uint8 (height, width, 3); a view into a larger picture is fine, and nothing outside it is read.
        out: uint8 (size, size, 3), contiguous, written in place.
    """
    size = out.shape[0]
    down, across = smoothing(part.shape[0] / size), smoothing(part.shape[1] / size)
    if len(down) > 1 or len(across) > 1:
        part = cv2.sepFilter2D(part, -1, across, down, dst=_smoothed.take(part.shape), borderType=cv2.BORDER_REPLICATE)
    cv2.resize(part, (size, size), dst=out, interpolation=cv2.INTER_LINEAR)


@lru_cache(maxsize=4096)
def smoothing(factor: float) -> NDArray[np.float32]:
    """The weights of the smoothing before linear interpolation.

    A triangle filter for shrinking by `factor` has a variance of factor**2 / 6 in source pixels, and linear interpolation gives 1/6 of it.

    Args:
        factor: source pixels to a target pixel.

    Returns:
        float32 (odd number,), symmetric, multiples of 1/256 that add up to 1; one weight alone where nothing shrinks.
    """
    # interpolating at a whole pixel smooths nothing, which a little more smoothing before makes up for (fitted to Pillow's pixels)
    variance = (factor * factor - 1) / 6 * (1 + min(0.4, max(0.0, 0.8 * (2 - factor))))
    if variance * _LEVELS < 1:
        return _ALONE
    if variance <= _THREE_TAPS:
        return _whole_levels(np.array([variance / 2, 1 - variance, variance / 2]))
    reach = math.ceil(math.sqrt(6 * variance)) - 1  # the triangle of this variance ends before the next tap
    distance = np.abs(np.arange(-reach, reach + 1))
    low, high = 0.0, 100.0 * factor  # the end of the triangle, moved until the variance of its taps is the wanted one
    for _ in range(40):
        end = (low + high) / 2
        taps = np.maximum(end - distance, 0) + 1e-9
        low, high = (end, high) if (taps * distance**2).sum() < variance * taps.sum() else (low, end)
    return _whole_levels(taps / taps.sum())


def _whole_levels(weights: NDArray[np.float64]) -> NDArray[np.float32]:
    levels = np.round(weights * _LEVELS)
    levels[len(levels) // 2] += _LEVELS - levels.sum()
    smooth: NDArray[np.float32] = (levels / _LEVELS).astype(np.float32)
    return smooth
