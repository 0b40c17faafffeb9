"""Initial weights (section 5: from scratch, Gaussian). They are drawn from torch's global generator: seed it first."""

from __future__ import annotations

from math import sqrt

import torch
from torch import nn

from pipeline.model.batch_norm import GroupedBatchNorm2d
from pipeline.model.channelwise import ChannelwiseFullyConnected

_Weighted = (nn.Conv2d, nn.ConvTranspose2d, ChannelwiseFullyConnected)


def fan_in(layer: nn.Conv2d | nn.ConvTranspose2d | ChannelwiseFullyConnected) -> float:
    """Counts the weights that contribute to one output value; for an up-convolution the average over its outputs."""
    if isinstance(layer, nn.ConvTranspose2d):
        return layer.weight[:, 0].numel() / (layer.stride[0] * layer.stride[1])
    return layer.weight[0].numel() if isinstance(layer, nn.Conv2d) else layer.weight.shape[1]


@torch.no_grad()
def gaussian_start(network: nn.Module, deviation: float | None = None) -> None:
    """Draws every weight from N(0, deviation) and sets biases to zero.

    Args:
        network: network whose convolutions, up-convolutions and channel-wise layers are drawn; batch norm stays at gain 1.
        deviation: standard deviation for all layers; None takes sqrt(2 / fan-in) of each layer, which keeps the variance through ReLUs.

    Raises:
        ValueError: a deviation that is not above zero.
    """
    if deviation is not None and not deviation > 0:
        raise ValueError(f"initial_std: {deviation} is not above 0")
    for layer in network.modules():
        if isinstance(layer, _Weighted):
            nn.init.normal_(layer.weight, 0.0, sqrt(2 / fan_in(layer)) if deviation is None else deviation)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


@torch.no_grad()
def scale_start(layer: nn.Module, gain: float) -> None:
    """Multiplies the initial weights of a layer, so that the untrained network's output is that many times as large.

    Args:
        layer: convolution or up-convolution whose weights were drawn and whose bias is zero.
        gain: factor of the weights.

    Raises:
        ValueError: a gain that is not above zero.
    """
    if not gain > 0:
        raise ValueError(f"output_gain: {gain} is not above 0")
    layer.get_parameter("weight").mul_(gain)


@torch.no_grad()
def adversarial_start(network: nn.Module) -> None:
    """Draws the initial weights of the inpainting recipe: weights N(0, 0.02), batch-norm gains N(1, 0.02), biases 0."""
    gaussian_start(network, 0.02)
    for layer in network.modules():
        if isinstance(layer, GroupedBatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)
            nn.init.zeros_(layer.bias)
