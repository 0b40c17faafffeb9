"""Every picture is judged once, by classifiers and a layer that were chosen without it."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.evaluation.probe.cross_validation import CLASSIFIERS, Judged, Protocol, by_chosen_layer
from pipeline.evaluation.probe.folds import stratified_folds
from pipeline.evaluation.probe.pictures import ProbeError
from pipeline.evaluation.probe.probe import ProbeSettings, _refuse_full_memory
from pipeline.evaluation.probe.table import FeatureTable
from pipeline.evaluation.probe.verdict import compare, too_few

PICTURES, CLASSES = 1200, 4
COMPARISONS = 10_000
"""So many that the intervals miss the truth once in 200,000 tests."""


def protocol(labels: NDArray[np.int64], *classifiers: str) -> Protocol:
    return Protocol(labels, CLASSES, stratified_folds(labels, 5, 0), 0, classifiers, (1, 5, 20), torch.device("cpu"))


def noise(made: np.random.Generator) -> NDArray[np.float32]:
    return made.normal(size=(PICTURES, 16)).astype(np.float32)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_features_of_noise_are_not_distinguishable_and_features_of_the_labels_are_better(
    classifier: str, draw: random.Random, tmp_path: Path
) -> None:
    made = np.random.default_rng(draw.randrange(1 << 32))
    labels = made.permutation(np.arange(PICTURES) % CLASSES)
    knowing = noise(made)
    knowing[np.arange(PICTURES), labels] += 1.5
    tables = [FeatureTable.of(tmp_path / str(number), each) for number, each in enumerate((noise(made), noise(made), knowing))]
    one, other, known = (protocol(labels, classifier).judge(table)[classifier] for table in tables)
    assert abs(one.right.mean() - 1 / CLASSES) < 0.08
    assert known.right.mean() > 0.5
    assert too_few(labels, list("abcd")) is None
    assert compare(one.right, [other.right], COMPARISONS, False).verdict in ("not distinguishable", "too few pictures")
    assert compare(known.right, [other.right], COMPARISONS, False).verdict == "better"
    assert compare(one.right, [known.right], COMPARISONS, False).verdict == "worse"


def test_the_chosen_layer_is_not_the_luckiest_one_on_the_pictures_that_are_judged(draw: random.Random, tmp_path: Path) -> None:
    made = np.random.default_rng(draw.randrange(1 << 32))
    labels = made.permutation(np.arange(PICTURES) % CLASSES)
    judge = protocol(labels, "ridge")
    layers = {f"layer {number}": judge.judge(FeatureTable.of(tmp_path / str(number), noise(made)))["ridge"] for number in range(12)}
    chosen = by_chosen_layer(layers, judge.folds)
    # by luck the best of twelve layers of noise is well above chance; a layer that is chosen without the judged pictures is not
    assert abs(chosen.right.mean() - 1 / CLASSES) < 5 * (0.25 * 0.75 / PICTURES) ** 0.5
    assert set(chosen.chosen) <= set(layers)


def test_the_chosen_layer_by_hand() -> None:
    labels = np.array([0, 1] * 4)
    folds = stratified_folds(labels, 2, 0)
    first = Judged(np.ones(8, np.bool_), (1.0, 1.0), (0.5, 0.9), ("", ""))
    second = Judged(np.zeros(8, np.bool_), (1.0, 1.0), (0.6, 0.9), ("", ""))
    found = by_chosen_layer({"relu1": first, "relu2": second}, folds)
    assert found.chosen == ("relu2", "relu1")
    assert found.inner_accuracies == (0.6, 0.9)
    assert found.right[folds[0].test].tolist() == [False] * 4
    assert found.right[folds[1].test].tolist() == [True] * 4


def test_more_pictures_than_memory_holds_are_refused_before_anything_is_read() -> None:
    with pytest.raises(ProbeError, match="--limit"):
        _refuse_full_memory(100_000_000, ProbeSettings())
    _refuse_full_memory(100_000_000, ProbeSettings(classifiers=("neighbours",)))
    _refuse_full_memory(220, ProbeSettings())
