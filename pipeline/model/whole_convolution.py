"""Convolutions whose kernel is as large as the map: from all places to one value a map, or from one value a map to all places.

They are matrix products. As a convolution oneDNN takes ten to thirty times as long for the bottleneck of the inpainting recipe
(section 5.1), and its up-convolution from 1x1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def _places_last(values: Tensor) -> bool:
    """True if memory is laid out by place and then by map (channels_last), so that flattening in that order copies nothing."""
    return values.is_contiguous(memory_format=torch.channels_last) and not values.is_contiguous()


class WholeConv2d(nn.Conv2d):
    """Turns maps of (K, K) into maps of 1x1: `nn.Conv2d` of kernel K without padding and bias, with its weights, by one matrix product.

    Args:
        channels: maps of the input.
        maps: maps of the output.
        size: side K of the input and of the kernel.
    """

    def __init__(self, channels: int, maps: int, size: int) -> None:
        super().__init__(channels, maps, size, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        """Gives float (n, maps, 1, 1) of float (n, channels, K, K)."""
        weight = self.weight
        if _places_last(weight):
            values, weight = values.permute(0, 2, 3, 1), weight.permute(0, 2, 3, 1)
        return functional.linear(values.flatten(1), weight.flatten(1))[:, :, None, None]


class WholeConvTranspose2d(nn.ConvTranspose2d):
    """Turns maps of 1x1 into maps of (K, K): `nn.ConvTranspose2d` of kernel K without bias, with its weights, by one matrix product.

    Args:
        channels: maps of the input.
        maps: maps of the output.
        size: side K of the output and of the kernel.
    """

    def __init__(self, channels: int, maps: int, size: int) -> None:
        super().__init__(channels, maps, size, bias=False)

    def forward(self, values: Tensor, output_size: list[int] | None = None) -> Tensor:  # noqa: ARG002 - the size of a whole map is known
        """Gives float (n, maps, K, K) of float (n, channels, 1, 1), in the memory layout of the weights."""
        weight, last = self.weight, _places_last(self.weight)
        if last:
            weight = weight.permute(0, 2, 3, 1)
        painted = (values.flatten(1) @ weight.flatten(1)).view(-1, *weight.shape[1:])
        return painted.permute(0, 3, 1, 2) if last else painted
