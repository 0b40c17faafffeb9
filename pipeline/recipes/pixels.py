"""Pixels as the networks see them, and back to what a person sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.recipes.player import Views

CAFFE_MEAN = (123.0, 117.0, 104.0)
"""Mean of ImageNet in R, G, B, as Caffe's reference models have it."""


@dataclass(frozen=True)
class PixelScale:
    """A value of 0 to 255 becomes (value - mean) / divisor.

    Attributes:
        mean: R, G, B.
        divisor: of the centred values.
    """

    mean: tuple[float, float, float]
    divisor: float

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (n, H, W, 3) -> float32 (n, 3, H, W), in memory as it came (channels last)."""
        mean = torch.tensor(self.mean, device=images.device).view(1, 3, 1, 1)
        return (images.permute(0, 3, 1, 2).float() - mean) / self.divisor

    def show(self, values: Tensor) -> Tensor:
        """float (n, 3, H, W) -> [0, 1]."""
        mean = torch.tensor(self.mean, device=values.device).view(1, 3, 1, 1)
        return ((values.float() * self.divisor + mean) / 255).clamp(0, 1)


def resized(values: Tensor, size: int) -> Tensor:
    """float (n, c, H, W) at another side, antialiased where it shrinks; itself where it has that side."""
    if values.shape[-1] == size:
        return values
    return functional.interpolate(values, size=(size, size), mode="bilinear", align_corners=False, antialias=values.shape[-1] > size)


def columns(scale: PixelScale, views: Views, prediction: Tensor) -> dict[str, Tensor]:
    """What a grid shows: the context, what the network painted, that pasted into the hole, and the truth.

    Args:
        scale: of the views.
        views: with context, target (n, 3, S, S) and mask (n, 1, S, S), True where pixels were dropped.
        prediction: float (n, 3, S, S).
    """
    pasted = torch.where(views["mask"], prediction.float(), views["target"])
    shown = {"context": views["context"], "prediction": prediction, "pasted": pasted, "truth": views["target"]}
    return {name: scale.show(values) for name, values in shown.items()}
