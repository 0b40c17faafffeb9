"""Recipes and players, the interface between a pretext task and the training loop, which knows no recipe by name.

A recipe turns a batch into views, and holds the players that take turns on these. A player is one network with its loss and its optimiser:
one for the features recipe, generator and discriminator for inpainting. The network of one player has the part that is called `encoder`,
the result of a run: the player that paints (`PaintingRecipe`) or the one that names a class (`ClassifyingRecipe`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pipeline.config import OptimiserConfig
from pipeline.masking.source import MaskSource
from pipeline.recipes.pixels import PixelScale
from shards.dataset.manifest import Manifest

Views = Mapping[str, Tensor]
PAINTING = "painting"
"""Name, among the views, of what the painter painted of them, where the step has made it for several players."""
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
        paint: function of views and networks that paints with the player's own network, where the losses of several players use the
            painting. The step may call it once and put the painting into the views of all players as `painting`: with its graph for this
            player, detached for the others. A loss paints for itself where the views lack it.
    """

    name: str
    network: nn.Module
    loss: Callable[[Views, Networks], Losses]
    optimiser: OptimiserConfig
    collapse: Collapse | None = None
    paint: Callable[[Views, Networks], Tensor] | None = None


@dataclass(frozen=True)
class Paintings:
    """Painted pictures as a person sees them, and as figures judge them: float (n, 3, H, W) in [0, 1], all of one size.

    Attributes:
        context: picture that the network saw, with the dropped pixels filled.
        prediction: painting of the network; it may be black where nothing is predicted.
        truth: real picture.
        mask: bool (n, 1, H, W), True where pixels were dropped; False everywhere if the recipe drops none.
    """

    context: Tensor
    prediction: Tensor
    truth: Tensor
    mask: Tensor


class Recipe(Protocol):
    """A pretext task. One file in `pipeline/recipes` defines one, with the frozen dataclass of its settings.

    Attributes:
        name: name for `--recipe`.
        image_size: side of the square crop that the recipe takes, in pixels.
        unit: number of samples that ranks must not divide: 1, or the batch-norm group.
        mask: generator of masks; None where the recipe uses none.
        players: players in the order of their turns.
        scale: scale of the pixels that the networks see, which goes with an exported encoder.
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


@runtime_checkable
class WholeViews(Protocol):
    """A recipe with views of its own for pictures that are shown whole; others make them by `views` without a dropped pixel."""

    def whole(self, images: Tensor, keys: Tensor) -> Views:
        """Makes the views in which the encoder sees pictures as they are; arguments and views as in `Recipe.views`."""
        ...


@runtime_checkable
class PaintingRecipe(Recipe, Protocol):
    """A pretext task whose network paints pictures.

    Attributes:
        painter: name of the player whose network paints; the part of it that is called `encoder` is the result of a run.
    """

    painter: ClassVar[str]

    def paint(self, views: Views, networks: Networks) -> Tensor:
        """Paints the targets of views, float32 (n, 3, S, S) on the scale of the targets. Called without gradient."""
        ...

    def reconstruction(self, painting: Tensor, views: Views) -> Tensor:
        """Computes the reconstruction loss that is logged, (n,), of a painting as `paint` returns it."""
        ...

    def paintings(self, views: Views, painting: Tensor) -> Paintings:
        """Turns a painting, as `paint` returns it, and its views into pictures for a person."""
        ...


@runtime_checkable
class ClassifyingRecipe(Recipe, WholeViews, Protocol):
    """A task whose network names one of a number of classes; its logged losses are `cross_entropy` and `accuracy`.

    Attributes:
        classifier: name of the player whose network classifies; the part of it that is called `encoder` is the result of a run.
        balanced: True where the task draws every class equally often, so that no other guess is better than chance.
        classes: number of classes.
        encoder_side: side, in pixels, of the square pictures that the exported encoder is described for.
    """

    classifier: ClassVar[str]
    balanced: ClassVar[bool]
    classes: int
    encoder_side: int

    def classify(self, views: Views, networks: Networks) -> Tensor:
        """Computes the logits of every class, float32 (n, classes). Called without gradient."""
        ...

    def truth(self, views: Views) -> Tensor:
        """Gives the true classes, int64 (n,), -1 where one is not known."""
        ...

    def exported(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turns the encoder's weights, by the names of its layers, into those for pictures that are normalised and nothing else."""
        ...


@runtime_checkable
class LabelledRecipe(Protocol):
    """A recipe that learns from the labels of its data sets.

    Attributes:
        classes: number of classes; a batch with a label that is not below it never reaches the recipe.
    """

    classes: int

    def check_labels(self, manifests: Sequence[Manifest]) -> None:
        """Refuses data sets before the training.

        Raises:
            ConfigError: a data set has no labels or other classes than the recipe; the message names both.
        """
        ...


def paint(network: nn.Module, *inputs: Tensor) -> Tensor:
    """Runs a network that is not on its turn, without gradient and without touching its running statistics.

    Returns:
        Output of the network, float32.
    """
    with torch.no_grad():
        painted: Tensor = network(*inputs)
    return painted.float()
