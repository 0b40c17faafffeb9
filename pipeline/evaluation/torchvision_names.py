"""The weights of an encoder under the names of torchvision's AlexNet, `features.0.weight`, where the layers are the same."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pipeline.evaluation.architecture import EncoderInvalid, Layer
from pipeline.evaluation.encoder import TrainedEncoder

FORMAT = "torchvision-alexnet"
"""The `format` in the metadata of such a file, which `load_encoder` refuses."""


def _convolution(kernel: int, stride: int, padding: int) -> tuple[str, Mapping[str, int]]:
    return "Conv2d", {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": 1, "groups": 1, "bias": True}


_RELU: tuple[str, Mapping[str, int]] = ("ReLU", {})
_POOL: tuple[str, Mapping[str, int]] = ("MaxPool2d", {"kernel_size": 3, "stride": 2, "padding": 0, "dilation": 1})
_FEATURES = [
    *(_convolution(11, 4, 2), _RELU, _POOL, _convolution(5, 1, 2), _RELU, _POOL),
    *(_convolution(3, 1, 1), _RELU, _convolution(3, 1, 1), _RELU, _convolution(3, 1, 1), _RELU, _POOL),
]
"""Kind and arguments of the layers of torchvision's `AlexNet.features`, but for the number of maps."""


def with_torchvision_names(encoder: TrainedEncoder) -> dict[str, Tensor]:
    """Renames the weights by the number of their layer.

    Returns:
        The tensors by names such as `features.0.weight`. At the published width they fit torchvision's `alexnet()`; narrower ones have its
        names and fewer maps.

    Raises:
        EncoderInvalid: the layers are not those of torchvision's AlexNet.
    """
    layers = encoder.facts.layers
    if len(layers) != len(_FEATURES) or not all(map(_fits, layers, _FEATURES)):
        raise EncoderInvalid(
            "torchvision's names are for its AlexNet, whose layers differ from this encoder's. They fit --method.layout torchvision with "
            "max pooling and without batch norm. Export the encoder without --names"
        )
    numbers = {layer.name: number for number, layer in enumerate(layers)}
    parts = {name: name.rpartition(".") for name in encoder.weights}
    return {f"features.{numbers[parts[name][0]]}.{parts[name][2]}": tensor for name, tensor in encoder.weights.items()}


def _fits(layer: Layer, expected: tuple[str, Mapping[str, int]]) -> bool:
    kind, arguments = expected
    return layer.kind == kind and all(layer.arguments.get(name) == value for name, value in arguments.items())
