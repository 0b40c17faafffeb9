"""The hole in a person's picture: made of rectangles or strokes, checked, and divided into parts that are filled by themselves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.counting import counted
from shards.errors import ExplainedError

Hole = NDArray[np.bool_]
"""bool (H, W) of a picture's size, True where pixels are to be filled."""
MOST_PARTS = 256
"""Most parts of a hole, each of which takes one pass through the network."""
_CELLS = 128  # cells along the longer side, by which parts are told apart
_SUBPIXEL = 4  # bits of cv2's fixed point
_WIDEST = 16_000.0  # pixels of a radius: cv2 draws lines of up to 32,767
_FARTHEST = 1e6  # pixels from the picture's corner of a stroke's points


class HoleInvalid(ExplainedError):
    """A hole can't be filled; the message says why and what to give."""


@dataclass(frozen=True)
class Box:
    """A rectangle of pixels; bottom and right are behind its last ones."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self.right - self.left


@dataclass(frozen=True)
class Part:
    """A part of a hole that is filled by itself.

    Attributes:
        box: smallest rectangle around the part.
        mask: bool (box.height, box.width), True for its pixels.
    """

    box: Box
    mask: Hole


@dataclass(frozen=True)
class Stroke:
    """A line that a person has drawn with a round brush, where one point is a dot; or a rectangle.

    Attributes:
        radius: radius of the brush in pixels; 0 for a rectangle.
        points: x and y of the line's points, or of two corners that lie across, in pixels from the picture's top left corner.
    """

    radius: float
    points: Sequence[tuple[float, float]]


def parse_rectangle(text: str) -> tuple[int, int, int, int]:
    """Reads a rectangle that is written as x,y,w,h.

    Raises:
        HoleInvalid: the text is no rectangle.
    """
    try:
        x, y, width, height = (int(each) for each in text.split(","))
    except ValueError:
        raise HoleInvalid(f"--hole {text}: is not x,y,w,h in whole pixels, such as 120,80,64,48") from None
    if width < 1 or height < 1:
        raise HoleInvalid(f"--hole {text}: a rectangle of {width} x {height} pixels holds none. Give a width and a height of 1 or more")
    return x, y, width, height


def of_rectangles(rectangles: Sequence[tuple[int, int, int, int]], height: int, width: int) -> Hole:
    """Makes a hole of rectangles x, y, w, h; parts beyond the picture's border are cut off.

    Raises:
        HoleInvalid: a rectangle lies wholly outside.
    """
    hole = np.zeros((height, width), np.bool_)
    for x, y, w, h in rectangles:
        if x >= width or y >= height or x + w <= 0 or y + h <= 0:
            raise HoleInvalid(f"--hole {x},{y},{w},{h}: lies outside the picture, which is {width} x {height} pixels")
        hole[max(0, y) : max(0, y + h), max(0, x) : max(0, x + w)] = True
    return hole


def read_strokes(values: Any) -> list[Stroke]:
    """Reads strokes of plain values: a list of tables with `radius` and `points`, each point a list of x and y.

    Raises:
        ValueError, TypeError, KeyError: the values are no strokes.
    """
    strokes = [Stroke(float(each["radius"]), [(float(x), float(y)) for x, y in each["points"]]) for each in values]
    for stroke in strokes:
        whole = len(stroke.points) == 2 if stroke.radius == 0 else len(stroke.points) > 0
        near = all(abs(number) <= _FARTHEST for number in itertools.chain(*stroke.points))
        if not (whole and near and 0 <= stroke.radius <= _WIDEST):
            raise ValueError("a number out of range")
    return strokes


def of_strokes(strokes: Sequence[Stroke], height: int, width: int) -> Hole:
    """Makes a hole of strokes; parts beyond the picture's border are cut off."""
    drawn = np.zeros((height, width), np.uint8)
    for stroke in strokes:
        if stroke.radius == 0:
            (left, top), (right, bottom) = np.sort(np.rint(np.array(stroke.points).clip(0, _FARTHEST)).astype(np.int64), axis=0)
            drawn[top:bottom, left:right] = 1
            continue
        # cv2 counts from the middle of the first pixel
        points = np.rint((np.array(stroke.points) - 0.5) * (1 << _SUBPIXEL)).astype(np.int32)
        cv2.polylines(drawn, [points], False, 1, max(1, round(2 * stroke.radius)), cv2.LINE_8, _SUBPIXEL)
        for point in points[[0, -1]].tolist():  # round ends
            cv2.circle(drawn, point, round(stroke.radius * (1 << _SUBPIXEL)), 1, cv2.FILLED, cv2.LINE_8, _SUBPIXEL)
    return drawn.view(np.bool_)


def check(hole: Hole, height: int, width: int, name: str) -> None:
    """Refuses a hole that can't be filled.

    Args:
        hole: hole to check.
        height: height of the picture.
        width: width of the picture.
        name: name of the hole, for errors.

    Raises:
        HoleInvalid: another size than the picture's, empty, or the whole picture.
    """
    if hole.shape != (height, width):
        raise HoleInvalid(
            f"{name}: is {hole.shape[1]} x {hole.shape[0]} pixels, and the picture, turned upright, is {width} x {height}. "
            "Give a mask of the picture's size"
        )
    if not hole.any():
        raise HoleInvalid(f"{name}: nothing is to be filled. White pixels (128 or more) are the hole, black ones are kept")
    if hole.all():
        raise HoleInvalid(f"{name}: hides the whole picture, so there is nothing to fill it from. Leave a part visible")


def parts_of(hole: Hole) -> list[Part]:
    """Divides a hole into parts, the smallest first, so that larger ones see more.

    The picture is divided into cells, 128 along its longer side; pixels of one cell or of cells that touch belong to one part.

    Raises:
        HoleInvalid: there are more than MOST_PARTS parts.
    """
    cell = math.ceil(max(hole.shape) / _CELLS)
    down, across = (math.ceil(side / cell) for side in hole.shape)
    cells = np.zeros((down, across), np.uint8)
    for row in range(down):
        any_row = hole[row * cell : (row + 1) * cell].any(0)
        cells[row] = np.logical_or.reduceat(any_row, np.arange(0, hole.shape[1], cell))
    count, labels = cv2.connectedComponents(cells, connectivity=8)
    if count - 1 > MOST_PARTS:
        raise HoleInvalid(f"the hole has {counted(count - 1, 'part')} that lie apart, more than {MOST_PARTS}. Fill some of them first")
    return sorted(_parts(hole, labels, cell, count), key=lambda part: int(part.mask.sum()))


def _parts(hole: Hole, labels: NDArray[np.int32], cell: int, count: int) -> Iterator[Part]:
    for label in range(1, count):
        rows, columns = np.nonzero(labels == label)
        top, left = int(rows.min()), int(columns.min())
        area = labels[top : rows.max() + 1, left : columns.max() + 1] == label
        here = hole[top * cell : (int(rows.max()) + 1) * cell, left * cell : (int(columns.max()) + 1) * cell]
        mask = here & area.repeat(cell, 0).repeat(cell, 1)[: here.shape[0], : here.shape[1]]
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        inner = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        first_row, first_column = top * cell + int(rows[0]), left * cell + int(columns[0])
        yield Part(Box(first_row, first_column, first_row + inner.shape[0], first_column + inner.shape[1]), inner.copy())
