"""Figures of painted pictures: errors over the dropped pixels on table 1's scale, and the colours that a painting has to beat.

Pictures are float (n, 3, H, W) in [0, 1], masks bool (n, 1, H, W), True where pixels were dropped. A picture without a dropped pixel (the
autoencoder drops none) is judged over all of its pixels. Every figure is one float64 value a picture, so that its mean doesn't depend on
how the pictures were divided into batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_LEAST = 1e-10  # squared error of a perfect picture, 100 dB


@dataclass(frozen=True)
class Errors:
    """Errors of painted pictures over the dropped pixels, float64 (n,) each.

    Attributes:
        l1: mean absolute error, per cent of the range.
        l2: mean squared error, per cent of the squared range.
        psnr: peak signal-to-noise ratio in dB, with a peak of 1.
    """

    l1: Tensor
    l2: Tensor
    psnr: Tensor


def errors(prediction: Tensor, truth: Tensor, mask: Tensor) -> Errors:
    """Compares paintings with the truth; values beyond [0, 1] are clipped first, as a picture file would clip them."""
    difference = (prediction.double().clamp(0, 1) - truth.double()).abs()
    judged = judged_pixels(mask)
    l1, l2 = mean_colour(difference, judged).mean(1), mean_colour(difference.square(), judged).mean(1)
    return Errors(100 * l1, 100 * l2, -10 * torch.log10(l2.clamp(min=_LEAST)))


def judged_pixels(mask: Tensor) -> Tensor:
    """Turns the mask of dropped pixels into that of the judged ones: all pixels of a picture that has none dropped."""
    return mask | ~mask.flatten(1).any(1).view(-1, 1, 1, 1)


def visible_pixels(mask: Tensor) -> Tensor:
    """Turns the mask of dropped pixels into that of the visible ones: all pixels of a picture that has none visible."""
    return ~mask | mask.flatten(1).all(1).view(-1, 1, 1, 1)


def mean_colour(pictures: Tensor, chosen: Tensor) -> Tensor:
    """Averages the chosen pixels of each picture.

    Args:
        pictures: float (n, 3, H, W).
        chosen: bool (n, 1, H, W), at least one True a picture.

    Returns:
        float64 (n, 3).
    """
    return (pictures.double() * chosen).flatten(2).sum(2) / chosen.flatten(2).sum(2)
