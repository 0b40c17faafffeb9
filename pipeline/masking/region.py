"""The random region: irregular shapes, deformed and pasted anywhere, up to a quarter of the image (section 3.2, "random region").

The shapes are deformed and scaled once for each image size, 8192 of them or more; a mask then costs one polygon fill a shape, anywhere in
the image. Deforming anew for each mask would double its cost, and single shapes at the places of a 227x227 image are 2 * 10^8
masks already, before sixteenths of a pixel, pairs and triples. Areas are known, so that few masks miss the limits and are drawn
twice. From random bits to pixels a mask is integer arithmetic: the same on every CPU, and with every OpenCV from 4.11 to 5.0 (older
ones fill some pixels of the outline differently).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log, pi, sqrt

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.masking.coverage import check_fractions, draw_rectangle, pixel_limits
from shards.keyed import uniforms, words
from shards.shapes.silhouette import Silhouette, generated_silhouettes

_FALLBACK, _ATTEMPT = 0x30, 0x31  # purposes of random words; attempts after the first take the following ones
_ATTEMPTS = 8
_PIECES = (1, 1, 1, 1, 1, 2, 2, 3)  # shapes in a mask, equally likely
_MOST_PIECES = max(_PIECES)
_VARIANT_BITS = 12  # 2^12 shapes are prepared for masks of one piece, half as many for two and for three; more if the bank has more
_SUBPIXEL_BITS = 4  # cv2.fillPoly's fixed point
_STRETCH = 2.2  # largest elongation, as a ratio of axes
_SEED = 0x52

Polygon = list[NDArray[np.int32]]
"""Contours (V, 2) around the origin in 1/16 pixel, as cv2.fillPoly takes them."""


@dataclass(frozen=True)
class _Prepared:
    """The pixel limits of masks of one size, and polygons by the number of pieces in a mask, from 1."""

    least: int
    most: int
    polygons: tuple[list[Polygon], ...]


@dataclass(frozen=True)
class RandomRegion:
    """Drops one to three shapes, each rotated, stretched, perhaps mirrored, and centred anywhere in the image.

    Shapes take the image's aspect, and their parts beyond the border are cut off. A mask that overlap and border leave below the
    smallest fraction is drawn again, up to eight times; then a rectangle takes its place.

    Attributes:
        max_fraction: largest fraction of the pixels that is dropped.
        min_fraction: smallest fraction, rounded down to pixels; the areas of the shapes add up to at least the mean of both.
        silhouettes: shapes to paste.

    Raises:
        ValueError: a field is out of range; the message names it.
    """

    max_fraction: float = 0.25
    min_fraction: float = 0.1
    silhouettes: tuple[Silhouette, ...] = field(default_factory=generated_silhouettes, repr=False)
    _prepared: dict[tuple[int, ...], _Prepared] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_fractions(self.min_fraction, self.max_fraction)
        if not self.silhouettes:
            raise ValueError("silhouettes: at least one shape is needed")

    def draw(self, key: int, out: NDArray[np.bool_]) -> None:
        """Fills `out`, bool (H, W), with True where pixels are dropped: a function of the key and the shape."""
        height, width = out.shape
        prepared = self._prepared.get(out.shape)
        if prepared is None:  # threads that come here together make the same
            prepared = self._prepared[out.shape] = self._prepare(height, width)
        pixels = out.view(np.uint8)
        for attempt in range(_ATTEMPTS):
            out.fill(False)
            bits = words(key, _ATTEMPT + attempt, 1)
            pieces = _PIECES[bits[0] & 7]
            if pieces > 1:  # the first words don't depend on how many are drawn, and most masks need no other
                bits = words(key, _ATTEMPT + attempt, pieces)
            polygons = prepared.polygons[pieces - 1]
            for word in bits:
                place = ((word >> 20 & 0x3FFFFF) * width >> 18, (word >> 42) * height >> 18)  # in 1/16 pixel as the vertices
                cv2.fillPoly(pixels, polygons[(word >> 3 & 0x1FFFF) % len(polygons)], 1, 8, _SUBPIXEL_BITS, place)
            if prepared.least <= cv2.countNonZero(pixels) <= prepared.most:
                return
        draw_rectangle(words(key, _FALLBACK, 1)[0], prepared.most, out)

    def _prepare(self, height: int, width: int) -> _Prepared:
        """Deforms and scales the shapes for masks of (height, width): areas from the mean of the limits to the upper one."""
        least, most = pixel_limits(height, width, self.min_fraction, self.max_fraction)
        middle, polygons = (least + most) / 2, []
        for pieces in range(1, _MOST_PIECES + 1):
            count = max(len(self.silhouettes), 1 << (_VARIANT_BITS if pieces == 1 else _VARIANT_BITS - 1))
            chosen = [self.silhouettes[number % len(self.silhouettes)] for number in range(count)]
            draws = uniforms(_SEED, pieces, count * 4).reshape(count, 4)
            deformations = _deformations(draws[:, 0], draws[:, 1], draws[:, 2]) * (sqrt(width / height), sqrt(height / width))
            polygons.append(_polygons(chosen, deformations, (middle + (most - middle) * draws[:, 3]) / pieces))
        return _Prepared(least, most, tuple(polygons))


def _deformations(first: NDArray[np.float64], second: NDArray[np.float64], stretch: NDArray[np.float64]) -> NDArray[np.float64]:
    """Matrices (n, 2, 2), for row vectors on their left: a rotation, an elongation that keeps the area, another rotation, and in every
    second matrix a mirror image. The arguments are numbers in [0, 1), (n,).
    """
    long = np.exp(stretch * (log(_STRETCH) / 2))
    mirrored = np.where(np.arange(len(long)) % 2 == 1, -long, long)
    c, s = np.cos(2 * pi * first), np.sin(2 * pi * first)
    e, f = np.cos(2 * pi * second), np.sin(2 * pi * second)
    rows = [
        c * mirrored * e - s / long * f,
        c * mirrored * f + s / long * e,
        -s * mirrored * e - c / long * f,
        c / long * e - s * mirrored * f,
    ]
    return np.stack(rows, axis=-1).reshape(-1, 2, 2)


def _polygons(silhouettes: list[Silhouette], deformations: NDArray[np.float64], areas: NDArray[np.float64]) -> list[Polygon]:
    """Deforms and scales each shape so that filling it covers about its area in pixels, (n,)."""
    sizes = np.array([len(each.outline) for each in silhouettes])
    starts = np.cumsum(sizes) - sizes
    outline = np.concatenate([each.outline for each in silhouettes])
    following = np.concatenate([each.following for each in silhouettes]) + np.repeat(starts, sizes)
    matrix = np.repeat(deformations, sizes, axis=0)
    outline = outline[:, :1] * matrix[:, 0] + outline[:, 1:] * matrix[:, 1]
    perimeters = np.add.reduceat(np.hypot(*(outline[following] - outline).T), starts)
    # a fill takes in about half a pixel around the outline, so that side**2 + perimeter / 2 * side = area
    sides = np.sqrt(perimeters * perimeters / 16 + areas) - perimeters / 4
    points = np.rint(outline * np.repeat(sides * (1 << _SUBPIXEL_BITS), sizes)[:, None]).astype(np.int32)
    polygons = []
    for start, size, silhouette in zip(starts.tolist(), sizes.tolist(), silhouettes, strict=True):
        edges = [0, *silhouette.breaks, size]
        polygons.append([points[start + edges[part] : start + edges[part + 1]] for part in range(len(edges) - 1)])
    return polygons
