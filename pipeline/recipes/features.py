"""Recipe "features" (section 5.2): an AlexNet encoder learns from painting in what was cut out of a 227 x 227 crop.

Reconstruction only is the paper's setting, since the adversarial loss did not converge with AlexNet; a weight above 0
adds the discriminator all the same. Targets are mean-centred and dropped pixels become the mean, so that a hole is 0
in every channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from pipeline import objective
from pipeline.config import OptimiserConfig
from pipeline.mapping import ConfigError
from pipeline.masking import MaskConfig, mask_source
from pipeline.masking.source import MaskSource
from pipeline.model.discriminator import Discriminator
from pipeline.model.features_network import FeaturesNetwork
from pipeline.recipes.pixels import CAFFE_MEAN, PixelScale, columns, resized
from pipeline.recipes.player import Losses, Networks, Player, Views, paint

IMAGE_SIZE = 227
JUDGED_SIZE = 128  # of what the discriminator sees, which is made for 64 or 128
SCALE = PixelScale(CAFFE_MEAN, 128.0)


@dataclass(frozen=True)
class FeaturesSettings:
    """The features recipe."""

    layout: Literal["caffenet", "torchvision"] = "caffenet"
    """Encoder: Caffe's reference network (96 maps, groups, response normalisation), which the authors' weights fit, or
    torchvision's AlexNet (64 maps)."""
    batch_norm: bool = False
    """Batch normalisation after every convolution of encoder and decoder, instead of response normalisation."""
    batch_norm_group: int = 32
    """Samples whose statistics are taken together; a rank's share is a multiple of it. 0 takes them over the micro-batches of all ranks
    instead (SyncBatchNorm), so that the result depends on both. Used with `batch_norm` and by the discriminator."""
    pooling: Literal["max", "strided"] = "max"
    """Max pooling, or strided convolutions of the same kernel and stride: the pool-free variant for finer inpainting."""
    initial_std: float | None = None
    """Deviation of the Gaussian start; none scales it to the fan-in (He). The paper does not say."""
    mixing_kernel: int = 1
    """Kernel of the convolution that mixes the maps after the channel-wise layer. The paper does not say."""
    dropout: float = 0.5
    """Of the channel-wise layer."""
    target_size: int = IMAGE_SIZE
    """Side of the predicted picture in pixels; the decoder gives 161, which is resized to it."""
    norm: Literal["l1", "l2"] = "l1"
    """Of the reconstruction; the paper saw no significant difference."""
    reconstruction_weight: float = 1.0
    """Weight of the reconstruction loss."""
    adversarial_weight: float = 0.0
    """Weight of the adversarial loss; 0 leaves out the discriminator, as the paper does here."""
    mask: MaskConfig = field(default_factory=MaskConfig)
    """Which pixels are dropped."""
    optimiser: OptimiserConfig = field(default_factory=lambda: OptimiserConfig(learning_rate=1e-4))
    """Of the context encoder."""
    discriminator_optimiser: OptimiserConfig = field(default_factory=lambda: OptimiserConfig(learning_rate=2e-5, betas=(0.5, 0.999)))
    """Of the discriminator, where there is one."""


class FeaturesRecipe:
    """See the module. The player `context_encoder` is the published network; its `encoder` is what a run is for."""

    name: ClassVar[str] = "features"
    settings: ClassVar[type] = FeaturesSettings
    masked: ClassVar[bool] = True

    def __init__(self, settings: FeaturesSettings) -> None:
        if not (settings.reconstruction_weight or settings.adversarial_weight):
            raise ConfigError("method.reconstruction_weight: it and method.adversarial_weight are both 0, so nothing would be learned")
        self.method = settings
        self.image_size = IMAGE_SIZE
        self.mask: MaskSource | None = mask_source(settings.mask) if self.masked else None
        adversarial = settings.adversarial_weight > 0
        self.unit = (settings.batch_norm_group if settings.batch_norm or adversarial else 0) or 1
        network = FeaturesNetwork(
            layout=settings.layout,
            batch_norm=settings.batch_norm,
            batch_norm_group=settings.batch_norm_group,
            pooling=settings.pooling,
            initial_std=settings.initial_std,
            mixing_kernel=settings.mixing_kernel,
            dropout=settings.dropout,
            target_size=settings.target_size,
        )
        players = [Player("context_encoder", network, self._painter_loss, settings.optimiser)]
        if adversarial:
            judge = Discriminator(JUDGED_SIZE, batch_norm_group=settings.batch_norm_group)
            players.insert(0, Player("discriminator", judge, self._judge_loss, settings.discriminator_optimiser))
        self.players = tuple(players)

    def views(self, images: Tensor, masks: Tensor, labels: Tensor | None, keys: Tensor) -> Views:  # noqa: ARG002
        """context float32 (n, 3, 227, 227), target float32 (n, 3, S, S), mask bool (n, 1, S, S), keys int64 (n,)."""
        target, mask = SCALE.normalise(images), masks.unsqueeze(1)
        context = target.masked_fill(mask, 0.0)
        size = self.method.target_size
        return {"context": context, "target": resized(target, size), "mask": resized(mask.float(), size) > 0.5, "keys": keys}

    def pictures(self, views: Views, networks: Networks) -> Mapping[str, Tensor]:
        """Columns of a grid: see `pipeline.recipes.pixels.columns`."""
        return columns(SCALE, views, networks["context_encoder"](views["context"], views["keys"]))

    def _painter_loss(self, views: Views, networks: Networks) -> Losses:
        prediction = networks["context_encoder"](views["context"], views["keys"])
        distance = self.distance(prediction, views)
        total, parts = self.method.reconstruction_weight * distance, {"reconstruction": distance.detach()}
        if "discriminator" in networks:
            (judged,) = networks["discriminator"](resized(prediction.float(), JUDGED_SIZE))
            adversarial = objective.generator(judged)
            total = objective.joint(distance, adversarial, self.method.reconstruction_weight, self.method.adversarial_weight)
            parts["adversarial"] = adversarial.detach()
        return Losses(total, parts)

    def distance(self, prediction: Tensor, views: Views) -> Tensor:
        """The reconstruction loss, (n,)."""
        return objective.reconstruction(prediction, views["target"], views["mask"], self.method.norm)

    def _judge_loss(self, views: Views, networks: Networks) -> Losses:
        painted = paint(networks["context_encoder"], views["context"], views["keys"])
        real, generated = networks["discriminator"](resized(views["target"], JUDGED_SIZE), resized(painted, JUDGED_SIZE))
        loss = objective.discriminator(real, generated)
        return Losses(loss, {"adversarial": loss.detach(), **objective.accuracy(real, generated)})


RECIPE = FeaturesRecipe
