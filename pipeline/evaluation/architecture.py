"""The architecture of an encoder as plain values: a chain of layers of `torch.nn`, each with the arguments of its constructor.

These values stand in the files of an exported encoder, so that a few lines of plain torch build the network again, and so that an encoder
of any recipe is loaded without the recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.model.batch_norm import GroupedBatchNorm2d
from pipeline.model.encoder import LocalResponseNorm
from shards.errors import ExplainedError

_RESPONSE_NORM: Mapping[str, Any] = {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 1.0}  # numbers of pipeline.model's LocalResponseNorm


class EncoderInvalid(ExplainedError):
    """An encoder can't be exported or loaded; the message names the file, run or layer, what is wrong and what to do."""


@dataclass(frozen=True)
class Layer:
    """A layer of the chain.

    Attributes:
        name: name of the layer, and the first part of the names of its weights.
        kind: class in `torch.nn`.
        arguments: arguments of the class's constructor, by name.
    """

    name: str
    kind: str
    arguments: Mapping[str, Any]


def described(encoder: nn.Module) -> tuple[Layer, ...]:
    """Describes a network by the layers of `torch.nn` that compute the same in evaluation mode.

    Raises:
        EncoderInvalid: the network is no chain of layers (`nn.Sequential`), or has a layer of an unknown kind.
    """
    if not isinstance(encoder, nn.Sequential) or type(encoder).forward is not nn.Sequential.forward:
        raise EncoderInvalid(
            f"the encoder is a {type(encoder).__name__}, and only a chain of layers can be exported: make it an nn.Sequential"
        )
    return tuple(_layer(name, module) for name, module in encoder.named_children())


def built(layers: Iterable[Layer], weights: Mapping[str, Tensor]) -> nn.Sequential:
    """Builds the chain around tensors that were read, which it takes over, and puts it into evaluation mode.

    No layer works in place. Local response normalisation is the faster one of `pipeline.model`. Nothing is allocated before the shapes
    have been compared, so that a damaged description can't ask for all of the memory.

    Args:
        layers: layers in their order.
        weights: tensors by name, `conv1.weight`.

    Raises:
        EncoderInvalid: an unknown kind, arguments that its constructor refuses, or tensors that do not fit the layers.
    """
    network = nn.Sequential()
    try:
        with torch.device("meta"):
            for layer in layers:
                network.add_module(layer.name, _made(layer))
        network.load_state_dict(dict(weights), assign=True)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        raise EncoderInvalid(f"the layers and the weights do not fit: {' '.join(str(error).split())}") from error
    return network.eval()


def output_shape(network: nn.Module, side: int) -> tuple[int, int, int]:
    """Maps, height and width of the last layer's output for a square input.

    Args:
        network: chain of layers.
        side: side of the input in pixels.
    """
    with torch.no_grad():
        _, maps, height, width = network(torch.zeros(1, 3, side, side)).shape
    return maps, height, width


def _layer(name: str, module: nn.Module) -> Layer:
    for known, (kind, arguments) in _DESCRIBED.items():
        if type(module) is known:
            return Layer(name, kind, arguments(module))
    raise EncoderInvalid(
        f"the encoder's layer {name!r} is a {type(module).__name__}, which has no description for other programs. "
        f"There are: {', '.join(sorted(kind for kind, _ in _DESCRIBED.values()))}"
    )


def _made(layer: Layer) -> nn.Module:
    if layer.kind not in _MADE:
        raise ValueError(f"the layer {layer.name!r} is of the unknown kind {layer.kind!r}")
    if layer.kind == "LocalResponseNorm" and dict(layer.arguments) == _RESPONSE_NORM:
        return LocalResponseNorm()
    module: nn.Module = _MADE[layer.kind](**layer.arguments)
    return module


def _convolution(module: nn.Conv2d) -> dict[str, Any]:
    if module.padding_mode != "zeros":
        raise EncoderInvalid(f"a convolution of the encoder is padded by {module.padding_mode!r}, and only zeros can be described")
    return {
        "in_channels": module.in_channels,
        "out_channels": module.out_channels,
        **{name: _side(getattr(module, name)) for name in ("kernel_size", "stride", "padding", "dilation")},
        "groups": module.groups,
        "bias": module.bias is not None,
    }


def _pooling(module: nn.MaxPool2d) -> dict[str, Any]:
    sides = {name: _side(getattr(module, name)) for name in ("kernel_size", "stride", "padding", "dilation")}
    return {**sides, "ceil_mode": module.ceil_mode}


def _side(value: Any) -> Any:
    """One number for a square, a list for anything else."""
    if isinstance(value, tuple):
        return value[0] if len(set(value)) == 1 else list(value)
    return value


_DESCRIBED: dict[type[nn.Module], tuple[str, Callable[[Any], dict[str, Any]]]] = {
    nn.Conv2d: ("Conv2d", _convolution),
    GroupedBatchNorm2d: ("BatchNorm2d", lambda module: {"num_features": module.channels, "eps": module.epsilon}),
    nn.ReLU: ("ReLU", lambda _: {}),
    nn.LeakyReLU: ("LeakyReLU", lambda module: {"negative_slope": module.negative_slope}),
    nn.MaxPool2d: ("MaxPool2d", _pooling),
    LocalResponseNorm: ("LocalResponseNorm", lambda _: dict(_RESPONSE_NORM)),
}
"""Layers that networks of recipes have, the layer of `torch.nn` that computes the same in evaluation mode, and its arguments."""
_MADE: dict[str, Callable[..., nn.Module]] = {
    kind: getattr(nn, kind) for kind in ("Conv2d", "BatchNorm2d", "ReLU", "LeakyReLU", "MaxPool2d", "LocalResponseNorm")
}
"""Constructors by kind; a file can name no other class."""
