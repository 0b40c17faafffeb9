"""The figures of a network that names a class on held-back pictures, beside guesses that need no network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.recipes.classifying import class_losses
from pipeline.recipes.player import ClassifyingRecipe, Networks, Views
from pipeline.training.held_back.judge import MeasureAll


class ClassificationJudge:
    """Judges a recipe that classifies; see `judge.Judge`. Pictures whose class is not known are left out of the figures, and counted.

    Args:
        recipe: recipe to judge.
    """

    def __init__(self, recipe: ClassifyingRecipe) -> None:
        self.recipe = recipe
        self.player = recipe.classifier

    def answer(self, views: Views, networks: Networks) -> Tensor:
        """Computes logits, float32 (n, classes)."""
        return self.recipe.classify(views, networks)

    def rows(self, views: Views, answer: Tensor) -> Mapping[str, Tensor]:
        """Measures logits: loss and accuracy, and the true class."""
        truth = self.recipe.truth(views)
        losses = class_losses(answer, truth)
        return {"figures": torch.stack([losses.total, losses.parts["accuracy"]], 1).double(), "truth": truth}

    def figures(self, found: Mapping[str, Tensor], readable: Tensor, measure_all: MeasureAll) -> dict[str, Any]:  # noqa: ARG002
        """Computes loss and accuracy of the network and of guessing; the gain is the fraction of the better guess's errors taken away. The
        figures of the network are NaN where no picture's class is known."""
        truth = found["truth"].long()
        known = readable & (truth >= 0)
        loss, accuracy = found["figures"][known].mean(0).tolist()
        baselines = {"chance": {"loss": math.log(self.recipe.classes), "accuracy": 1 / self.recipe.classes}}
        if not self.recipe.balanced and known.any():
            baselines["largest_class"] = _largest_class(truth[known])
        guessed = max(each["accuracy"] for each in baselines.values())
        gain = 1 - (1 - accuracy) / (1 - guessed) if guessed < 1 else math.nan
        unknown = int(readable.sum()) - int(known.sum())
        return {"loss": loss, "accuracy": accuracy, "unlabelled": unknown, "baselines": baselines, "gain": gain}

    def spread(self, found: Mapping[str, Tensor], readable: Tensor) -> dict[str, Any]:  # noqa: ARG002
        """Gives nothing, because logits have no colour."""
        return {}


def _largest_class(truth: Tensor) -> dict[str, float]:
    """Loss and accuracy of answers by the frequencies of the classes alone: their entropy, and the fraction of the most frequent one."""
    counts = torch.bincount(truth).double()
    shares = counts[counts > 0] / counts.sum()
    return {"loss": float(-(shares * shares.log()).sum()), "accuracy": float(shares.max())}
