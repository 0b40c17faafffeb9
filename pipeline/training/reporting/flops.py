"""How many floating-point operations a picture costs: the mathematics of the networks, not what an implementation makes of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pipeline.recipes.player import Recipe

_log = logging.getLogger(__name__)


def flops_per_image(recipe: Recipe) -> float:
    """Operations of one step for each picture: forward and backward passes of every player's turn, convolutions and matrix products only,
    a multiply-add as two. NaN where a recipe can't be counted.

    One picture goes forward through the real networks, on the CPU they are made on and before they are wrapped for many ranks. They are in
    evaluation mode, where batch norm needs no other pictures; neither weights, gradients nor statistics change. Of a convolution one map is
    computed and stands for all of them, so that counting takes less than a tenth of a second. (torch's meta device computes nothing, but
    loads the compiler when it is first used, which takes longer than all of this.)

    Args:
        recipe: whose players are whole and on the CPU; they are in training mode afterwards.
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
    except Exception as error:  # a recipe that this does not suit is none that can't be trained
        _log.warning("the operations of the recipe %s can't be counted, so its metrics lack them: %s", recipe.name, error)
        return math.nan
    finally:
        for network in networks.values():
            network.requires_grad_(True).train()


class _Counter(TorchFunctionMode):
    """Adds up the products that are computed while it is entered, and those that their gradients will take: as many again for each of the
    two factors that needs one. (torch's own counter watches a real backward pass, and loads its compiler for that: seconds at each start.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = _one_map(func, *args, **(kwargs or {})) if func in _CONVOLUTIONS else func(*args, **(kwargs or {}))
        if func in _PRODUCTS:
            first, second = args[_PRODUCTS[func][0] : _PRODUCTS[func][0] + 2]
            passes = 1 + (int(first.requires_grad) + int(second.requires_grad) if found.requires_grad else 0)
            self.operations += passes * 2 * _PRODUCTS[func][1](first, second, found)
        return found


def _one_map(convolve: Callable[..., Any], given: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **named: Any) -> Tensor:
    """The first map of each group of a convolution, as often as there are maps: of the same shape, with a gradient where that has one."""
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
"""Where the first factor stands among the arguments, and the multiply-adds."""
