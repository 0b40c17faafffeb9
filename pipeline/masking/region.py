"""The random region: irregular shapes, deformed and pasted anywhere, up to a quarter of the image (section 3.2, "random region").

The shapes are deformed and scaled once for each image size, 8192 of them or more; a mask then costs one polygon fill a shape, anywhere in
the image. Deforming anew for each mask would double its cost, and single shapes at the places of a 227x227 image are 2 * 10^8
masks already, before sixteenths of a pixel, pairs and triples. Areas are known, so that few masks miss the limits and are drawn
twice. From random bits to pixels a mask is integer arithmetic: the same on every CPU, and with every OpenCV from 4.11 to 5.0 (older
ones fill some pixels of the outline differently).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from math import log, pi, sqrt
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.masking.bank import MOST_SHAPES, Bank
from pipeline.masking.coverage import check_fractions, check_mean, draw_rectangle, pixel_limits
from shards.keyed import key_of, uniforms, words
from shards.shapes.silhouette import Silhouette, generated_silhouettes

_FALLBACK, _ATTEMPT = 0x30, 0x31  # purposes of random words; attempts after the first take the following ones
_ATTEMPTS = 8
_PIECES = (1, 1, 1, 1, 1, 2, 2, 3)  # shapes in a mask, equally likely
_MOST_PIECES = max(_PIECES)
_VARIANT_BITS = 12  # 2^12 shapes are prepared for masks of one piece, half as many for two and for three; more if the bank has more
_SUBPIXEL_BITS = 4  # cv2.fillPoly's fixed point
_STRETCH = 2.2  # largest elongation, as a ratio of axes
_SEED = 0x52
_MARGIN = 16  # with a bank or a mean, centres lie up to a sixteenth of the side outside of the image: corners are dropped often enough
_BANK_SCALE = 1.1  # factor of the areas of a bank's shapes, which makes up for what the border cuts off of them
_TRIED, _TRIALS = 8192, 6  # masks that a mean is measured on, with a standard error of 0.3 %, and scales that are tried
_LARGEST = 3.0  # scale that is tried; the smallest is its reciprocal
_NEAR, _RECTANGLES = 0.004, 0.05  # largest error of that mean, as a fraction of it, and largest fraction of plain rectangles
_FIRST, _HOPELESS = 512, 0.25  # masks after which so large a fraction of rectangles ends the search

Polygon = list[NDArray[np.int32]]
"""Contours (V, 2) around the origin in 1/16 pixel, as cv2.fillPoly takes them."""


@dataclass(frozen=True)
class _Prepared:
    """The limits of masks of one size, and polygons by the number of pieces in a mask, from 1.

    Attributes:
        least, most: fewest and most dropped pixels.
        across, down: width and height of the rectangle that centres are drawn from, in pixels.
        left, above: parts of that rectangle beyond the image's border, in 1/16 pixel.
        polygons: polygons for masks of one piece, of two, and of three.
    """

    least: int
    most: int
    across: int
    down: int
    left: int
    above: int
    polygons: tuple[list[Polygon], ...]


@dataclass(frozen=True)
class RandomRegion:
    """Drops one to three shapes, each rotated, stretched, perhaps mirrored, and centred anywhere in the image.

    Shapes take the image's aspect, and their parts beyond the border are cut off. A mask that overlap and border leave below the
    smallest fraction is drawn again, up to eight times; then a rectangle takes its place. With a bank or a mean, centres lie anywhere in
    the image and up to a sixteenth of its side around it.

    Attributes:
        max_fraction: largest fraction of the pixels that is dropped.
        min_fraction: smallest fraction, rounded down to pixels; without a mean the areas of the shapes add up to at least the mean of both.
        silhouettes: shapes to paste where there is no bank.
        mean_fraction: mean fraction of the pixels that is dropped, kept within 2 % of itself: the areas of the shapes are scaled until
            masks of an image size have it, once for each size. None scales nothing.
        bank: bank of the shapes to paste, read when the first mask is drawn.

    Raises:
        ValueError: a field is out of range; the message names it. From `draw`, also a mean that the limits leave no room for.
        ShapesError: from `draw`, the bank can't be read.
        StoreError: from `draw`, the store of the bank does not answer.
    """

    max_fraction: float = 0.25
    min_fraction: float = 0.1
    silhouettes: tuple[Silhouette, ...] = field(default_factory=generated_silhouettes, repr=False)
    mean_fraction: float | None = None
    bank: Bank | None = None
    _prepared: dict[tuple[int, ...], _Prepared] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_fractions(self.min_fraction, self.max_fraction)
        check_mean(self.mean_fraction, self.min_fraction, self.max_fraction)
        if not self.silhouettes:
            raise ValueError("silhouettes: at least one shape is needed")

    def draw(self, key: int, out: NDArray[np.bool_]) -> None:
        """Fills `out`, bool (H, W), with True where pixels are dropped: a function of the key and the shape."""
        self.draw_shapes(key, out)

    def draw_shapes(self, key: int, out: NDArray[np.bool_]) -> bool:
        """Draws as `draw`; returns False where a rectangle had to take the place of shapes."""
        prepared = self._prepared.get(out.shape)
        if prepared is None:  # threads that come here together make the same
            prepared = self._prepared[out.shape] = self._prepare(*out.shape)
        return _draw(prepared, key, out)

    def _prepare(self, height: int, width: int) -> _Prepared:
        """Deforms and scales the shapes for masks of (height, width): areas from the mean of the limits to the upper one, or scaled to
        the mean that is wanted."""
        least, most = pixel_limits(height, width, self.min_fraction, self.max_fraction)
        if self.mean_fraction is not None:  # limits around the mean, so that it is near before shapes are scaled
            wanted = self.mean_fraction * height * width
            least, most = max(least, int(2 * wanted - most)), min(most, int(2 * wanted - least))
        silhouettes = self.bank.silhouettes if self.bank is not None else self.silhouettes
        middle, deformed = (least + most) / 2, []
        for pieces in range(1, _MOST_PIECES + 1):
            count = max(len(silhouettes), 1 << (_VARIANT_BITS if pieces == 1 else _VARIANT_BITS - 1))
            chosen = [silhouettes[number % len(silhouettes)] for number in range(count)]
            draws = uniforms(_SEED, pieces, count * 4).reshape(count, 4)
            deformations = _deformations(draws[:, 0], draws[:, 1], draws[:, 2]) * (sqrt(width / height), sqrt(height / width))
            deformed.append((_deformed(chosen, deformations), (middle + (most - middle) * draws[:, 3]) / pieces))
        around = (0, 0) if self.bank is None and self.mean_fraction is None else (width // _MARGIN, height // _MARGIN)
        centres = (width + 2 * around[0], height + 2 * around[1], around[0] << _SUBPIXEL_BITS, around[1] << _SUBPIXEL_BITS)

        def scaled(scale: float) -> _Prepared:
            return _Prepared(least, most, *centres, tuple(_polygons(shapes, scale * areas) for shapes, areas in deformed))

        if self.mean_fraction is None:
            return scaled(1.0 if self.bank is None else _BANK_SCALE)
        return self._calibrated(scaled, height, width)

    def _calibrated(self, scaled: Callable[[float], _Prepared], height: int, width: int) -> _Prepared:
        """Tries scales by the secant method until the mean of some thousand masks is the wanted one."""
        wanted = (self.mean_fraction or 0.0) * height * width
        tried, scale = list[tuple[float, float]](), _BANK_SCALE
        for _ in range(_TRIALS):
            prepared = scaled(scale)
            mean, rectangles = _tried(prepared, height, width)
            if abs(mean - wanted) <= _NEAR * wanted and rectangles <= _RECTANGLES:
                return prepared
            if rectangles > _HOPELESS:
                break
            tried.append((scale, mean))
            (before, its_mean), slope = tried[-2:][0], wanted
            if mean != its_mean:
                slope = (mean - its_mean) / (scale - before)
            scale = min(_LARGEST, max(1 / _LARGEST, scale + (wanted - mean) / slope))
        raise ValueError(
            f"mean_fraction: {self.mean_fraction:g} can't be the mean of masks of {height} x {width} pixels that drop "
            f"{self.min_fraction:g} to {self.max_fraction:g} of them: {rectangles:.0%} would be plain rectangles. Set it nearer to "
            f"{(self.min_fraction + self.max_fraction) / 2:g}, or the limits further apart"
        )


def _draw(prepared: _Prepared, key: int, out: NDArray[np.bool_]) -> bool:
    pixels = out.view(np.uint8)
    for attempt in range(_ATTEMPTS):
        out.fill(False)
        bits = words(key, _ATTEMPT + attempt, 1)
        pieces = _PIECES[bits[0] & 7]
        if pieces > 1:  # the first words don't depend on how many are drawn, and most masks need no other
            bits = words(key, _ATTEMPT + attempt, pieces)
        polygons = prepared.polygons[pieces - 1]
        for word in bits:
            x = ((word >> 20 & 0x3FFFFF) * prepared.across >> 18) - prepared.left  # in 1/16 pixel as the vertices
            y = ((word >> 42) * prepared.down >> 18) - prepared.above
            cv2.fillPoly(pixels, polygons[(word >> 3 & MOST_SHAPES - 1) % len(polygons)], 1, 8, _SUBPIXEL_BITS, (x, y))
        if prepared.least <= cv2.countNonZero(pixels) <= prepared.most:
            return True
    draw_rectangle(words(key, _FALLBACK, 1)[0], prepared.most, out)
    return False


def _tried(prepared: _Prepared, height: int, width: int) -> tuple[float, float]:
    """The mean number of dropped pixels of some thousand masks, and the fraction of them that are plain rectangles."""
    out, dropped, rectangles = np.empty((height, width), np.bool_), 0, 0
    for number in range(_TRIED):
        rectangles += not _draw(prepared, key_of(_SEED, number), out)
        dropped += cv2.countNonZero(out.view(np.uint8))
        if number + 1 == _FIRST and rectangles > _HOPELESS * _FIRST:
            return dropped / _FIRST, rectangles / _FIRST
    return dropped / _TRIED, rectangles / _TRIED


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


class _Deformed(NamedTuple):
    """Shapes of unit area, one after another.

    Attributes:
        outline: float64 (V, 2).
        parts: first vertex of each contour of a shape, and the end of the last one.
        sizes: int64 (n,), vertices of each shape.
        perimeters: float64 (n,).
    """

    outline: NDArray[np.float64]
    parts: list[list[int]]
    sizes: NDArray[np.int64]
    perimeters: NDArray[np.float64]


def _deformed(silhouettes: list[Silhouette], deformations: NDArray[np.float64]) -> _Deformed:
    """Deforms each shape by its matrix, (n, 2, 2)."""
    sizes = np.array([len(each.outline) for each in silhouettes])
    starts = np.cumsum(sizes) - sizes
    outline = np.concatenate([each.outline for each in silhouettes])
    following = np.concatenate([each.following for each in silhouettes]) + np.repeat(starts, sizes)
    matrix = np.repeat(deformations, sizes, axis=0)
    outline = outline[:, :1] * matrix[:, 0] + outline[:, 1:] * matrix[:, 1]
    perimeters = np.add.reduceat(np.hypot(*(outline[following] - outline).T), starts)
    pairs = zip(starts.tolist(), sizes.tolist(), silhouettes, strict=True)
    parts = [[start, *(start + edge for edge in silhouette.breaks), start + size] for start, size, silhouette in pairs]
    return _Deformed(outline, parts, sizes, perimeters)


def _polygons(shapes: _Deformed, areas: NDArray[np.float64]) -> list[Polygon]:
    """Scales each shape so that filling it covers about its area in pixels, (n,)."""
    # a fill takes in about half a pixel around the outline, so that side**2 + perimeter / 2 * side = area
    sides = np.sqrt(shapes.perimeters * shapes.perimeters / 16 + areas) - shapes.perimeters / 4
    points = np.rint(shapes.outline * np.repeat(sides * (1 << _SUBPIXEL_BITS), shapes.sizes)[:, None]).astype(np.int32)
    return [[points[start:end] for start, end in itertools.pairwise(part)] for part in shapes.parts]
