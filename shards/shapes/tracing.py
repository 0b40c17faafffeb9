"""Outlines of the objects of one label picture: an array of object numbers in, contours along the edges of their pixels out.

Contours join the middles of the edges of pixels: through the centres of pixels an outline would lose half a pixel all around, and along
their corners slanting edges would be stairs. So they enclose the object's pixels but for half a pixel a contour, before they are
simplified. Coordinates count half pixels from the corner of the object's bounding box, so that all are integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.shapes.silhouette import Silhouette

TOLERANCE = 0.45
"""Largest distance in pixels between the middles of an object's edges and its simplified outline; from half a pixel on, the corners of
a square go."""
RELATIVE_TOLERANCE = 0.004
"""The same in square roots of the object's area, where that is more: under half a pixel of the largest mask at 227 pixels."""
LONGEST_SIDE = 16_383
"""Most pixels of an object from side to side, because coordinates are 16-bit numbers of half pixels."""
MOST_CORNERS = 2_000
"""Most corners of a simplified outline: labels that are mere noise have more, and every mask of such a shape would be slow."""
SMALL, THIN = "smaller than --min-pixels", "too thin or too scattered to be pasted"
WIDE, RAGGED = f"a side of more than {LONGEST_SIDE:,}", f"an outline of more than {MOST_CORNERS:,} corners"
"""Causes for which an object becomes no shape."""
_SPREAD = np.ones((3, 3), np.uint8)

Contours = tuple[NDArray[np.int16], ...]
"""Contours of one object: int16 (V, 2), x and y in half pixels, holes the other way round than what surrounds them."""


@dataclass(frozen=True)
class Traced:
    """The objects of one label picture.

    Attributes:
        objects: number of objects.
        shapes: contours of each object that can be pasted, in the order of the indices.
        left_out: causes, one for each other object.
        void_pixels: number of pixels that belong to nothing.
    """

    objects: int
    shapes: Sequence[Contours]
    left_out: Sequence[str]
    void_pixels: int


def trace(labels: NDArray[np.unsignedinteger[Any]], void: int | None, min_pixels: int) -> Traced:
    """Traces every object of a label picture, also one that the border of the picture cuts.

    Args:
        labels: uint8 or uint16 (H, W); 0 is background, and every other index is one object.
        void: index of the pixels that belong to nothing; None for none.
        min_pixels: fewest pixels of an object that becomes a shape.
    """
    counts = np.bincount(labels.ravel(), minlength=(void or 0) + 1)
    void_pixels = 0 if void is None else int(counts[void])
    counts[[0] if void is None else [0, void]] = 0
    large = counts >= max(min_pixels, 1)
    left_out = [SMALL] * (int((counts > 0).sum()) - int(large.sum()))
    shapes = []
    for mask in _masks(labels, large):
        if max(mask.shape) > LONGEST_SIDE:
            left_out.append(WIDE)
            continue
        contours = contours_of(mask)
        if sum(map(len, contours)) > MOST_CORNERS:
            left_out.append(RAGGED)
        elif not _can_be_pasted(contours):
            left_out.append(THIN)
        else:
            shapes.append(contours)
    return Traced(len(shapes) + len(left_out), shapes, left_out, void_pixels)


def _masks(labels: NDArray[np.unsignedinteger[Any]], chosen: NDArray[np.bool_]) -> list[NDArray[np.uint8]]:
    """The chosen objects in their bounding boxes, uint8 (h, w), in the order of their indices; one pass however many there are."""
    places = np.flatnonzero(chosen[labels]).astype(np.int32)
    numbers = labels.ravel()[places]
    order = np.argsort(numbers, kind="stable")
    rows, columns = np.divmod(places[order], labels.shape[1])
    found, starts = np.unique(numbers[order], return_index=True)
    if not len(found):
        return []
    tops, lefts = np.minimum.reduceat(rows, starts), np.minimum.reduceat(columns, starts)
    ends, rights = np.maximum.reduceat(rows, starts) + 1, np.maximum.reduceat(columns, starts) + 1
    boxes = zip(found, tops, ends, lefts, rights, strict=True)
    return [(labels[top:end, left:right] == number).view(np.uint8) for number, top, end, left, right in boxes]


def contours_of(mask: NDArray[np.uint8]) -> Contours:
    """Traces the edges of an object and simplifies them within the tolerance, so that parts and holes narrower than that may vanish.

    Args:
        mask: uint8 (H, W), 1 where the object is.
    """
    # pixels lie at the odd places of a grid of half pixels and grow to their edges and corners, which the tracer then follows
    grid = np.zeros((mask.shape[0] * 2 + 1, mask.shape[1] * 2 + 1), np.uint8)
    grid[1::2, 1::2] = mask
    found, _ = cv2.findContours(cv2.dilate(grid, _SPREAD), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    tolerance = max(TOLERANCE, RELATIVE_TOLERANCE * sqrt(cv2.countNonZero(mask)))
    found = [contour[(contour & 1).sum(axis=2) == 1] for contour in found]  # one coordinate of an edge's middle is odd
    simple = (cv2.approxPolyDP(contour, 2 * tolerance, True) for contour in found)
    return tuple(contour.reshape(-1, 2).astype(np.int16) for contour in simple if len(contour) > 2)


def _can_be_pasted(contours: Contours) -> bool:
    try:
        Silhouette.of(contours)
    except ValueError:
        return False
    return True
