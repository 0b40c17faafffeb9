"""Recipes and players, the interface between a pretext task and the training loop, which knows no recipe by name.

A recipe turns a batch into views, and holds the players that take turns on these. A player is one network with its loss and its optimiser:
one for the features recipe, generator and discriminator for inpainting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor, nn

from pipeline.config import OptimiserConfig
from pipeline.masking.source import MaskSource

if TYPE_CHECKING:
    from pipeline.recipes.pixels import PixelScale

Views = Mapping[str, Tensor]
Networks = Mapping[str, nn.Module]
"""Networks of all players by the players' names. On a player's turn its own network is the wrapped one (DDP); the others are bare and
frozen."""


@dataclass(frozen=True)
class Losses:
    """Losses of a player's turn, one value a sample.

    Attributes:
        total: loss to minimise, float32 (n,).
        parts: losses to log beside the total, by name, each (n,) without gradient.
    """

    total: Tensor
    parts: Mapping[str, Tensor]


@dataclass(frozen=True)
class Collapse:
    """Thresholds by which a player has collapsed: compared with its logged losses, averaged over watchdog.collapse_steps steps.

    A collapse is only reported; training goes on. It is reported when the means of all parts in `at_most`, or of all parts in `at_least`,
    are beyond their thresholds.

    Attributes:
        at_most: highest mean of a collapse, by the name of the logged part.
        at_least: lowest mean of a collapse, by the name of the logged part, a fraction from 0 to 1.
        advice: meaning of the collapse and advice, one sentence.
    """

    at_most: Mapping[str, float]
    at_least: Mapping[str, float]
    advice: str


@dataclass(frozen=True)
class Player:
    """A network, its loss and its optimiser.

    Attributes:
        name: name of the player in logs, metrics and checkpoints.
        network: network with float32 parameters; a turn calls it exactly once, because it may be wrapped for many ranks.
        loss: function of views and networks that gives the losses.
        optimiser: update rule and its settings.
        collapse: thresholds by which the player has collapsed; None where none are known.
    """

    name: str
    network: nn.Module
    loss: Callable[[Views, Networks], Losses]
    optimiser: OptimiserConfig
    collapse: Collapse | None = None


class Recipe(Protocol):
    """A pretext task. One file in `pipeline/recipes` defines one, with the frozen dataclass of its settings.

    Attributes:
        name: name for `--recipe`.
        scale: scale of the pixels that the networks see, which goes with an exported encoder.
        image_size: side of the square crop that the recipe takes, in pixels.
        unit: number of samples that ranks must not divide: 1, or the batch-norm group.
        mask: generator of masks; None where the recipe uses none.
        players: players in the order of their turns.
    """

    name: ClassVar[str]
    scale: ClassVar[PixelScale]
    image_size: int
    unit: int
    mask: MaskSource | None
    players: tuple[Player, ...]

    def views(self, images: Tensor, masks: Tensor, labels: Tensor | None, keys: Tensor) -> Views:
        """Makes the views of a micro-batch, the tensors that the players see, on the device and without gradient.

        Args:
            images: uint8 (n, H, W, 3), RGB.
            masks: bool (n, H, W), True where pixels are dropped.
            labels: int64 (n,), -1 where unknown; None where the data set has none.
            keys: int64 (n,), a random key for each sample and epoch; dropout and noise are drawn from the key so that
                they don't depend on the ranks.

        Returns:
            Tensors with n rows, by name.
        """
        ...

    def pictures(self, views: Views, networks: Networks) -> Mapping[str, Tensor]:
        """Makes the columns of a grid for a person, float (n, 3, H, W) in [0, 1] by name. Called without gradient."""
        ...


def paint(network: nn.Module, *inputs: Tensor) -> Tensor:
    """Runs a network that is not on its turn, without gradient and without touching its running statistics.

    Returns:
        Output of the network, float32.
    """
    with torch.no_grad():
        painted: Tensor = network(*inputs)
    return painted.float()
