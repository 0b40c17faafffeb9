"""The channel-wise fully-connected layer (section 3.1), and the bottleneck between encoder and decoder that contains it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.model.sample_random import keyed_dropout


class ChannelwiseFullyConnected(nn.Module):
    """Connects every place of a feature map with every place of the same map, and never two maps.

    It has m * n^4 weights where a fully-connected layer has m^2 * n^4: 331,776 for 256 maps of 6x6, besides the biases.

    Args:
        channels: number of maps.
        height: height of a map.
        width: width of a map.

    Attributes:
        weight: float32 (channels, height * width, height * width), from place (second) to place (third).
        bias: float32 (channels, 1, height * width).
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        places = height * width
        self.weight = nn.Parameter(torch.randn(channels, places, places) * places**-0.5)
        self.bias = nn.Parameter(torch.zeros(channels, 1, places))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps float (n, channels, height, width) to the same shape, contiguous."""
        joined = torch.baddbmm(self.bias, maps.flatten(2).transpose(0, 1), self.weight)
        return joined.transpose(0, 1).reshape(maps.shape)

    def extra_repr(self) -> str:
        """The sizes, for `print`."""
        return f"channels={self.weight.shape[0]}, places={self.weight.shape[1]}"


class Bottleneck(nn.Module):
    """Channel-wise fully-connected layer, ReLU, dropout, a stride-1 convolution that mixes the maps, ReLU.

    The paper gives only the two layers. ReLU and dropout follow the first one as in AlexNet's own fully-connected layers; the kernel of
    the mixing convolution is unknown.

    Args:
        channels: maps of input and output.
        size: height and width of a map.
        kernel_size: side of the mixing convolution's kernel, odd.
        dropout: probability that a value of the channel-wise layer is set to zero in training.

    Raises:
        ValueError: naming the argument.
    """

    def __init__(self, channels: int = 256, size: int = 6, kernel_size: int = 1, dropout: float = 0.5) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: {kernel_size} is not odd, and the mixing convolution must keep the size")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: {dropout} is not at least 0 and below 1")
        self.dropout = dropout
        self.channelwise = ChannelwiseFullyConnected(channels, size, size)
        self.mixing = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2)

    def forward(self, maps: Tensor, keys: Tensor) -> Tensor:
        """Mixes first the places of each map, then the maps.

        Args:
            maps: float (n, channels, size, size).
            keys: int64 (n,), random keys that dropout is drawn from; not used in evaluation.

        Returns:
            float (n, channels, size, size).
        """
        joined = torch.relu(self.channelwise(maps))
        if self.training:
            joined = keyed_dropout(joined, keys, self.dropout)
        return torch.relu(self.mixing(joined))
