"""The part of a picture that is trained on: a pure function of the sample's key and the picture's size, never of the machine.

In: a crop rule, a key, the size of a picture. Out: a `Box` in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.config import DataConfig
from shards.dataset.orientation import TURNS
from shards.keyed import words, words_of

Crop = Literal["random", "random_resized", "center"]
_CROP = 1  # purpose of the random numbers drawn here
_PLACE = 3  # numbers for mirror, top and left; then two for each try of a size
_TRIES = 10
_LOG_ASPECT = math.log(4 / 3)  # logarithm of the widest aspect


@dataclass(frozen=True)
class CropRule:
    """Settings of every crop of a run.

    Attributes:
        crop: kind of the crop: random is a square of the wanted size, or of the shorter side where that is less; random_resized is 8 to
            100 % of the area at aspect 3/4 to 4/3; center is the square of random in the middle, never mirrored.
        flip: mirror with probability 1/2.
        max_pixels: most pixels that a picture may have to be decoded.
        turn: turn pictures upright as their orientation says, before they are cropped.
    """

    crop: Crop
    flip: bool
    max_pixels: int
    turn: bool = True

    @staticmethod
    def of(data: DataConfig) -> CropRule:
        """The rule that the settings of the data name."""
        return CropRule(data.crop, data.flip, data.max_pixels, data.orientation == "turned")


class Box(NamedTuple):
    """The rectangle that is cut out of a decoded picture, in pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    mirror: bool

    @property
    def bottom(self) -> int:
        """The first row below."""
        return self.top + self.height

    @property
    def right(self) -> int:
        """The first column beyond."""
        return self.left + self.width

    def as_stored(self, height: int, width: int, orientation: int) -> Box:
        """The box of the stored picture that becomes this box of the upright one.

        Args:
            height: height of the upright picture in pixels.
            width: width of the upright picture in pixels.
            orientation: orientation of the stored picture, 1 to 8.
        """
        turn = TURNS[orientation]
        top = height - self.bottom if turn.reverses_rows else self.top
        left = width - self.right if turn.reverses_columns else self.left
        if turn.swaps:
            return Box(left, top, self.width, self.height, self.mirror)
        return self._replace(top=top, left=left)


def draws_of(keys: NDArray[np.uint64], crop: Crop) -> NDArray[np.float64]:
    """The numbers that `choose` begins with, for many keys at once.

    Args:
        keys: uint64 (n,), keys of the samples.
        crop: kind of the crop.

    Returns:
        float64 (n, numbers a key), in [0, 1).
    """
    return (words_of(keys, _CROP, _count(crop)) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def choose(crop: Crop, flip: bool, key: int, height: int, width: int, size: int, draws: Sequence[float] | None = None) -> Box:
    """The part of a picture that becomes the crop: a pure function of its key and its size.

    Args:
        crop: kind of the crop, as `CropRule` has it.
        flip: mirror with probability 1/2.
        key: key of the sample, from `shards.keyed.sample_keys`.
        height: height of the picture in pixels.
        width: width of the picture in pixels.
        size: side of the crop in pixels.
        draws: numbers of `draws_of` for the key, if they are drawn already.
    """
    side = min(size, height, width)
    if crop == "center":
        return Box((height - side) // 2, (width - side) // 2, side, side, False)
    resized = crop == "random_resized"
    draws = draws or _draws(key, _count(crop))
    box_height = box_width = side
    if resized:
        fitting = _size(draws[_PLACE], draws[_PLACE + 1], height, width) or _later_size(key, height, width)
        box_height, box_width = fitting
    return Box(
        int(draws[1] * (height - box_height + 1)), int(draws[2] * (width - box_width + 1)), box_height, box_width, flip and draws[0] < 0.5
    )


def _count(crop: Crop) -> int:
    """Number of draws that a crop nearly always needs; a key's first numbers don't depend on how many are drawn."""
    return _PLACE + 2 if crop == "random_resized" else _PLACE  # the first try of a size mostly fits


def _draws(key: int, count: int) -> list[float]:
    """The first numbers of `shards.keyed.uniforms` as a list, because for a few numbers an array costs more than they do."""
    return [(word >> 11) * 2.0**-53 for word in words(key, _CROP, count)]


def _size(area_draw: float, aspect_draw: float, height: int, width: int) -> tuple[int, int] | None:
    area = height * width * (0.08 + 0.92 * area_draw)
    aspect = math.exp(_LOG_ASPECT * (2 * aspect_draw - 1))
    box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    return (box_height, box_width) if 0 < box_width <= width and 0 < box_height <= height else None


def _later_size(key: int, height: int, width: int) -> tuple[int, int]:
    """The size of the first later try that fits."""
    draws = _draws(key, _PLACE + 2 * _TRIES)
    for number in range(_PLACE + 2, len(draws), 2):
        fitting = _size(draws[number], draws[number + 1], height, width)
        if fitting is not None:
            return fitting
    return min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))  # the whole, at the nearest allowed aspect
