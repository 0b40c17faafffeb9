"""LPIPS, the learned perceptual distance of Zhang et al. (2018), version 0.1 with AlexNet, from a file of weights.

Pictures go through AlexNet's five convolutions. After each, the values of every place are divided by their length over the maps; the
squared differences of two pictures are weighed map by map, averaged over the places, and summed over the five layers.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from pipeline.evaluation.inpainting.parts import InpaintingError

_LAYERS = ((0, 64, 3, 11, 4, 2), (3, 192, 64, 5, 1, 2), (6, 384, 192, 3, 1, 1), (8, 256, 384, 3, 1, 1), (10, 256, 256, 3, 1, 1))
"""Number, maps, input maps, kernel, stride and padding of each convolution, as torchvision's AlexNet has them."""
_POOLED = (3, 6)  # convolutions behind a max pooling of 3 x 3, stride 2
_NAMES = re.compile(r"(?:net\.slice\d|features)\.(\d+\.(?:weight|bias))|lin(\d)\.model\.1\.weight")
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-10
_HOW = (
    'Make it where the package lpips is installed: python -c "import lpips, torch; '
    "torch.save(lpips.LPIPS(net='alex').state_dict(), 'lpips_alex.pt')\". See docs/inpainting.md"
)


class Lpips:
    """LPIPS with weights; see the module. Several threads may use it at once.

    Args:
        weights: tensors by the names `0.weight`, `0.bias`, ... of the convolutions and `lin0` to `lin4`, float32.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights

    @torch.no_grad()
    def features(self, pictures: Tensor) -> list[Tensor]:
        """Computes the normalised features of pictures.

        Args:
            pictures: float32 (n, 3, H, W) in [0, 1], at least 63 x 63 pixels, on the device of the weights.

        Returns:
            A tensor (n, maps, h, w) for each of the five layers.
        """
        values = (2 * pictures - 1 - pictures.new_tensor(_SHIFT).view(1, 3, 1, 1)) / pictures.new_tensor(_SCALE).view(1, 3, 1, 1)
        found = []
        for number, _, _, _, stride, padding in _LAYERS:
            if number in _POOLED:
                values = functional.max_pool2d(values, 3, 2)
            values = functional.conv2d(values, self._weights[f"{number}.weight"], self._weights[f"{number}.bias"], stride, padding).relu()
            found.append(values / (values.square().sum(1, keepdim=True).sqrt() + _EPSILON))
        return found

    @torch.no_grad()
    def distances(self, first: list[Tensor], second: list[Tensor]) -> Tensor:
        """Computes the distances of pictures from their features: float64 (n,)."""
        total = torch.zeros(len(first[0]), dtype=torch.float64)
        for layer, (one, other) in enumerate(zip(first, second, strict=True)):
            weighed = (one - other).square() * self._weights[f"lin{layer}"].view(1, -1, 1, 1)
            total += weighed.sum(1).mean((1, 2)).double().cpu()
        return total


def read_lpips(path: Path, device: torch.device) -> Lpips:
    """Reads the weights of LPIPS from a safetensors file, or from a file of torch.save without anything but tensors.

    Args:
        path: file with the state of `lpips.LPIPS(net="alex")`; AlexNet's own layers may have torchvision's names.
        device: device of the weights.

    Raises:
        InpaintingError: the file is missing, can't be read, or lacks a layer.
    """
    if not path.is_file():
        raise InpaintingError(f"lpips: {path}: no such file of LPIPS's weights, which this package does not hold. {_HOW}")
    try:
        stored = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        found = {(match[1] or f"lin{match[2]}"): value for name, value in stored.items() if (match := _NAMES.fullmatch(name))}
        weights = {name: value.detach().float().to(device) for name, value in found.items()}
    except (OSError, SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError) as error:
        raise InpaintingError(f"lpips: {path}: not a file of tensors ({' '.join(str(error).split())[:200]}). {_HOW}") from error
    for name, shape in _shapes().items():
        if name not in weights or tuple(weights[name].shape) != shape:
            there = tuple(weights[name].shape) if name in weights else "nothing"
            raise InpaintingError(f"lpips: {path}: has {there} for {name}, which is {shape} in LPIPS with AlexNet. {_HOW}")
    return Lpips(weights)


def _shapes() -> dict[str, tuple[int, ...]]:
    """Shape of each tensor, by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, (number, maps, inputs, kernel, _, _) in enumerate(_LAYERS):
        shapes[f"{number}.weight"], shapes[f"{number}.bias"] = (maps, inputs, kernel, kernel), (maps,)
        shapes[f"lin{layer}"] = (1, maps, 1, 1)
    return shapes
