"""The losses of a network that names a class: cross-entropy and accuracy, one value a sample."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.recipes.player import Losses


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
