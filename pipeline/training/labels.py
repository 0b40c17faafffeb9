"""Refuses a label that a recipe has no class for, before it moves to the device, because a look at it there would wait for the device."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pipeline.recipes.player import LabelledRecipe, Recipe
from pipeline.stream.dataset import Dataset
from shards.errors import ExplainedError
from shards.urls import redacted


class LabelUnknown(ExplainedError):
    """A label is that of no class; the message names label, number of classes, sample and data set."""


def refuse_labels(recipe: Recipe, labels: Tensor | None, sample_ids: Sequence[int] | Tensor, datasets: Sequence[Dataset]) -> None:
    """Refuses samples whose label is not below the number of classes, because the training would have to leave them out.

    Args:
        recipe: recipe of the run; one that learns no labels takes all.
        labels: int64 (n,) on the CPU, -1 where unknown; None where there are none.
        sample_ids: ids of the samples, n.
        datasets: data sets of the samples.

    Raises:
        LabelUnknown: naming the sample with the largest label.
    """
    if not isinstance(recipe, LabelledRecipe) or labels is None or not len(labels) or (largest := int(labels.max())) < recipe.classes:
        return
    number = int(labels.argmax())
    raise LabelUnknown(
        f"method.classes: {recipe.classes} is too few for the label {largest} of {_named(int(sample_ids[number]), datasets)}. Labels are "
        f"counted from 0: give --method.classes with the number of classes of the data set, which is {largest + 1} or more, "
        "in a new run, with another --run, because the network has an output for every class"
    )


def _named(sample_id: int, datasets: Sequence[Dataset]) -> str:
    for dataset in reversed(datasets):
        if sample_id >= dataset.first_id:
            (shard,), (row,) = dataset.manifest.locate([sample_id - dataset.first_id])
            return f"row {row} of {dataset.manifest.records[shard].name} in the data set {redacted(dataset.manifest.url)}"
    return f"sample {sample_id}"
