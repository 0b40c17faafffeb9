"""Recipe "labels" (table 2's upper bound): AlexNet learns the labels of its data set.

A picture without a label adds nothing to the loss, whose divisor stays the batch; the logged part `unlabelled` is the fraction of such
pictures. A data set without labels is refused before the training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from pipeline.config import OptimiserConfig
from pipeline.mapping import ConfigError
from pipeline.masking.source import MaskSource
from pipeline.model.classifier import LabelNetwork
from pipeline.recipes.classifying import ClassifierSettings, class_losses
from pipeline.recipes.pixels import CAFFE_MEAN, PixelScale
from pipeline.recipes.player import Losses, Networks, Player, Views
from shards.counting import counted
from shards.dataset.manifest import Manifest
from shards.urls import redacted

IMAGE_SIZE = 227


@dataclass(frozen=True)
class LabelsSettings(ClassifierSettings):
    """The labels recipe."""

    classes: Annotated[int, Ge(2)] = 1000
    """Number of classes, that of the data set; a data set with names for another number is refused. A label that is not below it, which
    only data sets without names can have, ends the run with an error that names its sample."""
    layout: Literal["caffenet", "torchvision"] = "caffenet"
    """Layout of the encoder, as in the features recipe."""
    width: Annotated[int, Ge(1)] | None = None
    """Maps of the first convolution, as in the features recipe. None is the published network."""
    units: Annotated[int, Ge(1)] = 4096
    """Units of fc6 and fc7."""
    batch_norm: bool = False
    """Batch normalisation after every convolution of the encoder, instead of response normalisation."""
    batch_norm_group: Annotated[int, Ge(0)] = 32
    """Samples that share batch statistics, as in the features recipe."""
    pooling: Literal["max", "strided"] = "max"
    """Reduction between the stages, as in the features recipe."""
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.5
    """Probability that a value of fc6 or fc7 is set to zero while training."""
    optimiser: OptimiserConfig = field(default_factory=lambda: OptimiserConfig(kind="sgd", learning_rate=1e-2, weight_decay=5e-4))
    """Optimiser of the classifier."""


class LabelsRecipe:
    """See the module. The player `classifier` is the network; its `encoder` is the result of a run."""

    name: ClassVar[str] = "labels"
    settings: ClassVar[type] = LabelsSettings
    classifier: ClassVar[str] = "classifier"
    balanced: ClassVar[bool] = False
    scale: ClassVar[PixelScale] = PixelScale(CAFFE_MEAN, 128.0)

    def __init__(self, settings: LabelsSettings) -> None:
        settings.check()
        self.method = settings
        self.image_size = self.encoder_side = IMAGE_SIZE
        self.mask: MaskSource | None = None
        self.unit = settings.unit
        self.classes = settings.classes
        network = LabelNetwork(
            IMAGE_SIZE,
            settings.classes,
            settings.units,
            settings.dropout,
            settings.layout,
            settings.batch_norm,
            settings.batch_norm_group,
            settings.pooling,
            settings.width,
        )
        self.players = (Player(self.classifier, network, self._losses, settings.optimiser),)

    def check_labels(self, manifests: Sequence[Manifest]) -> None:
        """Refuses data sets without labels, or with other classes.

        Raises:
            ConfigError: naming the data set.
        """
        for manifest in manifests:
            where = redacted(manifest.url)
            if not manifest.labelled:
                raise ConfigError(f"recipe: labels learns from labels, and the data set {where} has none. Build it with labels")
            if manifest.classes and len(manifest.classes) != self.classes:
                raise ConfigError(
                    f"method.classes: {self.classes} is not the number of classes of the data set {where}, which has "
                    f"{counted(len(manifest.classes), 'class')}: give --method.classes {len(manifest.classes)}"
                )
            if len(manifests) > 1 and not manifest.classes:
                raise ConfigError(
                    "recipe: labels needs classes of the same names in all data sets, that of evaluation.shards included, and those of "
                    f"{where} have no names: put a file classnames.txt, a name a line, beside its tars and index again"
                )
            if manifest.classes != manifests[0].classes:
                raise ConfigError(
                    "recipe: labels needs classes of the same names in all data sets, that of evaluation.shards included, and those of "
                    f"{where} have other names, or another order, than those of {redacted(manifests[0].url)}: build both with the same"
                )

    def views(self, images: Tensor, masks: Tensor, labels: Tensor | None, keys: Tensor) -> Views:  # noqa: ARG002
        """Gives images float32 (n, 3, 227, 227), labels int64 (n,), -1 where one is not known, and keys int64 (n,). Labels that are not
        below the number of classes are refused before (`pipeline.training.labels`)."""
        given = torch.full_like(keys, -1) if labels is None else labels
        return {**self.whole(images, keys), "labels": given.clamp(min=-1)}

    def whole(self, images: Tensor, keys: Tensor) -> Views:
        """Gives the views of pictures whose labels are not known."""
        return {"images": self.scale.normalise(images), "labels": torch.full_like(keys, -1), "keys": keys}

    def classify(self, views: Views, networks: Networks) -> Tensor:
        """Computes the logits, float32 (n, classes)."""
        logits: Tensor = networks[self.classifier](views["images"], views["keys"])
        return logits.float()

    def truth(self, views: Views) -> Tensor:
        """Gives the labels, int64 (n,), -1 where one is not known."""
        return views["labels"]

    def exported(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gives the weights as they are."""
        return dict(weights)

    def _losses(self, views: Views, networks: Networks) -> Losses:
        logits = networks[self.classifier](views["images"], views["keys"])
        losses = class_losses(logits, views["labels"])
        return replace(losses, parts={**losses.parts, "unlabelled": (views["labels"] < 0).to(torch.float32)})


RECIPE = LabelsRecipe
