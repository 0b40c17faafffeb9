"""The window of a picture that a network sees: where it lies, and how its pixels are brought to the network's size and back.

Both ways are two products with matrices of weights, one for the rows and one for the columns, so that a window of any size is read band by
band in bounded memory. Pixels beyond the picture's border mirror those within. Hidden pixels have no weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.picture.hole import Box, Hole, Part
from pipeline.evaluation.picture.picture_file import Picture

Values = NDArray[np.float32]
_BAND = 64  # rows of a picture that are worked on at once
_MOST_ENLARGED = 4  # times that a window is enlarged to the network's size
_MOST_OF_SIDE = 0.75  # of a window's side that a part of a hole takes, where the network fills holes anywhere


@dataclass(frozen=True)
class Window:
    """A square of a picture, perhaps beyond its border.

    Attributes:
        top: first row.
        left: first column.
        side: side in pixels of the picture.
    """

    top: int
    left: int
    side: int


def window_around_centre(box: Box, hole: Box, size: int) -> Window:
    """Chooses the window of a network that fills one fixed hole: the smallest in which that hole covers the person's, but at least a
    quarter of the network's size, because the network's hole hides what lies around a tiny one.

    Args:
        box: rectangle around the person's hole.
        hole: hole of the network, in its own pixels.
        size: side of the pictures that the network sees.
    """
    side = max(math.ceil(max(box.height / hole.height, box.width / hole.width) * size), size // _MOST_ENLARGED)
    while True:  # at most some pixels more, because the place is rounded
        top = _first(box.top, box.bottom, hole.top, hole.bottom, side / size)
        left = _first(box.left, box.right, hole.left, hole.right, side / size)
        inside = _covers(box.top - top, box.bottom - top, hole.top, hole.bottom, side / size)
        if inside and _covers(box.left - left, box.right - left, hole.left, hole.right, side / size):
            return Window(top, left, side)
        side += 1


def _first(start: int, end: int, hole_start: int, hole_end: int, scale: float) -> int:
    return round((start + end) / 2 - (hole_start + hole_end) / 2 * scale)


def _covers(start: int, end: int, hole_start: int, hole_end: int, scale: float) -> bool:
    return hole_start * scale <= start and end <= hole_end * scale


def window_with_context(part: Part, most: float, height: int, width: int, size: int) -> Window:
    """Chooses the window of a network that fills holes anywhere: the smallest around the middle of the hole of which the hole is at most
    the fraction that the network was trained on, and three quarters of a side. The side is at least a quarter of the network's size and at
    most the picture's longer side, and the window is moved to lie in the picture where it is small enough.

    Args:
        part: part of the person's hole.
        most: largest fraction of a picture that the network was trained to fill.
        height: height of the picture.
        width: width of the picture.
        size: side of the pictures that the network sees.
    """
    box, longest = part.box, max(height, width)
    needed = max(math.sqrt(int(part.mask.sum()) / most), max(box.height, box.width) / _MOST_OF_SIDE)
    side = min(max(math.ceil(needed), size // _MOST_ENLARGED), longest)

    def first(start: int, end: int, length: int) -> int:
        middle = (start + end - side) // 2
        return min(max(middle, 0), length - side) if side <= length else (length - side) // 2

    return Window(first(box.top, box.bottom, height), first(box.left, box.right, width), side)


def shrunk(picture: Picture, hidden: Hole, window: Window, size: int) -> tuple[Values, Values]:
    """Brings a window to the network's size.

    Args:
        picture: picture of the window.
        hidden: pixels that must not be seen, of the picture's size.
        window: window to bring.
        size: side of the result in pixels.

    Returns:
        The means of the visible pixels, float32 (size, size, 3), 0 to 255, and 0 where all are hidden; and the fraction that is visible,
        float32 (size, size).
    """
    step = window.side / size
    places = (np.arange(size, dtype=np.float64) + 0.5) * step - 0.5
    down, across = (weights(start + places, max(1.0, step), length, _triangle, 1) for start, length in (
        (window.top, picture.height), (window.left, picture.width)
    ))  # fmt: skip
    rows, columns = (np.flatnonzero(each.any(0)) for each in (down, across))
    used = slice(int(columns[0]), int(columns[-1]) + 1)
    total = np.zeros((size, used.stop - used.start, 4), np.float32)
    for start in range(int(rows[0]), int(rows[-1]) + 1, _BAND):
        band = slice(start, min(start + _BAND, int(rows[-1]) + 1))
        visible = ~hidden[band, used, None]
        values = np.concatenate([picture.seen(band, used) * visible, visible], 2, dtype=np.float32)
        total += np.tensordot(down[:, band], values, 1)
    means = np.tensordot(across[:, used], total, (1, 1)).swapaxes(0, 1).astype(np.float32)
    fraction: Values = np.where(means[..., 3] > 1e-6, means[..., 3], np.float32(0))
    return np.asarray(means[..., :3] / np.where(fraction > 0, fraction, np.inf)[..., None], np.float32), fraction


def put_back(painted: Values, part: Part, window: Window, picture: Picture) -> None:
    """Brings the painting of a window to the picture's size, and writes it into a part of the hole.

    Args:
        painted: painting of the whole window, float32 (S, S, 3) in [0, 1].
        part: part of the hole to write.
        window: window of the painting.
        picture: picture to write into.
    """
    step, box = painted.shape[0] / window.side, part.box
    support = max(1.0, step)
    down = weights((np.arange(box.top, box.bottom) + 0.5 - window.top) * step - 0.5, support, len(painted), _cubic, 2)
    across = weights((np.arange(box.left, box.right) + 0.5 - window.left) * step - 0.5, support, len(painted), _cubic, 2)
    for start in range(0, box.height, _BAND):
        band = np.tensordot(down[start : start + _BAND], painted, 1)  # (rows, S, 3)
        values = np.einsum("xs,ysc->yxc", across, band, optimize=True)
        picture.put(values, part.mask[start : start + _BAND], box.top + start, box.left)


def weights(places: NDArray[np.float64], support: float, length: int, kernel: Callable[[NDArray[np.float64]], NDArray[np.float64]],
            radius: int) -> Values:  # fmt: skip
    """Weights of the values of a line in values between them, which add up to 1.

    Args:
        places: indices of the new values on the line, (n,); beyond its ends it is mirrored.
        support: width of the kernel in values of the line: 1 to enlarge, more to shrink.
        length: number of values of the line.
        kernel: function of the distance.
        radius: distance from which on the kernel is 0.

    Returns:
        float32 (n, length).
    """
    reach = math.ceil(radius * support)
    taps = np.floor(places)[:, None].astype(np.int64) + np.arange(-reach, reach + 1)
    found = kernel((taps - places[:, None]) / support)
    found /= found.sum(1, keepdims=True)
    taps %= 2 * length
    matrix = np.zeros((len(places), length), np.float32)
    np.add.at(matrix, (np.arange(len(places))[:, None], np.minimum(taps, 2 * length - 1 - taps)), found.astype(np.float32))
    return matrix


def _triangle(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    return (1 - np.abs(distance)).clip(0)


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Catmull and Rom's kernel."""
    d = np.abs(distance)
    return np.where(d < 1, (1.5 * d - 2.5) * d * d + 1, np.where(d < 2, ((-0.5 * d + 2.5) * d - 4) * d + 2, 0.0))
