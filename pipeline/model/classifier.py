"""Networks that name a class: AlexNet's encoder with its fully-connected layers, for one picture or for a pair of patches."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn

from pipeline.model.batch_norm import GroupedBatchNorm2d
from pipeline.model.encoder import Encoder, Layout, Pooling, encode
from pipeline.model.sample_random import DROPOUT, keyed_dropout
from shards.counting import counted

_LATER_DROPOUT = 3  # purpose of fc7's random numbers, beside DROPOUT and NOISE
_LAST_GAIN = 0.1  # logits of an untrained network are small, so that its loss is about that of guessing


def pooled_side(encoder: Encoder, side: int) -> int:
    """Computes the side of the encoder's maps for a square picture; below 1 where the picture is too small for its layers.

    Args:
        encoder: encoder of any layout.
        side: side of the picture in pixels.
    """
    for layer in encoder:
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            kernel, stride, padding = (
                each if isinstance(each, int) else int(each[0]) for each in (layer.kernel_size, layer.stride, layer.padding)
            )
            side = (side + 2 * padding - kernel) // stride + 1
    return side


class LabelNetwork(nn.Module):
    """AlexNet: encoder, then fc6, fc7 and fc8, with dropout after the first two.

    Args:
        side: side of the pictures in pixels.
        classes: number of classes.
        units: units of fc6 and fc7.
        dropout: probability that a value of fc6 or fc7 is set to zero in training.
        layout, batch_norm, batch_norm_group, pooling, width: as in `Encoder`.

    Attributes:
        encoder: part that is kept after the training.

    Raises:
        ValueError: naming the argument.
    """

    def __init__(
        self,
        side: int,
        classes: int,
        units: int = 4096,
        dropout: float = 0.5,
        layout: Layout = "caffenet",
        batch_norm: bool = False,
        batch_norm_group: int = 64,
        pooling: Pooling = "max",
        width: int | None = None,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.encoder = Encoder(layout, batch_norm, batch_norm_group, pooling, None, width)
        self.fc6 = _fully_connected(self.encoder.channels * pooled_side(self.encoder, side) ** 2, units)
        self.relu6 = nn.ReLU()
        self.fc7 = _fully_connected(units, units)
        self.relu7 = nn.ReLU()
        self.fc8 = _fully_connected(units, classes, gain=_LAST_GAIN)

    def forward(self, images: Tensor, keys: Tensor) -> Tensor:
        """Computes the logits.

        Args:
            images: float (n, 3, side, side).
            keys: int64 (n,), random keys that dropout is drawn from; not used in evaluation.

        Returns:
            float (n, classes).
        """
        values = self.relu6(self.fc6(encode(self.encoder, images).flatten(1)))
        values = keyed_dropout(values, keys, self.dropout, DROPOUT) if self.training else values
        values = self.relu7(self.fc7(values))
        values = keyed_dropout(values, keys, self.dropout, _LATER_DROPOUT) if self.training else values
        logits: Tensor = self.fc8(values)
        return logits


class PatchPairNetwork(nn.Module):
    """Two copies of an encoder and of fc6 that share their weights, joined by fc7, fc8 and fc9 (Doersch et al., ICCV 2015).

    The patches of a pair are neighbours in the batch, so that a batch-norm group holds both patches of each of its pictures.

    Args:
        patch: side of a patch in pixels.
        classes: number of relative positions.
        units: units of fc6, fc7 and fc8.
        layout, width: as in `Encoder`.
        batch_norm: batch normalisation in the encoder, fc6 and fc7.
        batch_norm_group: pictures that are normalised together.

    Attributes:
        encoder: part that is kept after pretraining.

    Raises:
        ValueError: naming the argument.
    """

    def __init__(
        self,
        patch: int = 96,
        classes: int = 8,
        units: int = 4096,
        layout: Layout = "caffenet",
        batch_norm: bool = True,
        batch_norm_group: int = 32,
        width: int | None = None,
    ) -> None:
        super().__init__()
        group = batch_norm_group
        self.encoder = Encoder(layout, batch_norm, 2 * group, "max", None, width)
        side = pooled_side(self.encoder, patch)
        if side < 1:
            raise ValueError(f"patch: nothing of {counted(patch, 'pixel')} is left after the poolings of {layout}")
        self.fc6 = _fully_connected(self.encoder.channels * side**2, units, bias=not batch_norm)
        self.bn6 = GroupedBatchNorm2d(units, 2 * group) if batch_norm else nn.Identity()
        self.relu6 = nn.ReLU()
        self.fc7 = _fully_connected(2 * units, units, bias=not batch_norm)
        self.bn7 = GroupedBatchNorm2d(units, group) if batch_norm else nn.Identity()
        self.relu7 = nn.ReLU()
        self.fc8 = _fully_connected(units, units)
        self.relu8 = nn.ReLU()
        self.fc9 = _fully_connected(units, classes, gain=_LAST_GAIN)

    def forward(self, patches: Tensor) -> Tensor:
        """Computes the logits of the second patch's positions around the first.

        Args:
            patches: float (n, 2, 3, patch, patch).

        Returns:
            float (n, classes).
        """
        each = self.fc6(encode(self.encoder, patches.flatten(0, 1)).flatten(1))
        each = self.relu6(_as_maps(self.bn6, each))
        pair = self.relu7(_as_maps(self.bn7, self.fc7(each.view(len(patches), -1))))
        logits: Tensor = self.fc9(self.relu8(self.fc8(pair)))
        return logits


def _as_maps(layer: nn.Module, values: Tensor) -> Tensor:
    """Normalises float (n, units), each unit as a map of one pixel."""
    normalised: Tensor = layer(values[:, :, None, None])
    return normalised.flatten(1)


@torch.no_grad()
def _fully_connected(inputs: int, outputs: int, bias: bool = True, gain: float = 1.0) -> nn.Linear:
    """Makes a layer whose weights are drawn with a deviation of sqrt(2 / inputs) times the gain, and whose biases are zero."""
    layer = nn.Linear(inputs, outputs, bias)
    nn.init.normal_(layer.weight, 0.0, gain * sqrt(2 / inputs))
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
