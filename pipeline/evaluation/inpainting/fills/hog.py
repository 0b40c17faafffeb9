"""Histograms of oriented gradients (Dalal and Triggs 2005) of the visible part, for nearest-neighbour inpainting "with HOG features".

The paper does not give the settings. Chosen here: a grid of 16 x 16 cells, so that a picture of 128 pixels has Dalal and Triggs' cells of
8; 9 orientations without sign, hard bins; blocks of 2 x 2 cells that overlap by half, normalised by L2-Hys; of R, G and B the gradient of
the channel where it is longest. scikit-image's `hog(image, channel_axis=-1, pixels_per_cell=...)` gives the same numbers at a twentieth of
the speed. They are rounded to 1/256 of a block's length here, finer than SIFT's bytes.

A block of a query counts only if no gradient in it has met the hole; the distance to a stored picture, which is described whole, is over
those blocks.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.inpainting.fills.errors import FillError
from pipeline.evaluation.inpainting.fills.visible import blanked
from pipeline.evaluation.inpainting.method import Holes
from shards.counting import counted

CELLS, ORIENTATIONS, SCALE = 16, 9, 256.0
_EPSILON, _CLIP = 1e-5, 0.2
_STEPS = np.arange(-255, 256)
_ANGLES = np.rad2deg(np.arctan2(_STEPS[:, None], _STEPS[None, :])) % 180
_BINS = (_ANGLES // (180 / ORIENTATIONS)).astype(np.int64)
"""Bin of every gradient (row, column), looked up because the vectorised arc tangents of a library may differ in the last bit."""
_LENGTHS = np.hypot(_STEPS[:, None], _STEPS[None, :])


class HogDescriber:
    """Describes pictures by the orientation of their gradients."""

    name: ClassVar[str] = "nearest_hog"
    title: ClassVar[str] = "Nearest neighbour (HOG)"

    def query(self, holes: Holes) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
        """Describes the visible part of pictures with holes.

        Returns:
            Vectors int16 (n, 8100), and weights float32 (n, 225), one for the 36 values of each block.

        Raises:
            FillError: no pixel of a picture is visible, or a picture is smaller than 32 pixels.
        """
        values, weights = self.stored(blanked(holes)), block_weights(holes.masks)
        return values * np.repeat(weights, values.shape[1] // weights.shape[1], axis=1).astype(np.int16), weights

    def stored(self, images: NDArray[np.uint8]) -> NDArray[np.int16]:
        """Describes pictures uint8 (n, H, W, 3): vectors int16 (n, 8100).

        Raises:
            FillError: the pictures are smaller than 32 pixels.
        """
        cell = _cell(images.shape[1:3])
        found = [hog(each, cell) for each in images]
        return (np.stack(found).reshape(len(images), -1) * SCALE).round().astype(np.int16)


def hog(image: NDArray[np.uint8], cell: int) -> NDArray[np.float64]:
    """Computes the histograms of oriented gradients of a picture.

    Args:
        image: uint8 (H, W, 3), RGB.
        cell: side of a cell in pixels; the grid has CELLS x CELLS.

    Returns:
        float64 (CELLS - 1, CELLS - 1, 2, 2, ORIENTATIONS), each block at most of length 1.
    """
    pixels = image.astype(np.int64)
    rows, columns = np.zeros_like(pixels), np.zeros_like(pixels)
    rows[1:-1] = pixels[2:] - pixels[:-2]
    columns[:, 1:-1] = pixels[:, 2:] - pixels[:, :-2]
    side = CELLS * cell
    rows, columns = rows[:side, :side], columns[:side, :side]
    longest = (rows * rows + columns * columns).argmax(2)[..., None]
    gradient = tuple(np.take_along_axis(each, longest, 2)[..., 0] + 255 for each in (rows, columns))
    place = np.arange(side) // cell
    bins = (place[:, None] * CELLS + place[None, :]) * ORIENTATIONS + _BINS[gradient]
    sums = np.bincount(bins.ravel(), _LENGTHS[gradient].ravel(), CELLS * CELLS * ORIENTATIONS)
    cells = sums.reshape(CELLS, CELLS, ORIENTATIONS) / (cell * cell)
    blocks = np.stack([np.stack([cells[:-1, :-1], cells[:-1, 1:]], 2), np.stack([cells[1:, :-1], cells[1:, 1:]], 2)], 2)
    return _unit(np.minimum(_unit(blocks), _CLIP))


def block_weights(masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Finds the blocks whose gradients see no hidden pixel.

    Args:
        masks: bool (n, H, W), True where pixels are dropped.

    Returns:
        float32 (n, (CELLS - 1)**2), 1 where all gradients of a block are of visible pixels, else 0.
    """
    met = masks.copy()  # a gradient sees the pixels beside its own
    met[:, 1:] |= masks[:, :-1]
    met[:, :-1] |= masks[:, 1:]
    met[:, :, 1:] |= masks[:, :, :-1]
    met[:, :, :-1] |= masks[:, :, 1:]
    cell = _cell(masks.shape[1:])
    side = CELLS * cell
    cells = met[:, :side, :side].reshape(-1, CELLS, cell, CELLS, cell).max(4).max(2)
    rows = cells[:, :-1] | cells[:, 1:]
    seen: NDArray[np.float32] = (~(rows[:, :, :-1] | rows[:, :, 1:])).astype(np.float32)
    return seen.reshape(len(masks), -1)


def _cell(size: tuple[int, ...]) -> int:
    if min(size) < 2 * CELLS:
        raise FillError(
            f"nearest_hog: pictures of {counted(min(size), 'pixel')} are too small for {CELLS} x {CELLS} cells. Leave nearest_hog out"
        )
    return min(size) // CELLS


def _unit(blocks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scales the blocks of histograms to length 1; a block without gradients stays 0."""
    scaled: NDArray[np.float64] = blocks / np.sqrt(np.square(blocks).sum((2, 3, 4), keepdims=True) + _EPSILON**2)
    return scaled
