"""Recipe "inpainting" (section 5.1 and the authors' released code): a generator fills a hole, a discriminator judges the
filling.

Central region: of a 128 x 128 crop the middle 64 x 64 is predicted, all but a border of it that overlaps with the
context; the squared error in that border weighs ten times as much in the gradient, the logged loss is unweighted.
Random region or block: the whole crop is predicted and the loss is over all of it, as the released code has it. The
discriminator sees the filling (or the same part of the real picture), never the context.

Alternating steps, discriminator first; the generator's gradient uses the discriminator after its update.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from pipeline import objective
from pipeline.config import OptimiserConfig
from pipeline.mapping import ConfigError
from pipeline.masking import MaskConfig, mask_source
from pipeline.masking.source import MaskSource
from pipeline.model.discriminator import Discriminator
from pipeline.model.inpainting_network import Generator
from pipeline.recipes.pixels import PixelScale, columns
from pipeline.recipes.player import Collapse, Losses, Networks, Player, Views, paint

IMAGE_SIZE, PATCH = 128, 64
SCALE = PixelScale((127.5, 127.5, 127.5), 127.5)
HOLE_FILL = (117.0, 104.0, 123.0)  # R, G, B as the released code has them: Caffe's mean with its channels permuted
OVERLAP_WEIGHT = 10.0
WON = Collapse(
    at_most={"adversarial": 0.01},
    at_least={"accuracy_real": 0.999, "accuracy_generated": 0.999},
    advice="It tells every filling from the real region, so the generator learns little from it: lower "
    "method.discriminator_optimiser.learning_rate, or look at the pictures and let it be where they are good",
)
"""What the users of this method report of long runs on much data: the discriminator's loss falls to 0."""


@dataclass(frozen=True)
class InpaintingSettings:
    """The inpainting recipe."""

    bottleneck: int = 4000
    """Units between encoder and decoder."""
    width: int = 64
    """Maps of the first convolution of generator and discriminator; the others are multiples of it."""
    noise: int = 0
    """Units of noise beside the bottleneck; the paper found none better."""
    batch_norm_group: int = 64
    """Samples whose statistics are taken together: the paper's batch. A rank's share is a multiple of it. 0 takes them over the
    micro-batches of all ranks instead (SyncBatchNorm), so that the result depends on both."""
    norm: Literal["l1", "l2"] = "l2"
    """Of the reconstruction."""
    reconstruction_weight: float = 0.999
    """Weight of the reconstruction loss; 0 is adversarial only."""
    adversarial_weight: float = 0.001
    """Weight of the adversarial loss; 0 leaves out the discriminator."""
    weigh_context: bool = False
    """Random region: the visible part weighs ten times as much in the gradient (the released code's useOverlapPred)."""
    mask: MaskConfig = field(default_factory=lambda: MaskConfig(kind="central", overlap=4))
    """Which pixels are dropped. Users report that ImageNet wants an overlap of 0."""
    optimiser: OptimiserConfig = field(default_factory=lambda: OptimiserConfig(learning_rate=2e-3, betas=(0.5, 0.999)))
    """Of the generator."""
    discriminator_optimiser: OptimiserConfig = field(default_factory=lambda: OptimiserConfig(learning_rate=2e-4, betas=(0.5, 0.999)))
    """Of the discriminator."""


class InpaintingRecipe:
    """See the module. Players: `discriminator`, `generator`."""

    name: ClassVar[str] = "inpainting"
    settings: ClassVar[type] = InpaintingSettings

    def __init__(self, settings: InpaintingSettings) -> None:
        if not (settings.reconstruction_weight or settings.adversarial_weight):
            raise ConfigError("method.reconstruction_weight: it and method.adversarial_weight are both 0, so nothing would be learned")
        if settings.mask.kind == "central" and settings.mask.max_fraction != 0.25:
            raise ConfigError("method.mask.max_fraction: the central region of this recipe is 64 x 64 of 128 x 128, a fraction of 0.25")
        self.method = settings
        self.image_size = IMAGE_SIZE
        self.unit = settings.batch_norm_group or 1
        self.mask: MaskSource | None = mask_source(settings.mask)
        self.central = settings.mask.kind == "central"
        size, group = PATCH if self.central else IMAGE_SIZE, settings.batch_norm_group
        painter = Generator(IMAGE_SIZE, size, settings.bottleneck, settings.width, settings.noise, group)
        players = [Player("generator", painter, self._painter_loss, settings.optimiser)]
        if settings.adversarial_weight:
            judge = Discriminator(size, width=settings.width, batch_norm_group=group)
            players.insert(0, Player("discriminator", judge, self._judge_loss, settings.discriminator_optimiser, WON))
        self.players = tuple(players)

    def views(self, images: Tensor, masks: Tensor, labels: Tensor | None, keys: Tensor) -> Views:  # noqa: ARG002
        """context and truth float32 (n, 3, 128, 128) in [-1, 1], target its predicted part, mask bool (n, 1, S, S), keys."""
        truth, mask = SCALE.normalise(images), masks.unsqueeze(1)
        fill = (torch.tensor(HOLE_FILL, device=images.device).view(1, 3, 1, 1) - SCALE.mean[0]) / SCALE.divisor
        return {
            "context": torch.where(mask, fill, truth),
            "truth": truth,
            "target": self._predicted_part(truth),
            "mask": self._predicted_part(mask),
            "keys": keys,
        }

    def pictures(self, views: Views, networks: Networks) -> Mapping[str, Tensor]:
        """Columns of a grid: see `pipeline.recipes.pixels.columns`. A predicted patch is shown in its place."""
        prediction = networks["generator"](views["context"], views["keys"]).float()
        if self.central:
            border = (IMAGE_SIZE - PATCH) // 2
            prediction = functional.pad(prediction, (border,) * 4, value=0.0)
            mask = functional.pad(views["mask"], (border,) * 4)
            return columns(SCALE, {**views, "target": views["truth"], "mask": mask}, prediction)
        return columns(SCALE, views, prediction)

    def _predicted_part(self, values: Tensor) -> Tensor:
        if not self.central:
            return values
        border = (IMAGE_SIZE - PATCH) // 2
        return values[..., border : border + PATCH, border : border + PATCH]

    def _painter_loss(self, views: Views, networks: Networks) -> Losses:
        prediction = networks["generator"](views["context"], views["keys"])
        target, norm = views["target"], self.method.norm
        weight = torch.ones((), device=target.device)
        plain = objective.weighted_reconstruction(prediction, target, weight, norm)
        weighed = plain
        if self.method.weigh_context or (self.central and self.method.mask.overlap):
            weight = torch.where(views["mask"], 1.0, OVERLAP_WEIGHT)
            weighed = objective.weighted_reconstruction(prediction, target, weight, norm)
        total, parts = self.method.reconstruction_weight * weighed, {"reconstruction": plain.detach()}
        if "discriminator" in networks:
            (judged,) = networks["discriminator"](prediction)
            adversarial = objective.generator(judged)
            total = objective.joint(weighed, adversarial, self.method.reconstruction_weight, self.method.adversarial_weight)
            parts["adversarial"] = adversarial.detach()
        return Losses(total, parts)

    def _judge_loss(self, views: Views, networks: Networks) -> Losses:
        painted = paint(networks["generator"], views["context"], views["keys"])
        real, generated = networks["discriminator"](views["target"], painted)
        loss = objective.discriminator(real, generated)
        return Losses(loss, {"adversarial": loss.detach(), **objective.accuracy(real, generated)})


RECIPE = InpaintingRecipe
