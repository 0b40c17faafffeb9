"""The random block: several smaller squares that may overlap, up to a quarter of the image (section 3.2, "random block")."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.masking.coverage import check_fractions, draw_rectangle, pixel_limits
from shards.keyed import words

_FALLBACK, _ATTEMPT = 0x20, 0x21  # purposes of random words; attempts after the first take the following ones
_ATTEMPTS = 8
_FEWEST, _MOST = 3, 6  # squares in a mask


@dataclass(frozen=True)
class RandomBlock:
    """Drops three to six squares of different sizes, anywhere in the image.

    Squares take the image's aspect, as the other generators' regions do. A square that would reach beyond the border is moved inside. A
    mask that overlap leaves below the smallest fraction is drawn again, up to eight times; then a rectangle takes its place.

    Attributes:
        max_fraction: largest fraction of the pixels that is dropped.
        min_fraction: smallest fraction, rounded down to pixels; the areas of the squares add up to about the mean of both or more.

    Raises:
        ValueError: a field is out of range; the message names it.
    """

    max_fraction: float = 0.25
    min_fraction: float = 0.1

    def __post_init__(self) -> None:
        check_fractions(self.min_fraction, self.max_fraction)

    def draw(self, key: int, out: NDArray[np.bool_]) -> None:
        """Fills `out`, bool (H, W), with True where pixels are dropped: a function of the key and the shape."""
        self.draw_shapes(key, out)

    def draw_shapes(self, key: int, out: NDArray[np.bool_]) -> bool:
        """Draws as `draw`; returns False where a rectangle had to take the place of squares."""
        height, width = out.shape
        least, most = pixel_limits(height, width, self.min_fraction, self.max_fraction)
        middle, pixels = (least + most) / 2, out.view(np.uint8)
        for attempt in range(_ATTEMPTS):
            amount, *squares = words(key, _ATTEMPT + attempt, 1 + _MOST)
            squares = squares[: _FEWEST + (amount & 0xFFFF) % (_MOST - _FEWEST + 1)]
            area = middle + (most - middle) * ((amount >> 16) / 2**48)
            fraction = area / sum([128 + (word & 0xFF) for word in squares]) / (height * width)
            out.fill(False)
            for word in squares:
                side = sqrt(fraction * (128 + (word & 0xFF)))  # as a fraction of the image's side
                tall, wide = int(side * height + 0.5) or 1, int(side * width + 0.5) or 1
                top = ((word >> 8 & 0xFFFFFFF) * height >> 28) - tall // 2
                left = ((word >> 36) * width >> 28) - wide // 2
                top = 0 if top < 0 else min(top, height - tall)
                left = 0 if left < 0 else min(left, width - wide)
                out[top : top + tall, left : left + wide] = True
            if least <= cv2.countNonZero(pixels) <= most:
                return True
        draw_rectangle(words(key, _FALLBACK, 1)[0], most, out)
        return False
