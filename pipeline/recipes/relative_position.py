"""Recipe "relative_position" (Doersch, Gupta and Efros, ICCV 2015): the network sees two patches of a picture, and says in which of eight
places around the first patch the second one lies.

The places are those of a 3 x 3 grid with a gap between its cells; every patch is jittered. Two things would give the place away without
any look at the content, and are treated: lines that go on over a narrow gap, by gap and jitter; and chromatic aberration, which shifts
green against magenta towards the picture's edge, by the colour treatment. The released code does more: it pads the first convolution by 5,
downsamples some patches first, subtracts from each patch the mean of its kept channel and scales it to one contrast. Its conv1 and conv2
have response normalisation and no batch normalisation, its batch normalisation has neither scale nor shift, and its initial weights are
Xavier's. Here Caffe's mean alone is subtracted, so the brightness of two patches remains a cue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from pipeline.config import OptimiserConfig
from pipeline.mapping import ConfigError
from pipeline.masking.source import MaskSource
from pipeline.model.classifier import PatchPairNetwork
from pipeline.model.sample_random import keyed_normals, keyed_uniforms
from pipeline.recipes.classifying import ClassifierSettings, class_losses
from pipeline.recipes.pixels import CAFFE_MEAN, PixelScale, resized
from pipeline.recipes.player import Losses, Networks, Player, Views

POSITIONS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
"""Rows and columns from the first patch to the second, by class: the grid read from its top left, as in the released code."""
NOISE_RATIO = 0.01
"""Deviation of the noise in a dropped channel, over that of the channel that is kept."""
_PLACES, _CHANNELS, _NOISE = 16, 17, 18  # purposes of random numbers
_AXIS = (-1.0, 2.0, -1.0)  # from magenta to green


@dataclass(frozen=True)
class RelativePositionSettings(ClassifierSettings):
    """The relative position recipe."""

    patch: Annotated[int, Ge(1)] = 96
    """Side of a patch in pixels."""
    gap: Annotated[int, Ge(0)] = 48
    """Pixels between the cells of the grid: about half a patch."""
    jitter: Annotated[int, Ge(0)] = 7
    """Most pixels by which each patch is moved from its cell, in each axis."""
    colour: Literal["dropping", "projection", "none"] = "dropping"
    """Treatment against chromatic aberration: dropping, two of the three channels of each patch become noise of a hundredth of the third's
    deviation; projection, the component of every pixel from magenta to green is removed; none, so that the network can learn the lens."""
    layout: Literal["caffenet", "torchvision"] = "caffenet"
    """Layout of the encoder, as in the features recipe. A patch of 96 pixels leaves caffenet maps of 1 x 1, torchvision maps of 2 x 2."""
    width: Annotated[int, Ge(1)] | None = None
    """Maps of the first convolution, as in the features recipe. None is the published network."""
    units: Annotated[int, Ge(1)] = 4096
    """Units of fc6, fc7 and fc8."""
    batch_norm: bool = True
    """Batch normalisation with scale and shift after every convolution, fc6 and fc7; the released code has none after conv1 and conv2, and
    no scale and shift. Without it the paper saw activations that hardly differ between patches."""
    batch_norm_group: Annotated[int, Ge(0)] = 32
    """Pictures, each with two patches, that share batch statistics, as in the features recipe."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    """Optimiser of the classifier."""

    def check(self) -> None:
        """Refuses settings that contradict each other.

        Raises:
            ConfigError: naming the setting.
        """
        if self.gap < 2 * self.jitter:
            raise ConfigError(f"method.gap: {self.gap} is less than twice the jitter of {self.jitter}, so patches could overlap")
        super().check()


@dataclass(frozen=True)
class PatchPairs:
    """Places of two patches in each of n pictures.

    Attributes:
        top: int64 (n, 2), first row of the first and of the second patch.
        left: int64 (n, 2), first column of each.
        position: int64 (n,), class of the second patch's place, an index into POSITIONS.
    """

    top: Tensor
    left: Tensor
    position: Tensor


def patch_pairs(keys: Tensor, patch: int, gap: int, jitter: int) -> PatchPairs:
    """Draws the places of patches in square pictures of 2 * patch + gap + 2 * jitter pixels.

    The cells of the two patches are placed anywhere in the picture that leaves room for the jitter, and each patch is then moved.

    Args:
        keys: int64 (n,), random keys of the pictures.
        patch, gap, jitter: as in the settings.
    """
    draws = keyed_uniforms(keys, 7, _PLACES)

    def below(column: int, count: Tensor | int) -> Tensor:
        return (draws[:, column] * count).long()

    position = below(0, len(POSITIONS))
    steps = torch.tensor(POSITIONS, device=keys.device)[position]  # (n, 2): rows, columns
    starts = []
    for axis in range(2):
        step = steps[:, axis]
        room = (patch + gap) * (1 - step.abs())  # pixels that a pair which lies across this axis can be moved by
        first = jitter + below(1 + axis, room + 1) + (patch + gap) * (step < 0)
        moved = [below(3 + 2 * axis + which, 2 * jitter + 1) - jitter for which in range(2)]
        starts.append(torch.stack([first + moved[0], first + (patch + gap) * step + moved[1]], 1))
    top, left = starts
    return PatchPairs(top, left, position)


def cut(images: Tensor, pairs: PatchPairs, patch: int) -> Tensor:
    """Cuts the patches out of pictures.

    Args:
        images: uint8 (n, H, W, 3).
        pairs: places of the patches.
        patch: side of a patch in pixels.

    Returns:
        uint8 (2 n, patch, patch, 3), the two patches of a picture one after the other.
    """
    along = torch.arange(patch, device=images.device)
    rows = (pairs.top.flatten()[:, None] + along)[:, :, None]
    columns = (pairs.left.flatten()[:, None] + along)[:, None, :]
    pictures = torch.arange(len(images), device=images.device).repeat_interleave(2)[:, None, None]
    return images[pictures, rows, columns]


def projected(values: Tensor) -> Tensor:
    """Removes the component from magenta to green: B x with B = I - a a' / (a' a) and a = (-1, 2, -1).

    Args:
        values: float (n, 3, ...), R, G, B in the second dimension: pixels, or the weights of a convolution that sees pixels, because a
            convolution with B's product is the convolution of B's product.
    """
    axis = torch.tensor(_AXIS, device=values.device, dtype=values.dtype).view(1, 3, *[1] * (values.dim() - 2))
    return values - (values * axis).sum(1, keepdim=True) / 6 * axis


def dropped(patches: Tensor, keys: Tensor) -> Tensor:
    """Replaces two of the three channels of each patch by normal noise of a hundredth of the third channel's deviation.

    Args:
        patches: float (2 n, 3, patch, patch), the two patches of a picture one after the other.
        keys: int64 (n,), random keys of the pictures.
    """
    kept = (keyed_uniforms(keys, 2, _CHANNELS) * 3).long().view(-1, 1, 1, 1)
    noise = keyed_normals(keys, 2 * patches[0].numel(), _NOISE).view(patches.shape)
    channel = patches.gather(1, kept.expand(-1, 1, *patches.shape[2:]))
    deviation = channel.std((1, 2, 3), correction=0).view(-1, 1, 1, 1)
    return torch.where(torch.arange(3, device=patches.device).view(1, 3, 1, 1) == kept, patches, noise * (NOISE_RATIO * deviation))


class RelativePositionRecipe:
    """See the module. The player `classifier` is the network; its `encoder` is the result of a run."""

    name: ClassVar[str] = "relative_position"
    settings: ClassVar[type] = RelativePositionSettings
    classifier: ClassVar[str] = "classifier"
    balanced: ClassVar[bool] = True
    scale: ClassVar[PixelScale] = PixelScale(CAFFE_MEAN, 128.0)

    def __init__(self, settings: RelativePositionSettings) -> None:
        settings.check()
        self.method = settings
        self.image_size = 2 * settings.patch + settings.gap + 2 * settings.jitter
        self.encoder_side = 227  # the encoder is convolutional: it is described for AlexNet's input, at the scale of its patches
        self.mask: MaskSource | None = None
        self.unit = settings.unit
        self.classes = len(POSITIONS)
        network = PatchPairNetwork(
            settings.patch,
            self.classes,
            settings.units,
            settings.layout,
            settings.batch_norm,
            settings.batch_norm_group,
            settings.width,
        )
        self.players = (Player(self.classifier, network, self._losses, settings.optimiser),)

    def views(self, images: Tensor, masks: Tensor, labels: Tensor | None, keys: Tensor) -> Views:  # noqa: ARG002
        """Gives patches float32 (n, 2, 3, patch, patch) and position int64 (n,)."""
        settings = self.method
        pairs = patch_pairs(keys, settings.patch, settings.gap, settings.jitter)
        patches = self.scale.normalise(cut(images, pairs, settings.patch))
        if settings.colour == "dropping":
            patches = dropped(patches, keys)
        elif settings.colour == "projection":
            patches = projected(patches)
        return {"patches": patches.view(len(keys), 2, *patches.shape[1:]), "position": pairs.position}

    def whole(self, images: Tensor, keys: Tensor) -> Views:
        """Gives the whole picture, resized to a patch and with all of its channels, as both patches."""
        pictures = resized(self.scale.normalise(images), self.method.patch)
        pictures = projected(pictures) if self.method.colour == "projection" else pictures
        return {"patches": torch.stack([pictures, pictures], 1), "position": torch.full_like(keys, -1)}

    def classify(self, views: Views, networks: Networks) -> Tensor:
        """Computes the logits of the positions, float32 (n, 8)."""
        logits: Tensor = networks[self.classifier](views["patches"])
        return logits.float()

    def truth(self, views: Views) -> Tensor:
        """Gives the positions, int64 (n,)."""
        return views["position"]

    def exported(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gives the weights; with the projection, its product with the first convolution, which then sees pictures in all colours."""
        if self.method.colour != "projection":
            return dict(weights)
        return {**weights, "conv1.weight": projected(weights["conv1.weight"])}

    def _losses(self, views: Views, networks: Networks) -> Losses:
        return class_losses(networks[self.classifier](views["patches"]), views["position"])


RECIPE = RelativePositionRecipe
