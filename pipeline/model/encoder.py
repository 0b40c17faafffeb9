"""The encoder: AlexNet's five convolutional layers up to pool5 (section 3.1), laid out as Caffe's reference network or torchvision's."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pipeline.model.batch_norm import GroupedBatchNorm2d
from pipeline.model.initialisation import gaussian_start

Layout = Literal["caffenet", "torchvision"]
Pooling = Literal["max", "strided"]
KERNELS = (11, 5, 3, 3, 3)


@dataclass(frozen=True)
class _Maps:
    """Differences between the two layouts.

    Attributes:
        maps: maps of the five convolutions.
        groups: groups of the five convolutions.
        first_padding: padding of the first convolution.
        normalised: local response normalisation after the first two poolings.
        width_step: step between widths that keep the maps of encoder, decoder and discriminator, and of each group, whole.
    """

    maps: tuple[int, int, int, int, int]
    groups: tuple[int, int, int, int, int]
    first_padding: int
    normalised: bool
    width_step: int


_LAYOUTS: dict[str, _Maps] = {
    "caffenet": _Maps((96, 256, 384, 384, 256), (1, 2, 1, 2, 2), 0, normalised=True, width_step=6),
    "torchvision": _Maps((64, 192, 384, 256, 256), (1, 1, 1, 1, 1), 2, normalised=False, width_step=2),
}


def proportion(layout: Layout, width: int | None) -> Fraction:
    """The factor by which a width scales the maps of every convolution: 1/8 for a width of 12 in caffenet.

    Args:
        layout: caffenet or torchvision.
        width: maps of the first convolution; None is the published number, 96 or 64.

    Raises:
        ValueError: a width that leaves a convolution, or one of its groups, a fraction of a map.
    """
    published, step = _LAYOUTS[layout].maps[0], _LAYOUTS[layout].width_step
    if width is None:
        return Fraction(1)
    if width < 1 or width % step:
        raise ValueError(f"width: {width} is not a multiple of {step}, so the other convolutions of {layout} would not have whole maps")
    return Fraction(width, published)


class LocalResponseNorm(nn.Module):
    """AlexNet's normalisation across five neighbouring maps: x / (1 + 1e-4 / 5 * sum of squares)^0.75, in float32.

    It gives the numbers of `nn.LocalResponseNorm(5, 1e-4, 0.75)` in a third of the time on CPUs, because it takes the power by two square
    roots, the sum over five views, and the gradient by its formula.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Normalises float (n, C, H, W)."""
        values = maps.float()
        if self.training and values.requires_grad and not torch.compiler.is_compiling():
            normalised: Tensor = _Normalised.apply(values)  # type: ignore[no-untyped-call]
        else:
            normalised = values * _power(_spread(values))
        return normalised.to(maps.dtype)


def _around(values: Tensor) -> Tensor:
    """The sum over each map and its two neighbours on both sides."""
    count = values.shape[1]
    padded = F.pad(values, (0, 0, 0, 0, 2, 2))
    around = padded[:, :count] + padded[:, 1 : 1 + count]
    for shift in range(2, 5):
        around = around + padded[:, shift : shift + count]
    return around


def _spread(values: Tensor) -> Tensor:
    return 1 + 2e-5 * _around(values * values)


def _power(spread: Tensor) -> Tensor:
    """The power of -0.75."""
    root = torch.rsqrt(spread)
    return root * torch.sqrt(root)


class _Normalised(torch.autograd.Function):
    """The response normalisation with its gradient by formula: what autograd makes of the sums keeps and reads six times the memory."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        spread = _spread(values)
        ctx.save_for_backward(values, spread)
        return _power(spread).mul_(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        values, spread = ctx.saved_tensors
        factor = _power(spread)
        shared = (gradient * values).mul_(factor).div_(spread)
        return factor.mul_(gradient).sub_(_around(shared).mul_(values), alpha=2 * 0.75 * 2e-5)


class Encoder(nn.Sequential):
    """Turns pictures of 227x227x3 into maps of 6x6x256.

    Layers are named conv1 to conv5, relu1 to relu5, pool1, pool2, pool5, and norm1, norm2 (caffenet) or bn1 to bn5 (batch norm). No
    place is written over where a layer is hooked: a probe that hooks `conv3` gets the values before the ReLU, one that hooks `relu3` those
    after it.

    Args:
        layout: maps and groups. caffenet: 96, 256, 384, 384, 256 maps, two groups in conv2, conv4 and conv5, pooling before local
            response normalisation; maps of 55, 27, 13, 13, 13 pixels. torchvision: 64, 192, 384, 256, 256 maps, no groups, no
            normalisation; conv1 is padded by 2 and gives 56 pixels.
        batch_norm: normalise after every convolution; local response normalisation and the convolutions' biases are then left out.
        batch_norm_group: samples that are normalised together.
        pooling: max, or strided: convolutions of the same kernel and stride, each with a ReLU, in place of the poolings.
        initial_std: standard deviation of the initial weights, which the paper doesn't give; None scales with the fan-in.
        width: maps of conv1, the others in proportion; None is the published network.

    Attributes:
        channels: maps of pool5.
        proportion: maps of this network over those of the published one.

    Raises:
        ValueError: naming the argument.
    """

    def __init__(
        self,
        layout: Layout = "caffenet",
        batch_norm: bool = False,
        batch_norm_group: int = 64,
        pooling: Pooling = "max",
        initial_std: float | None = None,
        width: int | None = None,
    ) -> None:
        super().__init__()
        if layout not in _LAYOUTS:
            raise ValueError(f"layout: {layout!r} is none of {', '.join(map(repr, _LAYOUTS))}")
        if pooling not in ("max", "strided"):
            raise ValueError(f"pooling: {pooling!r} is none of 'max', 'strided'")
        chosen = _LAYOUTS[layout]
        self.proportion = proportion(layout, width)
        every = [int(maps * self.proportion) for maps in chosen.maps]
        self.channels = every[-1]
        before = 3
        for number, (maps, kernel, groups) in enumerate(zip(every, KERNELS, chosen.groups, strict=True), start=1):
            stride, padding = (4, chosen.first_padding) if number == 1 else (1, kernel // 2)
            self.add_module(f"conv{number}", nn.Conv2d(before, maps, kernel, stride, padding, groups=groups, bias=not batch_norm))
            if batch_norm:
                self.add_module(f"bn{number}", GroupedBatchNorm2d(maps, batch_norm_group))
            self.add_module(f"relu{number}", nn.ReLU())
            if number in (1, 2, 5):
                self._add_pooling(number, maps, pooling)
            if number in (1, 2) and chosen.normalised and not batch_norm:
                self.add_module(f"norm{number}", LocalResponseNorm())
            before = maps
        gaussian_start(self, initial_std)

    def forward(self, pictures: Tensor) -> Tensor:
        """Encodes float (n, 3, H, W).

        In training, unless a layer is hooked, a ReLU before a max pooling follows it instead, on a quarter of the values, and all work in
        place: the same bits, forward and backward, because both only select.
        """
        layers = list(self)
        if not self.training or any(layer._forward_hooks for layer in layers):
            encoded: Tensor = super().forward(pictures)
            return encoded
        for before, layer, after in zip([None, *layers], layers, [*layers[1:], None], strict=False):
            if isinstance(layer, nn.ReLU) and isinstance(after, nn.MaxPool2d):
                continue
            pictures = torch.relu_(pictures) if isinstance(layer, nn.ReLU) else layer(pictures)
            if isinstance(layer, nn.MaxPool2d) and isinstance(before, nn.ReLU):
                pictures = torch.relu_(pictures)
        return pictures

    def _add_pooling(self, number: int, maps: int, pooling: Pooling) -> None:
        if pooling == "max":
            self.add_module(f"pool{number}", nn.MaxPool2d(3, 2))
        else:
            self.add_module(f"pool{number}", nn.Conv2d(maps, maps, 3, 2))
            self.add_module(f"pool{number}_relu", nn.ReLU())
