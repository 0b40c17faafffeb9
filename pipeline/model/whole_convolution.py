"""Convolutions whose kernel is as large as the map: from all places to one value a map, or from one value a map to all places.

They are matrix products. As convolutions, the bottleneck of the inpainting recipe and its up-convolution from 1x1 (section 5.1) took oneDNN
half of a step, for a fiftieth of its operations.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


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
        return functional.linear(values.flatten(1), self.weight.flatten(1))[:, :, None, None]


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
        """Gives float (n, maps, K, K) of float (n, channels, 1, 1)."""
        return (values.flatten(1) @ self.weight.flatten(1)).view(-1, *self.weight.shape[1:])


def to_memory_format(network: nn.Module, memory_format: torch.memory_format) -> None:
    """Orders the weights of convolutions in memory as their kernels want them; those that are matrix products stay contiguous.

    Args:
        network: network whose parameters are changed in place.
        memory_format: channels_last or contiguous.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and not isinstance(layer, WholeConv2d | WholeConvTranspose2d):
            layer.weight.data = layer.weight.data.contiguous(memory_format=memory_format)
