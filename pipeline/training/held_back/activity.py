"""The state of a network's maps and features over many pictures: maps that have died, features that have collapsed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

ENCODER = "encoder"
_STILL = 1e-6  # a map that varies by less, relative to its largest value, says nothing about any picture


@dataclass
class Activity:
    """Traces of a forward pass.

    Attributes:
        highest, lowest: largest and smallest value of each map over all pictures and places, (maps,), by layer.
        features: output of the encoder, float (n, d); None before a forward pass.
    """

    highest: dict[str, Tensor] = field(default_factory=dict)
    lowest: dict[str, Tensor] = field(default_factory=dict)
    features: Tensor | None = None


@contextmanager
def watched(network: nn.Module) -> Iterator[Activity]:
    """Watches the forward passes of a network: every activation function, and the output of the part that is called `encoder`.

    Yields:
        The activity, which each forward pass replaces.
    """
    found = Activity()

    def note_maps(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            over = (0, *range(2, output.dim()))
            found.highest[name], found.lowest[name] = output.float().amax(over), output.float().amin(over)

        return hook

    def note_features(_: nn.Module, __: Any, output: Tensor) -> None:
        found.features = output.float().flatten(1)

    handles = [
        module.register_forward_hook(note_maps(name.removeprefix(f"{ENCODER}.")))
        for name, module in network.named_modules()
        if isinstance(module, nn.ReLU | nn.LeakyReLU)
    ]
    encoder = getattr(network, ENCODER, None)
    if isinstance(encoder, nn.Module):
        handles.append(encoder.register_forward_hook(note_features))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def dead_maps(highest: Tensor, lowest: Tensor) -> int:
    """Counts the maps that have the same value at every place of every picture, as those of a ReLU that never fires have.

    Args:
        highest: largest values of each map, float (parts, maps); the pictures may be divided into any parts.
        lowest: smallest values, of the same shape.
    """
    top, bottom = highest.amax(0), lowest.amin(0)
    return int((top - bottom <= _STILL * torch.maximum(top.abs(), bottom.abs())).sum())


def feature_dimensions(features: Tensor) -> float:
    """Computes the participation ratio of features: the number of directions in which they vary, if they varied equally in each.

    Args:
        features: float (n, d).

    Returns:
        A number from 1 (all pictures lie on a line, or on one point) to n - 1.
    """
    centred = features.double() - features.double().mean(0)
    products = centred @ centred.T
    total = products.square().sum()
    return float(products.trace().square() / total) if total > 0 else 1.0


def of_first_patches(features: Tensor, pictures: int) -> Tensor:
    """Keeps one row for each picture, that of its first patch where a network sees several patches of each.

    Args:
        features: float (pictures * patches, D), the patches of a picture one after the other.
        pictures: number of pictures.
    """
    return features.view(pictures, -1, features.shape[1])[:, 0]


def feature_spread(features: Tensor) -> float:
    """Computes the mean distance of features from their mean, over their mean length; 0 if all pictures have the same features.

    Args:
        features: float (n, d).
    """
    found = features.double()
    length = found.norm(dim=1).mean()
    return float((found - found.mean(0)).norm(dim=1).mean() / length) if length > 0 else 0.0


def colour_spread(painted: Tensor, truth: Tensor) -> float:
    """Computes the deviation over pictures of the mean painted colour, over that of the true one; 0 if every painting has one colour.

    Args:
        painted: float (n, 3), mean colours of the paintings.
        truth: float (n, 3), mean colours of the same pixels of the real pictures.
    """
    wanted = truth.double().var(0, correction=0).mean().sqrt()
    return float(painted.double().var(0, correction=0).mean().sqrt() / wanted) if wanted > 0 else 1.0
