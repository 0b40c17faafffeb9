"""Settings and losses that the recipes share whose network names a class."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.mapping import ConfigError
from pipeline.model.encoder import Layout, proportion
from pipeline.recipes.player import Losses


class ClassifierSettings:
    """Base of the settings of a recipe whose network is an encoder with layers behind it that name a class."""

    layout: Layout
    width: int | None
    batch_norm: bool
    batch_norm_group: int

    @property
    def unit(self) -> int:
        """Number of samples that ranks must not divide: the batch-norm group, where there is one."""
        return (self.batch_norm_group if self.batch_norm else 0) or 1

    def check(self) -> None:
        """Refuses a width that the layout does not have.

        Raises:
            ConfigError: naming the setting.
        """
        try:
            proportion(self.layout, self.width)
        except ValueError as error:
            raise ConfigError(f"method.{error}") from error


def class_losses(logits: Tensor, truth: Tensor) -> Losses:
    """Computes the loss of logits, in float32 under autocast too.

    Args:
        logits: float (n, classes).
        truth: int64 (n,), true classes. A sample of class -1, which is not known, gives 0 with a gradient of 0, and is not right.

    Returns:
        The cross-entropy, with the parts `cross_entropy` and `accuracy`, which is 1 or 0 a sample.
    """
    total = functional.cross_entropy(logits.float(), truth, ignore_index=-1, reduction="none")
    right = (logits.detach().argmax(1) == truth).to(torch.float32)
    return Losses(total, {"cross_entropy": total.detach(), "accuracy": right})
