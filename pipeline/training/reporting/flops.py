"""Floating-point operations: how many a picture costs by the mathematics of the networks, and how many a GPU can do a second."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pipeline.recipes.player import Recipe

_log = logging.getLogger(__name__)

PEAK_TERAFLOPS: dict[str, tuple[float, float]] = {
    "B200": (2250, 1125),
    "GH200": (989.4, 494.7),
    "H200": (989.4, 494.7),
    "H100 PCIe": (756, 378),
    "H100 NVL": (835, 417.5),
    "H100": (989.4, 494.7),
    "A100": (312, 156),
    "A40": (149.7, 74.8),
    "A30": (165, 82),
    "A10G": (70, 35),
    "A10": (125, 62.5),
    "L40S": (362, 183),
    "L40": (181, 90.5),
    "L4": (121, 60),
    "V100": (math.nan, 15.7),
    "T4": (math.nan, 8.1),
    "RTX 4090": (165.2, 82.6),
    "RTX 3090": (71, 35.6),
    "MI300X": (1307.4, 653.7),
}
"""Part of a GPU's name -> its maker's figures for dense bfloat16 and for float32, in 10^12 operations a second. float32 means TF32 on GPUs
that have it, because cuDNN's convolutions use TF32 unless it is switched off. The first part that a name contains counts."""


def peak_flops(gpu: str, precision: Literal["fp32", "bf16"]) -> float:
    """Returns the most floating-point operations a second that a GPU can do; NaN for a GPU that the table lacks or a part of one (MIG).

    Args:
        gpu: name of the GPU as torch or the driver spells it.
        precision: precision of the training.
    """
    for name, (bf16, fp32) in PEAK_TERAFLOPS.items():
        if re.search(rf"\b{name}\b", gpu) and " MIG " not in gpu:
            return 1e12 * (bf16 if precision == "bf16" else fp32)
    return math.nan


def peak_of(device: torch.device, precision: Literal["fp32", "bf16"], given: float) -> float:
    """Returns the most floating-point operations a second that a rank's device can do; NaN if unknown, as on a CPU.

    Args:
        device: device of the rank.
        precision: precision of the training.
        given: peak of the settings in 10^12 operations a second, which goes before the table; 0 if none is given.
    """
    if given:
        return given * 1e12
    return peak_flops(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else math.nan


def flops_per_image(recipe: Recipe) -> float:
    """Counts the operations that the mathematics of one step needs for each picture; NaN if a recipe can't be counted.

    Counted are the forward and backward passes of every player's turn, convolutions and matrix products only, a multiply-add as two. A
    network that another player's turn runs without gradient, such as the generator in the discriminator's, is counted in its own turn
    alone, because both turns need the same output. So the count is that of model-FLOP utilisation: it does not grow with what a step
    computes twice.

    One picture goes forward through the real networks, on the CPU and before they are wrapped for many ranks. The networks are in
    evaluation mode, in which batch norm needs no other pictures; neither weights, gradients nor statistics change. One map of a convolution
    is computed and stands for all of its maps, so that counting takes less than a tenth of a second. (torch's meta device computes nothing,
    but loads the compiler at its first use, which takes longer than all of this.)

    Args:
        recipe: recipe whose players are whole and on the CPU; they are in training mode afterwards.
    """
    side = recipe.image_size
    keys = torch.zeros(1, dtype=torch.int64)
    networks = {each.name: each.network.eval() for each in recipe.players}
    try:
        with torch.random.fork_rng(devices=[]), _Counter() as counter:
            images, masks = torch.zeros(1, side, side, 3, dtype=torch.uint8), torch.ones(1, side, side, dtype=torch.bool)
            views = recipe.views(images, masks, keys, keys)
            for player in recipe.players:
                for name, network in networks.items():
                    network.requires_grad_(name == player.name)
                player.loss(views, networks)
        return float(counter.operations)
    except Exception as error:  # a recipe that can't be counted may still be trained
        _log.warning("the operations of the recipe %s can't be counted, so its metrics lack them: %s", recipe.name, error)
        return math.nan
    finally:
        for network in networks.values():
            network.requires_grad_(True).train()


class _Counter(TorchFunctionMode):
    """Adds up the products that are computed with gradients enabled while it is entered, and those of the gradients: as many again for each
    factor that needs one.

    torch's FlopCounterMode watches a real backward pass instead, loads the compiler for it (seconds at each start), and counts the weights'
    gradient of grouped convolutions too often, once for each group.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = _one_map(func, *args, **(kwargs or {})) if func in _CONVOLUTIONS else func(*args, **(kwargs or {}))
        if func in _PRODUCTS and torch.is_grad_enabled():
            first, second = args[_PRODUCTS[func][0] : _PRODUCTS[func][0] + 2]
            passes = 1 + (int(first.requires_grad) + int(second.requires_grad) if found.requires_grad else 0)
            self.operations += passes * 2 * _PRODUCTS[func][1](first, second, found)
        return found


def _one_map(convolve: Callable[..., Any], given: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **named: Any) -> Tensor:
    """Computes the first map of each group of a convolution and repeats it for the others, so that shape and gradient flow are the same."""
    if given.dim() != weight.dim():
        whole: Tensor = convolve(given, weight, bias, *rest, **named)
        return whole
    if convolve in _TRANSPOSED:
        every, kept = weight.shape[1], weight[:, :1]
    else:
        every = weight.shape[0] * weight.shape[1] // given.shape[1]
        kept = weight[::every]
    maps = convolve(given, kept, None, *rest, **named).repeat_interleave(every, dim=1)
    found: Tensor = maps if bias is None else maps + bias.view(-1, *[1] * (maps.dim() - 2))
    return found


def _convolution(_: Tensor, weight: Tensor, found: Tensor) -> int:
    return weight.numel() * found.shape[0] * found.shape[2:].numel()


def _transposed(given: Tensor, weight: Tensor, _: Tensor) -> int:
    return weight.numel() * given.shape[0] * given.shape[2:].numel()


def _product(first: Tensor, _: Tensor, found: Tensor) -> int:
    return found.numel() * first.shape[-1]


_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d, *_TRANSPOSED)
_PRODUCTS: Mapping[Callable[..., Any], tuple[int, Callable[[Tensor, Tensor, Tensor], int]]] = {
    F.conv1d: (0, _convolution),
    F.conv2d: (0, _convolution),
    F.conv3d: (0, _convolution),
    F.conv_transpose1d: (0, _transposed),
    F.conv_transpose2d: (0, _transposed),
    F.conv_transpose3d: (0, _transposed),
    F.linear: (0, _product),
    torch.mm: (0, _product),
    torch.bmm: (0, _product),
    torch.matmul: (0, _product),
    torch.addmm: (1, _product),
    torch.baddbmm: (1, _product),
    Tensor.matmul: (0, _product),
    Tensor.__matmul__: (0, _product),
}
"""Product -> index of its first factor among the arguments, and the function that counts its multiply-adds."""
