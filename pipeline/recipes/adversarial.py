"""A painter and the discriminator that judges its paintings (section 3.2.2): the losses of both, for every recipe that has such a pair.

Their turns alternate, the discriminator's first, so that the painter's gradient uses the discriminator after its update.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from pipeline import objective
from pipeline.config import OptimiserConfig
from pipeline.mapping import ConfigError
from pipeline.recipes.player import PAINTING, Collapse, Losses, Networks, Player, Views, paint

DISCRIMINATOR = "discriminator"
WON = Collapse(
    at_most={"adversarial": 0.01},
    at_least={"accuracy_real": 0.999, "accuracy_generated": 0.999},
    advice="The discriminator recognises every filling, so the painter learns little from it: lower "
    "method.discriminator_optimiser.learning_rate, or look at the pictures and go on if they are good",
)
"""The end of the game that users of this method report of long runs on much data: the discriminator's loss falls to 0."""


class PairSettings(Protocol):
    """The settings that a recipe with a pair has.

    Attributes:
        reconstruction_weight: weight of the reconstruction loss.
        adversarial_weight: weight of the adversarial loss; at 0 there is no discriminator.
        optimiser: optimiser of the painter.
        discriminator_optimiser: optimiser of the discriminator.
    """

    @property
    def reconstruction_weight(self) -> float: ...
    @property
    def adversarial_weight(self) -> float: ...
    @property
    def optimiser(self) -> OptimiserConfig: ...
    @property
    def discriminator_optimiser(self) -> OptimiserConfig: ...


def check_weights(settings: PairSettings) -> None:
    """Refuses a pair that would learn nothing.

    Raises:
        ConfigError: both weights are 0.
    """
    if not (settings.reconstruction_weight or settings.adversarial_weight):
        raise ConfigError(
            "method.reconstruction_weight: this weight and method.adversarial_weight are both 0, so nothing would be learned. "
            "Give one of them a weight"
        )


@dataclass(frozen=True)
class Distance:
    """How far a painting is from the real picture, sample by sample.

    Attributes:
        minimised: float32 (n,), the loss whose gradient the painter follows.
        logged: float32 (n,), the loss that is shown; differs where pixels weigh unequally in the gradient.
    """

    minimised: Tensor
    logged: Tensor


@dataclass(frozen=True)
class AdversarialPair:
    """The losses of a painter and its discriminator, and the two as players.

    The painter reads `context` and `keys` of the views, the discriminator compares the painting with `target`.

    Attributes:
        painter: name of the painter's player.
        settings: weights and optimisers.
        distance: (painting, views) -> the reconstruction loss.
        judged: turns a painting or a real picture into the pixels that the discriminator sees.
        conditional: shows the discriminator the context too; otherwise it sees neither the context nor the mask.
    """

    painter: str
    settings: PairSettings
    distance: Callable[[Tensor, Views], Distance]
    judged: Callable[[Tensor], Tensor]
    conditional: bool = False

    def players(self, network: nn.Module, discriminator: Callable[[], nn.Module]) -> tuple[Player, ...]:
        """The players in the order of their turns; the painter alone where the adversarial weight is 0.

        Args:
            network: network of the painter.
            discriminator: makes the network of the discriminator; called only where there is one, after the painter's was made.
        """
        painter = Player(self.painter, network, self.painter_losses, self.settings.optimiser, paint=self._painting)
        if not self.settings.adversarial_weight:
            return (painter,)
        optimiser = self.settings.discriminator_optimiser
        return Player(DISCRIMINATOR, discriminator(), self.discriminator_losses, optimiser, WON), painter

    def painter_losses(self, views: Views, networks: Networks) -> Losses:
        """The painter's turn: the joint loss; logged are `reconstruction` and, beside a discriminator, `adversarial`."""
        painting = self._painting(views, networks)
        distance, weight = self.distance(painting, views), self.settings.reconstruction_weight
        parts = {"reconstruction": distance.logged.detach()}
        if DISCRIMINATOR not in networks:
            return Losses(weight * distance.minimised, parts)
        (verdict,) = networks[DISCRIMINATOR](self.judged(painting), **self._condition(views))
        adversarial = objective.generator(verdict)
        parts["adversarial"] = adversarial.detach()
        return Losses(objective.joint(distance.minimised, adversarial, weight, self.settings.adversarial_weight), parts)

    def discriminator_losses(self, views: Views, networks: Networks) -> Losses:
        """The discriminator's turn: real against painted; logged are `adversarial`, `accuracy_real` and `accuracy_generated`."""
        painting = views[PAINTING] if PAINTING in views else paint(networks[self.painter], views["context"], views["keys"])
        real, painted = networks[DISCRIMINATOR](self.judged(views["target"]), self.judged(painting), **self._condition(views))
        loss = objective.discriminator(real, painted)
        return Losses(loss, {"adversarial": loss.detach(), **objective.accuracy(real, painted)})

    def _painting(self, views: Views, networks: Networks) -> Tensor:
        painting: Tensor = views[PAINTING] if PAINTING in views else networks[self.painter](views["context"], views["keys"])
        return painting

    def _condition(self, views: Views) -> dict[str, Tensor]:
        return {"context": views["context"]} if self.conditional else {}
