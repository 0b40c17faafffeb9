"""Pixels scaled for the networks, and back to pictures for a person."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

CAFFE_MEAN = (123.0, 117.0, 104.0)
"""Mean of ImageNet in R, G, B, as in Caffe's reference models."""


@dataclass(frozen=True)
class PixelScale:
    """A value of 0 to 255 becomes (value - mean) / divisor.

    Attributes:
        mean: mean of R, G, B.
        divisor: divisor of the centred values.
        fill: R, G, B that a recipe puts in place of dropped pixels; None is the mean, which the networks see as 0.
    """

    mean: tuple[float, float, float]
    divisor: float
    fill: tuple[float, float, float] | None = None

    def normalise(self, images: Tensor) -> Tensor:
        """Turns uint8 (n, H, W, 3) into float32 (n, 3, H, W); the memory stays channels last."""
        mean = torch.tensor(self.mean, device=images.device).view(1, 3, 1, 1)
        return images.permute(0, 3, 1, 2).to(torch.float32, copy=True).sub_(mean).div_(self.divisor)

    def show(self, values: Tensor) -> Tensor:
        """Turns normalised float (n, 3, H, W) back into pixels in [0, 1]."""
        mean = torch.tensor(self.mean, device=values.device).view(1, 3, 1, 1)
        return ((values.float() * self.divisor + mean) / 255).clamp(0, 1)

    def of_colours(self, colours: Tensor) -> Tensor:
        """Normalises one colour a picture, float (n, 3) in [0, 1]: float32 (n, 3, 1, 1)."""
        mean = torch.tensor(self.mean, device=colours.device)
        return ((colours * 255 - mean) / self.divisor).float()[:, :, None, None]


def resized(values: Tensor, size: int) -> Tensor:
    """Resizes square float (n, c, H, W) to another side, antialiased where it shrinks; returns `values` itself if the side is right."""
    if values.shape[-1] == size:
        return values
    return functional.interpolate(values, size=(size, size), mode="bilinear", align_corners=False, antialias=values.shape[-1] > size)
