"""Figures of filled pictures: L1, L2 and PSNR on the dropped pixels and on the whole picture, and SSIM on the whole picture.

Pictures are in [0, 1], and the range of every figure is 1. "The whole picture" is the true picture with the fill pasted into its hole, as
a person sees it, so the pixels around the hole are right in every method's. All figures are computed in float64, picture by picture.

SSIM is that of Wang et al. (2004): Gaussian windows of 11 x 11 pixels, sigma 1.5, K1 = 0.01, K2 = 0.03, the population's covariance, the
mean over the windows that lie inside the picture and over R, G, B. scikit-image gives the same number with gaussian_weights=True,
use_sample_covariance=False, data_range=1, channel_axis=2.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

FIGURES = ("l1", "l2", "psnr", "ssim", "whole_l1", "whole_l2", "whole_psnr")
"""Names of the figures, in the order of `Truth.measure`: L1 and L2 in per cent, PSNR in dB."""
LARGEST_PSNR = 100.0
"""PSNR of a perfect fill in dB, where the formula gives infinity: that of a mean squared error of 1e-10, which is also the training's."""
SSIM_SIDE = 11
"""Side of SSIM's window in pixels; a smaller picture has no SSIM."""
_LEAST = 10 ** (-LARGEST_PSNR / 10)
_WINDOW = cv2.getGaussianKernel(SSIM_SIDE, 1.5, cv2.CV_64F)
_C1, _C2 = 0.01**2, 0.03**2


class Truth:
    """A true picture with its hole, with which fills are compared.

    Only the part of the picture that the hole touches is looked at: everywhere else every fill is right, its error 0 and its SSIM 1.

    Args:
        picture: uint8 (H, W, 3), RGB.
        mask: bool (H, W), True where pixels are dropped; neither empty nor full.
    """

    def __init__(self, picture: NDArray[np.uint8], mask: NDArray[np.bool_]) -> None:
        self._size = picture.shape[:2]
        self._box = tuple(_around(np.flatnonzero(mask.any(axis))) for axis in (1, 0))
        self._mask = np.ascontiguousarray(mask[self._box])
        self._levels = np.ascontiguousarray(picture[self._box].transpose(2, 0, 1))

    def measure(self, fill: NDArray[np.float32]) -> NDArray[np.float64]:
        """Computes the figures of a fill; values beyond [0, 1] are clipped, as a picture file would clip them.

        Args:
            fill: float32 (H, W, 3); only values at dropped pixels are read.

        Returns:
            float64 (7,), in the order of FIGURES; SSIM is NaN for a picture that is smaller than its window.
        """
        seen, l1, l2, similar = fill[self._box], 0.0, 0.0, list[NDArray[np.float64]]()
        for channel, levels in enumerate(self._levels):  # one at a time, because its arrays stay in the core's cache
            plane = levels / 255.0
            filled = seen[..., channel].astype(np.float64)
            pasted = np.where(self._mask, np.clip(filled, 0, 1, out=filled), plane)
            difference = (pasted - plane).ravel()
            l1 += float(np.abs(difference).sum())
            l2 += float(np.square(difference).sum())
            if min(self._size) >= SSIM_SIDE:
                similar.append(_similarity(plane, pasted, self._means[channel]))
        inside, every = 3 * int(self._mask.sum()), 3 * self._size[0] * self._size[1]
        values = [100 * l1 / inside, 100 * l2 / inside, _psnr(l2 / inside), self._ssim(similar)]
        return np.array([*values, 100 * l1 / every, 100 * l2 / every, _psnr(l2 / every)])

    def _ssim(self, similar: Sequence[NDArray[np.float64]]) -> float:
        """The mean over all windows, of which those that touch no dropped pixel are exactly 1."""
        if not similar:
            return float("nan")
        every = 3 * (self._size[0] - SSIM_SIDE + 1) * (self._size[1] - SSIM_SIDE + 1)
        return float((sum(float(each.sum()) - each.size for each in similar) + every) / every)

    @cached_property
    def _means(self) -> list[NDArray[np.float64]]:
        """Means of each channel of the true picture under each window, for the fills of all methods."""
        return [_blurred(levels / 255.0) for levels in self._levels]


def _similarity(plane: NDArray[np.float64], pasted: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """SSIM of each window of a channel: float64 (h - 10, w - 10).

    The two variances stand in the formula as a sum, so that one filter gives both.
    """
    own = _blurred(pasted)
    product, square = mean * own, mean * mean + own * own
    covariance, variances = _blurred(plane * pasted) - product, _blurred(plane * plane + pasted * pasted) - square
    windows: NDArray[np.float64] = (2 * product + _C1) * (2 * covariance + _C2) / ((square + _C1) * (variances + _C2))
    return windows


def paste(picture: NDArray[np.uint8], mask: NDArray[np.bool_], fill: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Pastes a fill into the hole of a picture, rounded as a picture file rounds it: uint8 (H, W, 3)."""
    levels = np.rint(255 * np.clip(fill, 0, 1)).astype(np.uint8)
    pasted: NDArray[np.uint8] = np.where(mask[..., None], levels, picture)
    return pasted


def _around(dropped: NDArray[np.int64]) -> slice:
    """Rows or columns under the windows that touch dropped ones."""
    return slice(max(0, int(dropped[0]) - SSIM_SIDE + 1), int(dropped[-1]) + SSIM_SIDE)


def _psnr(error: float) -> float:
    return float(-10 * np.log10(max(error, _LEAST)))


def _blurred(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighs the pixels under each window that lies inside the picture: float64 (h - 10, w - 10)."""
    edge = SSIM_SIDE // 2
    blurred: NDArray[np.float64] = cv2.sepFilter2D(values, cv2.CV_64F, _WINDOW, _WINDOW)[edge:-edge, edge:-edge].copy()
    return blurred
