"""The noise pattern: smooth noise below a threshold, the released code's stand-in for the paper's random region.

The released code draws uniform noise at 0.06 of 10000 x 10000, enlarges it bicubically (cells of about 17 pixels whatever the crop), and
cuts windows of the crop's size out of what lies below 0.25, about 16 % of the pixels, until 20 to 30 % of a window are dropped. Its law is
kept here for a sixth of its memory (16.9 % of this canvas are below):

- The canvas is 5000 x 5000 and each window is taken in one of its four mirror images, so that there are as many disjoint windows. Uniform
  noise and bicubic enlargement have no preferred direction, so a mirror image is as likely as the window itself.
- The places whose windows keep the limits are listed once for each image size. One of the list, all equally likely, is what drawing
  windows until one is accepted gives, without the draws that are thrown away (four of five at 128 pixels, nine of ten at 227).

From random bits to pixels a mask is integer arithmetic: the same on every CPU.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.keyed import words, words_of

_WINDOW, _NOISE = 0x40, 0x41  # purposes of random words
_SEED = 0x53
_SIDE, _CELLS = 5000, 300  # pixels and cells along a side: the 0.06 of the released code
_THRESHOLD = 0.25
_NOISE_BITS, _WEIGHT_BITS = 10, 9  # two weights and a noise value stay below 2**31
_STRIP = 250  # rows that are worked on at once, few enough to stay in a cache
_MOST_PLACES = 1 << 22  # of more, every second, third, ... is kept: neighbours differ by one pixel


@dataclass(frozen=True)
class NoisePattern:
    """Drops a window of thresholded noise, of which a fraction within the limits lies below the threshold.

    Attributes:
        min_fraction: smallest fraction of the pixels that is dropped.
        max_fraction: largest fraction of the pixels that is dropped.

    Raises:
        ValueError: a field is out of range; from `draw`, an image larger than 5000 pixels, or limits that no window of it keeps. The
            message names the setting.
    """

    min_fraction: float = 0.2
    max_fraction: float = 0.3
    _places: dict[tuple[int, ...], NDArray[np.int32]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_noise_fractions(self.min_fraction, self.max_fraction)

    def draw(self, key: int, out: NDArray[np.bool_]) -> None:
        """Fills `out`, bool (H, W), with True where pixels are dropped: a function of the key and the shape."""
        height, width = out.shape
        places = self._places.get(out.shape)
        if places is None:  # threads that come here together make the same
            places = self._places[out.shape] = self._find(height, width)
        (word,) = words(key, _WINDOW, 1)
        top, left = divmod(int(places[(word >> 2) % len(places)]), _SIDE)
        window = canvas()[top : top + height, left : left + width]
        if mirrored := word & 3:
            cv2.flip(window.view(np.uint8), mirrored - 2, dst=out.view(np.uint8))  # a tenth of NumPy's time
        else:
            out[:] = window

    def _find(self, height: int, width: int) -> NDArray[np.int32]:
        """The places, row * 5000 + column, of the windows that keep the limits: int32 (n,), ascending."""
        limits = f"noise_fractions: no window of {height} x {width} pixels drops {self.min_fraction:g} to {self.max_fraction:g} of them"
        if max(height, width) > _SIDE:
            raise ValueError(f"{limits}, because the pattern is {_SIDE} x {_SIDE} pixels")
        pixels, rows, columns = canvas().view(np.uint8), _SIDE - height + 1, _SIDE - width + 1
        least, most, found = self.min_fraction * height * width, self.max_fraction * height * width, []
        for top in range(0, rows, _STRIP):
            dropped = cv2.boxFilter(pixels[top : top + _STRIP + height - 1], cv2.CV_32S, (width, height), anchor=(0, 0), normalize=False)
            dropped = dropped[: rows - top][:_STRIP, :columns]
            row, column = np.nonzero((dropped >= least) & (dropped <= most))
            found.append(((row + top) * _SIDE + column).astype(np.int32))
        places = np.concatenate(found)
        if not len(places):
            raise ValueError(f"{limits}. About 17 % of the pattern is dropped: set limits around it, or further apart")
        return places[:: -(-len(places) // _MOST_PLACES)].copy()


def check_noise_fractions(min_fraction: float, max_fraction: float) -> None:
    """Refuses limits in the wrong order or out of range.

    Raises:
        ValueError: naming the setting.
    """
    if not 0 < min_fraction < max_fraction <= 0.5:
        raise ValueError(
            f"noise_fractions: {min_fraction} and {max_fraction} are not the smallest and the largest fraction of the pixels. Give two "
            "positive numbers, the smaller one first, and none over a half"
        )


@functools.cache
def canvas() -> NDArray[np.bool_]:
    """The pattern that windows are cut from, bool (5000, 5000), True where a pixel is dropped; 25 MB, made once a process."""
    noise = (words_of(np.array([_SEED], np.uint64), _NOISE, _CELLS * _CELLS) >> np.uint64(64 - _NOISE_BITS)).astype(np.int32)
    cells, weights = _taps()
    columns = _enlarged(noise.reshape(_CELLS, _CELLS).T, cells, weights).T.copy()
    pattern = np.empty((_SIDE, _SIDE), np.bool_)
    limit = int(_THRESHOLD * (1 << _NOISE_BITS + 2 * _WEIGHT_BITS))
    for top in range(0, _SIDE, _STRIP):
        part = slice(top, top + _STRIP)
        np.less(_enlarged(columns, cells[:, part], weights[:, part]), limit, out=pattern[part])
    pattern.flags.writeable = False
    return pattern


def _taps() -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The four cells that each pixel along a side lies between, and their bicubic weights (Catmull-Rom) in 1/512: (4, 5000) each."""
    middle = (np.arange(_SIDE) + 0.5) * _CELLS / _SIDE - 0.5
    first = np.floor(middle)
    t = middle - first
    cubic = np.stack([((2 - t) * t - 1) * t, (3 * t - 5) * t * t + 2, ((4 - 3 * t) * t + 1) * t, (t - 1) * t * t]) / 2
    weights = np.rint(cubic * (1 << _WEIGHT_BITS)).astype(np.int32)
    weights[1] += (1 << _WEIGHT_BITS) - weights.sum(axis=0, dtype=np.int32)
    return (first + np.arange(-1, 3)[:, None]).clip(0, _CELLS - 1).astype(np.int64), weights


def _enlarged(rows: NDArray[np.int32], cells: NDArray[np.int64], weights: NDArray[np.int32]) -> NDArray[np.int32]:
    """Sums the rows of `rows`, int32 (300, n), that each new row lies between: int32 (new rows, n)."""
    enlarged = np.zeros((cells.shape[1], rows.shape[1]), np.int32)
    for cell, weight in zip(cells, weights, strict=True):
        enlarged += weight[:, None] * rows[cell]
    return enlarged
