"""Cross-validation of frozen features: every picture is classified once, by classifiers that never saw it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.evaluation.probe import logistic, neighbours, ridge
from pipeline.evaluation.probe.choice import End, Outcome, chosen_layer
from pipeline.evaluation.probe.coordinates import coordinates
from pipeline.evaluation.probe.folds import Fold, inner_folds
from pipeline.evaluation.probe.table import FeatureTable, Standardised
from pipeline.evaluation.probe.threads import threads_for

CLASSIFIERS = ("ridge", "logistic", "neighbours")
"""Classifiers in the order of the report."""


@dataclass(frozen=True)
class Judged:
    """A classifier's answers on one kind of features.

    Attributes:
        right: bool (pictures,), True where the picture was classified rightly.
        chosen: penalty, number of neighbours or layer that each fold chose on its training pictures.
        inner_accuracies: accuracy within the training pictures of each fold, in [0, 1].
        ends: end of the grid at which the choice of each fold lies; empty where it lies inside.
    """

    right: NDArray[np.bool_]
    chosen: tuple[float | str, ...]
    inner_accuracies: tuple[float, ...]
    ends: tuple[End, ...]

    @property
    def most_chosen(self) -> float | str:
        """The choice of most folds; the first one of equals."""
        return Counter(self.chosen).most_common(1)[0][0]


@dataclass(frozen=True)
class Protocol:
    """How features are judged.

    Attributes:
        labels: int64 (pictures,), class of every picture.
        classes: number of classes.
        folds: folds of the cross-validation.
        seed: seed of the inner folds.
        classifiers: names out of `CLASSIFIERS`.
        ks: numbers of neighbours to try, ascending.
        device: device of ridge and neighbours.
    """

    labels: NDArray[np.int64]
    classes: int
    folds: Sequence[Fold]
    seed: int
    classifiers: Sequence[str]
    ks: Sequence[int]
    device: torch.device

    def judge(self, table: FeatureTable) -> dict[str, Judged]:
        """Cross-validates every classifier on a table of features; returns the answers by the classifier's name."""
        with threads_for(len(table) * table.width):
            outcomes = [self._outcomes(table, fold) for fold in self.folds]
        found = {}
        for name in self.classifiers:
            answers = [each[name] for each in outcomes]
            right = np.zeros(len(self.labels), np.bool_)
            for fold, answer in zip(self.folds, answers, strict=True):
                right[fold.test] = answer.predictions == self.labels[fold.test]
            found[name] = Judged(
                right,
                tuple(answer.chosen for answer in answers),
                tuple(answer.inner_accuracy for answer in answers),
                tuple(answer.at_end for answer in answers),
            )
        return found

    def _outcomes(self, table: FeatureTable, fold: Fold) -> Mapping[str, Outcome]:
        features = Standardised(table, fold.training, self.device)
        found = {}
        learnt = self.labels[fold.training]
        if {"ridge", "logistic"} & set(self.classifiers):
            pictures = coordinates(features, fold.training, fold.test)
            inner = inner_folds(learnt, self.seed)
            if "ridge" in self.classifiers:
                found["ridge"] = ridge.classify(pictures, learnt, self.classes, inner)
            if "logistic" in self.classifiers:
                found["logistic"] = logistic.classify(pictures, learnt, inner)
        if "neighbours" in self.classifiers:
            found["neighbours"] = neighbours.classify(features, fold.training, fold.test, self.labels, self.classes, self.ks)
        return found


def by_chosen_layer(layers: Mapping[str, Judged], folds: Sequence[Fold]) -> Judged:
    """The answers of the layer that each fold chooses on its own training pictures, so that the choice is not made on what is judged.

    Args:
        layers: answers of one classifier by layer, from the first layer to the last.
        folds: folds of the cross-validation.
    """
    names, judged = list(layers), list(layers.values())
    right = np.zeros_like(judged[0].right)
    chosen = []
    for number, fold in enumerate(folds):
        best = chosen_layer([each.inner_accuracies[number] for each in judged])
        chosen.append(best)
        right[fold.test] = judged[best].right[fold.test]
    inner = tuple(judged[best].inner_accuracies[number] for number, best in enumerate(chosen))
    ends: list[End] = [""] * len(chosen)
    return Judged(right, tuple(names[best] for best in chosen), inner, tuple(ends))
