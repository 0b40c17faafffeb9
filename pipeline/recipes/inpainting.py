"""Recipe "inpainting" (section 5.1 and the authors' released code): a generator fills a hole, a discriminator judges the
filling.

Central region: the middle of a crop, half of its side, is predicted: 64 x 64 of 128 x 128 pixels. A border of it, `mask.overlap` pixels
wide, is also in the context; the squared error there weighs ten times as much in the gradient (`overlap_weight`), while the logged loss
is unweighted. Random region or block: the whole crop is predicted and the loss is over all of it, as in the released code. The
discriminator sees the filling, or the same part of the real picture, never the mask, and the context only if that is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn import functional

from pipeline import objective
from pipeline.config import OptimiserConfig
from pipeline.mapping import ConfigError
from pipeline.masking import MaskConfig, mask_source
from pipeline.masking.source import MaskSource
from pipeline.model.discriminator import Discriminator
from pipeline.model.inpainting_network import Generator
from pipeline.recipes.adversarial import AdversarialPair, Distance, check_weights
from pipeline.recipes.pixels import PixelScale
from pipeline.recipes.player import Networks, Paintings, Views
from shards.counting import counted

HOLE_FILL = (117.0, 104.0, 123.0)  # R, G, B as in the released code: Caffe's mean with its channels permuted
SCALE = PixelScale((127.5, 127.5, 127.5), 127.5, HOLE_FILL)


@dataclass(frozen=True)
class InpaintingSettings:
    """The inpainting recipe."""

    image_size: Literal[64, 128] = 128
    """Side of the crop in pixels (the released code's fineSize). A central region of 64 is 32 x 32, which the released code does not paint:
    generator and discriminator then have one stage less."""
    bottleneck: Annotated[int, Ge(1)] = 4000
    """Units of the bottleneck between encoder and decoder."""
    width: Annotated[int, Ge(1)] = 64
    """Maps of the first convolution of generator and discriminator; the other layers have multiples of it."""
    noise: Annotated[int, Ge(0)] = 0
    """Units of noise that join the bottleneck; the paper found no noise better."""
    batch_norm_group: Annotated[int, Ge(0)] = 64
    """Samples that share batch statistics, by default the paper's batch; each rank gets a multiple of it. 0 takes the statistics over the
    micro-batches of all ranks (SyncBatchNorm), so that the result depends on micro-batch and ranks."""
    norm: Literal["l1", "l2"] = "l2"
    """Distance that the reconstruction minimises: l1, absolute, or l2, squared."""
    reconstruction_weight: Annotated[float, Ge(0)] = 0.999
    """Weight of the reconstruction loss; 0 trains with the adversarial loss only."""
    adversarial_weight: Annotated[float, Ge(0)] = 0.001
    """Weight of the adversarial loss; 0 leaves out the discriminator."""
    overlap_weight: Annotated[float, Ge(0)] = 10.0
    """Weight, in the gradient of the reconstruction, of pixels that are predicted although they are visible: those of `mask.overlap`, and
    with `weigh_context` all outside a random region. The divisor does not count it, and the logged loss is unweighted."""
    weigh_context: bool = False
    """Weigh the visible part by `overlap_weight` (the released code's useOverlapPred). It has no effect with a central region, where
    `mask.overlap` does that."""
    conditional_discriminator: bool = False
    """Show the discriminator the context beside the filling (the released code's conditionAdv); the paper found that it learns worse."""
    mask: MaskConfig = field(default_factory=lambda: MaskConfig(kind="central", overlap=4))
    """Masks: the pixels that are dropped. Users report that ImageNet wants an overlap of 0."""
    optimiser: OptimiserConfig = field(default_factory=lambda: OptimiserConfig(learning_rate=2e-3, betas=(0.5, 0.999)))
    """Optimiser of the generator."""
    discriminator_optimiser: OptimiserConfig = field(default_factory=lambda: OptimiserConfig(learning_rate=2e-4, betas=(0.5, 0.999)))
    """Optimiser of the discriminator."""

    @property
    def painted_size(self) -> int:
        """Side of the predicted part in pixels: half of the crop's with a central region, otherwise the crop's."""
        return self.image_size // 2 if self.mask.kind == "central" else self.image_size

    @property
    def unit(self) -> int:
        """Number of samples that ranks must not divide: the batch-norm group."""
        return self.batch_norm_group or 1

    def check(self) -> None:
        """Refuses settings that contradict each other.

        Raises:
            ConfigError: naming the setting.
        """
        check_weights(self)
        if self.conditional_discriminator and not self.adversarial_weight:
            raise ConfigError(
                "method.conditional_discriminator: there is no discriminator, because method.adversarial_weight is 0. Leave the setting "
                "out, or give the adversarial loss a weight"
            )
        weighed = self.mask.overlap if self.mask.kind == "central" else self.weigh_context
        if self.overlap_weight != InpaintingSettings.overlap_weight and not weighed:
            other = "method.mask.overlap is 0" if self.mask.kind == "central" else "method.weigh_context is False"
            raise ConfigError(
                f"method.overlap_weight: no pixel is weighed by {self.overlap_weight:g}, because {other}. Leave the setting out, "
                "or set that one"
            )
        if 2 * self.mask.overlap >= self.painted_size:
            raise ConfigError(
                f"method.mask.overlap: {counted(self.mask.overlap, 'pixel on each side leaves', 'pixels on each side leave')} "
                f"nothing of the {self.painted_size} x {self.painted_size} pixels"
            )
        if self.mask.kind == "central" and self.mask.max_fraction != 0.25:
            raise ConfigError(
                f"method.mask.max_fraction: {self.mask.max_fraction} is not 0.25, and the central region of this recipe is "
                f"{self.painted_size} x {self.painted_size} of {self.image_size} x {self.image_size} pixels"
            )


class InpaintingRecipe:
    """See the module. Players: `discriminator`, `generator`."""

    name: ClassVar[str] = "inpainting"
    settings: ClassVar[type] = InpaintingSettings
    painter: ClassVar[str] = "generator"
    scale: ClassVar[PixelScale] = SCALE

    def __init__(self, settings: InpaintingSettings) -> None:
        settings.check()
        self.method = settings
        self.image_size: int = settings.image_size
        self.unit = settings.unit
        self.mask: MaskSource | None = mask_source(settings.mask)
        self.central = settings.mask.kind == "central"
        size, group = settings.painted_size, settings.batch_norm_group
        self.border = (self.image_size - size) // 2
        painter = Generator(self.image_size, size, settings.bottleneck, settings.width, settings.noise, group)
        context_size = self.image_size if settings.conditional_discriminator else None
        pair = AdversarialPair(self.painter, settings, self._distance, lambda pixels: pixels, settings.conditional_discriminator)
        self.players = pair.players(painter, lambda: Discriminator(size, settings.width, group, context_size))

    def views(self, images: Tensor, masks: Tensor, labels: Tensor | None, keys: Tensor) -> Views:  # noqa: ARG002
        """Gives context and truth float32 (n, 3, H, H) in [-1, 1], target its predicted part, mask bool (n, 1, S, S), keys."""
        truth, mask = SCALE.normalise(images), masks.unsqueeze(1)
        fill = (torch.tensor(HOLE_FILL, device=images.device).view(1, 3, 1, 1) - SCALE.mean[0]) / SCALE.divisor
        return {
            "context": torch.where(mask, fill, truth),
            "truth": truth,
            "target": self._predicted_part(truth),
            "mask": self._predicted_part(mask),
            "keys": keys,
        }

    def paint(self, views: Views, networks: Networks) -> Tensor:
        """Paints the predicted part, float32 (n, 3, S, S)."""
        painting: Tensor = networks[self.painter](views["context"], views["keys"])
        return painting.float()

    def reconstruction(self, painting: Tensor, views: Views) -> Tensor:
        """Computes the unweighted reconstruction loss over all predicted pixels, (n,)."""
        return objective.weighted_reconstruction(painting, views["target"], torch.ones((), device=painting.device), self.method.norm)

    def paintings(self, views: Views, painting: Tensor) -> Paintings:
        """Turns a painting into whole pictures; a predicted patch is shown in its place."""
        mask = views["mask"]
        if self.central:
            painting, mask = functional.pad(painting, (self.border,) * 4, value=-1.0), functional.pad(mask, (self.border,) * 4)
        show = self.scale.show
        return Paintings(show(views["context"]), show(painting), show(views["truth"]), mask)

    def _predicted_part(self, values: Tensor) -> Tensor:
        if not self.central:
            return values
        inside = slice(self.border, self.image_size - self.border)
        return values[..., inside, inside]

    def _distance(self, prediction: Tensor, views: Views) -> Distance:
        """The distance over all predicted pixels; those that are also in the context may weigh more in the gradient."""
        plain = self.reconstruction(prediction, views)
        if not (self.method.weigh_context or (self.central and self.method.mask.overlap)):
            return Distance(minimised=plain, logged=plain)
        weight = torch.where(views["mask"], 1.0, self.method.overlap_weight)
        return Distance(minimised=objective.weighted_reconstruction(prediction, views["target"], weight, self.method.norm), logged=plain)


RECIPE = InpaintingRecipe
