"""What a recipe and a player are. The training loop knows these and never a recipe's name.

A recipe turns a batch into views, and holds the players that take turns on it. A player is one network with its loss and its optimiser:
one for the features recipe, generator and discriminator for inpainting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from pipeline.config import OptimiserConfig
from pipeline.masking.source import MaskSource

Views = Mapping[str, Tensor]
Networks = Mapping[str, nn.Module]
"""Every player's network by the player's name. On a player's own turn its entry is the wrapped network (DDP), the others
are bare and frozen."""


@dataclass(frozen=True)
class Losses:
    """What a player's turn gives.

    Attributes:
        total: float32 (n,), what is minimised, one value a sample.
        parts: what is logged beside it, by name, each (n,) without gradient.
    """

    total: Tensor
    parts: Mapping[str, Tensor]


@dataclass(frozen=True)
class Collapse:
    """What a player's logged losses look like, averaged over many steps, when its game is over. It is reported, nothing else.

    Attributes:
        at_most: part -> mean that is too low; all of them together are a collapse.
        at_least: part, from 0 to 1 -> mean that is too high; all of them together are a collapse, too.
        advice: what it means and what to do, one sentence.
    """

    at_most: Mapping[str, float]
    at_least: Mapping[str, float]
    advice: str


@dataclass(frozen=True)
class Player:
    """A network, its loss and its optimiser.

    Attributes:
        name: in logs, metrics and checkpoints.
        network: float32 parameters; `forward` is called exactly once a turn, so that it can be wrapped for many ranks.
        loss: (views, networks) -> Losses.
        optimiser: the rule and its settings.
        collapse: what its losses must not come to; None where nothing is known.
    """

    name: str
    network: nn.Module
    loss: Callable[[Views, Networks], Losses]
    optimiser: OptimiserConfig
    collapse: Collapse | None = None


class Recipe(Protocol):
    """A pretext task. One file in `pipeline/recipes` defines one, with the frozen dataclass of its settings.

    Attributes:
        name: what `--recipe` calls it.
        image_size: side of the square crop the recipe takes, in pixels.
        unit: samples that a rank must not divide: 1, or the batch-norm group.
        mask: where masks come from; None where the recipe uses none.
        players: in the order of their turns.
    """

    name: ClassVar[str]
    image_size: int
    unit: int
    mask: MaskSource | None
    players: tuple[Player, ...]

    def views(self, images: Tensor, masks: Tensor, labels: Tensor | None, keys: Tensor) -> Views:
        """What the players see of a micro-batch, on the device, without gradient.

        Args:
            images: uint8 (n, H, W, 3), RGB.
            masks: bool (n, H, W), True where pixels are dropped.
            labels: int64 (n,), -1 where unknown; None where the data set has none.
            keys: int64 (n,), a random key for each sample and epoch; dropout and noise are drawn from it so that
                they don't depend on the ranks.

        Returns:
            name -> tensor with n rows.
        """
        ...

    def pictures(self, views: Views, networks: Networks) -> Mapping[str, Tensor]:
        """What to show a person: name of the column -> float (n, 3, H, W) in [0, 1]. Called without gradient."""
        ...


def paint(network: nn.Module, *inputs: Tensor) -> Tensor:
    """What a network that is not on its turn gives, without gradient and without touching its running statistics.

    Returns:
        float32.
    """
    with torch.no_grad():
        painted: Tensor = network(*inputs)
    return painted.float()
