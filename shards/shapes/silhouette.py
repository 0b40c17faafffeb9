"""Outlines to paste: irregular shapes of unit area, generated here or traced from the objects of a segmentation data set."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.keyed import uniforms

_SEED, _OUTLINE, _BEND = 0x51, 1, 2
_VERTICES, _HARMONICS = 32, 6
_REACH = 8.0


@dataclass(frozen=True, eq=False)
class Silhouette:
    """One shape around its centre of gravity.

    Attributes:
        outline: float64 (V, 2), x and y in square roots of the shape's area; the contours one after another. A pixel inside
            an odd number of contours belongs to the shape.
        breaks: the first vertex of each contour after the first one.
        following: int64 (V,), the next vertex of each vertex's own contour.
    """

    outline: NDArray[np.float64]
    breaks: tuple[int, ...]
    following: NDArray[np.int64]

    @staticmethod
    def of(contours: Sequence[NDArray[np.generic]]) -> Silhouette:
        """Makes a shape of unit area of outlines, such as those that `cv2.findContours` traces.

        Args:
            contours: numbers (V, 2) or (V, 1, 2), x and y in any unit, at least 3 vertices each; holes run the other way
                round than what surrounds them.

        Raises:
            ValueError: no area, or an outline that reaches further than 8 times the square root of its area.
        """
        pieces = [np.asarray(contour, dtype=np.float64).reshape(-1, 2) for contour in contours]
        area, moment = 0.0, np.zeros(2)
        for piece in pieces:
            after = np.roll(piece, -1, axis=0)
            cross = piece[:, 0] * after[:, 1] - after[:, 0] * piece[:, 1]
            area += float(cross.sum()) / 2
            moment += ((piece + after) * cross[:, None]).sum(axis=0) / 6
        if not pieces or min(map(len, pieces)) < 3 or not abs(area) > 0:
            raise ValueError("contours: no outline of at least 3 vertices that encloses an area")
        outline = (np.concatenate(pieces) - moment / area) / abs(area) ** 0.5
        reach = float(np.abs(outline).max())
        if reach > _REACH:
            raise ValueError(f"contours: reach {reach:.1f} times the square root of their area, at most {_REACH:.0f} can be pasted")
        ends = np.cumsum([len(piece) for piece in pieces]).tolist()
        following = np.arange(1, ends[-1] + 1)
        following[np.array(ends) - 1] = [0, *ends[:-1]]
        return Silhouette(outline, tuple(ends[:-1]), following)


@functools.cache
def generated_silhouettes(count: int = 1024) -> tuple[Silhouette, ...]:
    """Irregular shapes with lobes, waists and bends, the same in every process.

    The logarithm of the radius is a sum of six random harmonics, which can't cross itself; a bend along a parabola then breaks the symmetry
    around the centre. Rotation, stretch and mirroring come when a shape is prepared for an image size.
    """
    angles = np.arange(_VERTICES) / _VERTICES * 2 * np.pi
    order = np.arange(1, _HARMONICS + 1)
    draws = uniforms(_SEED, _OUTLINE, count * _HARMONICS * 2).reshape(count, 2, _HARMONICS)
    bends = uniforms(_SEED, _BEND, count) * 0.7 - 0.35
    size = np.sqrt(-2 * np.log(1 - draws[:, 0])) * 0.45 / order**0.8  # Rayleigh: a normal amplitude with a random phase
    waves = np.cos(order[:, None] * angles + 2 * np.pi * draws[:, 1, :, None])
    logarithm = (size[:, :, None] * waves).sum(axis=1)
    radius = np.exp(0.9 * np.tanh(logarithm / 0.9))
    x, y = radius * np.cos(angles), radius * np.sin(angles)
    x = x + bends[:, None] * y * y
    return tuple(Silhouette.of([np.column_stack(points)]) for points in zip(x, y, strict=True))
