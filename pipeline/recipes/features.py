"""Recipe "features" (section 5.2): an AlexNet encoder learns by painting in the region that was cut out of a 227 x 227 crop.

The paper trains with reconstruction only, because the adversarial loss did not converge with AlexNet; a weight above 0 adds the
discriminator all the same. Targets are mean-centred and dropped pixels become the mean, so that a hole is 0 in every channel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Interval
from torch import Tensor

from pipeline import objective
from pipeline.config import OptimiserConfig
from pipeline.mapping import ConfigError
from pipeline.masking import MaskConfig, mask_source
from pipeline.masking.source import MaskSource
from pipeline.model.discriminator import Discriminator
from pipeline.model.encoder import proportion
from pipeline.model.features_network import FeaturesNetwork
from pipeline.recipes.adversarial import AdversarialPair, Distance, check_weights
from pipeline.recipes.pixels import CAFFE_MEAN, PixelScale, resized
from pipeline.recipes.player import Networks, Paintings, Views

IMAGE_SIZE = 227
JUDGED_SIZE = 128  # side of the pictures that the discriminator sees, which is made for 64 or 128
JUDGE_WIDTH = 64  # maps of the discriminator's first convolution beside the published network
SCALE = PixelScale(CAFFE_MEAN, 128.0)


@dataclass(frozen=True)
class FeaturesSettings:
    """The features recipe."""

    layout: Literal["caffenet", "torchvision"] = "caffenet"
    """Layout of the encoder: caffenet, Caffe's reference network (96 maps, groups, response normalisation), which the authors' weights
    fit; torchvision, torchvision's AlexNet (64 maps)."""
    width: Annotated[int, Ge(1)] | None = None
    """Maps of the first convolution, a multiple of 6 in caffenet and of 2 in torchvision; all other layers, the discriminator's too,
    are scaled in proportion. None is the published network, 96 and 64. Narrow networks are for tests and quick runs: 12 and 8 give every
    layer an eighth of its maps."""
    batch_norm: bool = False
    """Batch normalisation after every convolution of encoder and decoder, instead of response normalisation."""
    batch_norm_group: Annotated[int, Ge(0)] = 32
    """Samples that share batch statistics; each rank gets a multiple of it. 0 takes the statistics over the micro-batches of all ranks
    (SyncBatchNorm), so that the result depends on micro-batch and ranks. Used with `batch_norm` and by the discriminator."""
    pooling: Literal["max", "strided"] = "max"
    """Reduction between the stages: max pooling, or strided convolutions of the same kernel and stride, the pool-free variant for finer
    inpainting."""
    initial_std: Annotated[float, Gt(0)] | None = None
    """Standard deviation of the initial weights; None scales it with the fan-in (He). The paper does not give it."""
    output_gain: Annotated[float, Gt(0)] = 0.1
    """Factor of the initial weights of the last up-convolution. At 0.1 an untrained network errs about as much as the mean colour does; at
    1 almost twice as much, and the first steps at a high rate then kill maps. Also a factor of `initial_std`, where that is given."""
    mixing_kernel: Annotated[int, Ge(1)] = 1
    """Side of the kernel, odd, that mixes the maps after the channel-wise layer. The paper does not give it."""
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.5
    """Probability that a value of the channel-wise layer is set to zero while training."""
    target_size: Annotated[int, Ge(1)] = IMAGE_SIZE
    """Side of the predicted picture in pixels; the decoder's 161 are resized to it."""
    norm: Literal["l1", "l2"] = "l1"
    """Distance that the reconstruction minimises: l1, absolute, or l2, squared. The paper saw no significant difference."""
    reconstruction_weight: Annotated[float, Ge(0)] = 1.0
    """Weight of the reconstruction loss."""
    adversarial_weight: Annotated[float, Ge(0)] = 0.0
    """Weight of the adversarial loss; 0 leaves out the discriminator, as the paper does here."""
    mask: MaskConfig = field(default_factory=MaskConfig)
    """Masks: the pixels that are dropped."""
    optimiser: OptimiserConfig = field(default_factory=lambda: OptimiserConfig(learning_rate=1e-4))
    """Optimiser of the context encoder."""
    discriminator_optimiser: OptimiserConfig = field(default_factory=lambda: OptimiserConfig(learning_rate=2e-5, betas=(0.5, 0.999)))
    """Optimiser of the discriminator, where there is one."""

    @property
    def unit(self) -> int:
        """Number of samples that ranks must not divide: the batch-norm group, where a network has one."""
        return (self.batch_norm_group if self.batch_norm or self.adversarial_weight > 0 else 0) or 1

    def check(self) -> None:
        """Refuses settings that contradict each other.

        Raises:
            ConfigError: naming the setting.
        """
        check_weights(self)
        if self.mixing_kernel % 2 == 0:
            raise ConfigError(f"method.mixing_kernel: {self.mixing_kernel} is not odd, and the convolution must keep the size of its maps")
        try:
            proportion(self.layout, self.width)
        except ValueError as error:
            raise ConfigError(f"method.{error}") from error


class FeaturesRecipe:
    """See the module. The player `context_encoder` is the published network; its `encoder` is the result of a run."""

    name: ClassVar[str] = "features"
    settings: ClassVar[type] = FeaturesSettings
    painter: ClassVar[str] = "context_encoder"
    scale: ClassVar[PixelScale] = SCALE
    masked: ClassVar[bool] = True

    def __init__(self, settings: FeaturesSettings) -> None:
        settings.check()
        self.method = settings
        self.image_size = IMAGE_SIZE
        self.mask: MaskSource | None = mask_source(settings.mask) if self.masked else None
        self.unit = settings.unit
        network = FeaturesNetwork(
            layout=settings.layout,
            batch_norm=settings.batch_norm,
            batch_norm_group=settings.batch_norm_group,
            pooling=settings.pooling,
            initial_std=settings.initial_std,
            mixing_kernel=settings.mixing_kernel,
            dropout=settings.dropout,
            target_size=settings.target_size,
            width=settings.width,
            output_gain=settings.output_gain,
        )
        width = int(JUDGE_WIDTH * network.encoder.proportion)
        pair = AdversarialPair(self.painter, settings, self._distance, lambda pixels: resized(pixels.float(), JUDGED_SIZE))
        self.players = pair.players(network, lambda: Discriminator(JUDGED_SIZE, width, settings.batch_norm_group))

    def views(self, images: Tensor, masks: Tensor, labels: Tensor | None, keys: Tensor) -> Views:  # noqa: ARG002
        """Gives context float32 (n, 3, 227, 227), target float32 (n, 3, S, S), mask bool (n, 1, S, S), keys int64 (n,)."""
        target, mask = SCALE.normalise(images), masks.unsqueeze(1)
        context = target.masked_fill(mask, 0.0)
        size = self.method.target_size
        dropped = mask if size == self.image_size else resized(mask.float(), size) > 0.5
        return {"context": context, "target": resized(target, size), "mask": dropped, "keys": keys}

    def paint(self, views: Views, networks: Networks) -> Tensor:
        """Paints the whole picture, float32 (n, 3, S, S)."""
        painting: Tensor = networks[self.painter](views["context"], views["keys"])
        return painting.float()

    def reconstruction(self, painting: Tensor, views: Views) -> Tensor:
        """Computes the reconstruction loss over the dropped pixels, (n,)."""
        return objective.reconstruction(painting, views["target"], views["mask"], self.method.norm)

    def paintings(self, views: Views, painting: Tensor) -> Paintings:
        """Turns a painting into pictures at the resolution of the targets."""
        context = resized(self.scale.show(views["context"]), self.method.target_size)
        return Paintings(context, self.scale.show(painting), self.scale.show(views["target"]), views["mask"])

    def _distance(self, prediction: Tensor, views: Views) -> Distance:
        distance = self.reconstruction(prediction, views)
        return Distance(minimised=distance, logged=distance)


RECIPE = FeaturesRecipe
