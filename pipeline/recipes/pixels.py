"""Pixels scaled for the networks, and back to pictures for a person."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.recipes.player import Views

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
        return (images.permute(0, 3, 1, 2).float() - mean) / self.divisor

    def show(self, values: Tensor) -> Tensor:
        """Turns normalised float (n, 3, H, W) back into pixels in [0, 1]."""
        mean = torch.tensor(self.mean, device=values.device).view(1, 3, 1, 1)
        return ((values.float() * self.divisor + mean) / 255).clamp(0, 1)


def resized(values: Tensor, size: int) -> Tensor:
    """Resizes square float (n, c, H, W) to another side, antialiased where it shrinks; returns `values` itself if the side is right."""
    if values.shape[-1] == size:
        return values
    return functional.interpolate(values, size=(size, size), mode="bilinear", align_corners=False, antialias=values.shape[-1] > size)


def columns(scale: PixelScale, views: Views, prediction: Tensor) -> dict[str, Tensor]:
    """The columns of a grid: the context, the prediction, the prediction pasted into the hole, and the truth.

    Args:
        scale: scale that the views were normalised with.
        views: views of the recipe, with context, target (n, 3, S, S) and mask (n, 1, S, S), True where pixels were dropped.
        prediction: painting of the network, float (n, 3, S, S).
    """
    pasted = torch.where(views["mask"], prediction.float(), views["target"])
    shown = {"context": views["context"], "prediction": prediction, "pasted": pasted, "truth": views["target"]}
    return {name: scale.show(values) for name, values in shown.items()}
