"""Ridge, logistic regression and nearest neighbours give scikit-learn's answers, and the choices that a person makes by hand."""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from pipeline.evaluation.probe import logistic, neighbours, ridge
from pipeline.evaluation.probe.choice import best_of, chosen_layer, end_of_grid
from pipeline.evaluation.probe.coordinates import Coordinates, coordinates
from pipeline.evaluation.probe.folds import Fold, inner_folds, stratified_folds
from pipeline.evaluation.probe.table import FeatureTable, Standardised

FEW_FEATURES, MANY_FEATURES = 12, 700


def task(draw: random.Random, width: int, classes: int = 4, count: int = 150) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features that tell classes apart in part, on very different scales, and their labels."""
    made = np.random.default_rng(draw.randrange(1 << 32))
    labels = made.integers(0, classes, count)
    centres = made.normal(size=(classes, width)) * min(1.0, 4 / width**0.5)
    features = (centres[labels] + made.normal(size=(count, width))) * np.exp(made.normal(size=width) * 2) + 5
    return features.astype(np.float32), labels.astype(np.int64)


@pytest.fixture(params=[FEW_FEATURES, MANY_FEATURES], ids=["few features", "many features"])
def case(request: pytest.FixtureRequest, draw: random.Random, tmp_path: Path) -> dict[str, object]:
    """A fold of a task, standardised by the probe and by scikit-learn."""
    features, labels = task(draw, request.param)
    fold = stratified_folds(labels, 5, draw.randrange(1 << 32))[1]
    scaler = StandardScaler().fit(features[fold.training].astype(np.float64))
    return {
        "standardised": Standardised(FeatureTable.of(tmp_path / "features", features), fold.training),
        "learnt": scaler.transform(features[fold.training].astype(np.float64)),
        "asked": scaler.transform(features[fold.test].astype(np.float64)),
        "labels": labels,
        "fold": fold,
        "inner": inner_folds(labels[fold.training], 3),
        "width": request.param,
    }


def split_of(inner: list[Fold], count: int) -> PredefinedSplit:
    """The inner folds as scikit-learn takes them."""
    numbers = np.full(count, -1)
    for number, fold in enumerate(inner):
        numbers[fold.test] = number
    return PredefinedSplit(numbers)


def test_standardised_features_are_those_of_scikit_learn(case: dict[str, object]) -> None:
    standardised, fold = case["standardised"], case["fold"]
    assert np.allclose(standardised.whole(fold.training).numpy(), case["learnt"], atol=1e-6)
    assert np.allclose(standardised.whole(fold.test).numpy(), case["asked"], atol=1e-6)


def test_coordinates_keep_every_inner_product_with_training_pictures(case: dict[str, object]) -> None:
    fold, learnt, asked = case["fold"], case["learnt"], case["asked"]
    found = coordinates(case["standardised"], fold.training, fold.test)
    assert found.training.shape[1] == min(case["width"], len(fold.training))
    assert np.allclose(found.training @ found.training.T, learnt @ learnt.T, atol=1e-5 * case["width"])
    assert np.allclose(found.test @ found.training.T, asked @ learnt.T, atol=1e-5 * case["width"])


def test_ridge_agrees_with_scikit_learn(case: dict[str, object]) -> None:
    fold, width = case["fold"], case["width"]
    learnt_labels = case["labels"][fold.training]
    answer = ridge.classify(coordinates(case["standardised"], fold.training, fold.test), learnt_labels, 4, case["inner"])
    targets = np.where(np.arange(4) == learnt_labels[:, None], 1.0, -1.0)
    grid = {"alpha": [penalty * width for penalty in ridge.PENALTIES]}
    search = GridSearchCV(Ridge(), grid, scoring="neg_mean_squared_error", cv=split_of(case["inner"], len(learnt_labels)))
    assert answer.chosen * width == search.fit(case["learnt"], targets).best_params_["alpha"]
    theirs = RidgeClassifier(alpha=answer.chosen * width).fit(case["learnt"], learnt_labels)
    assert np.array_equal(answer.predictions, theirs.predict(case["asked"]))
    right = [
        RidgeClassifier(alpha=answer.chosen * width)
        .fit(case["learnt"][inner.training], learnt_labels[inner.training])
        .predict(case["learnt"][inner.test])
        == learnt_labels[inner.test]
        for inner in case["inner"]
    ]
    assert answer.inner_accuracy == np.concatenate(right).mean()


def test_logistic_regression_agrees_with_scikit_learn_on_all_features(case: dict[str, object]) -> None:
    fold, width, inner = case["fold"], case["width"], case["inner"][:2]
    learnt_labels, penalties = case["labels"][fold.training], (0.01, 1.0, 10.0)
    pictures = coordinates(case["standardised"], fold.training, fold.test)
    answer = logistic.classify(pictures, learnt_labels, inner, penalties)
    losses = dict.fromkeys(penalties, 0.0)
    with threadpool_limits(1, "blas"):
        for penalty, each in product(penalties, inner):
            model = LogisticRegression(C=1 / (penalty * width), tol=1e-7, max_iter=5000)
            model.fit(case["learnt"][each.training], learnt_labels[each.training])
            likelihoods = model.predict_proba(case["learnt"][each.test])
            losses[penalty] += log_loss(learnt_labels[each.test], likelihoods, labels=range(4), normalize=False)
        theirs = LogisticRegression(C=1 / (answer.chosen * width), tol=1e-7, max_iter=5000).fit(case["learnt"], learnt_labels)
    assert answer.chosen == min(losses, key=losses.__getitem__)
    assert np.array_equal(answer.predictions, theirs.predict(case["asked"]))


def test_nearest_neighbours_agree_with_scikit_learn(case: dict[str, object]) -> None:
    fold, labels = case["fold"], case["labels"]
    for k in (1, 5, 20):
        answer = neighbours.classify(case["standardised"], fold.training, fold.test, labels, 4, [k])
        model = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda distances: np.exp((1 - distances) / neighbours.TEMPERATURE)
        )
        model.fit(case["learnt"], labels[fold.training])
        assert answer.chosen == k
        # float32 tells two neighbours apart by a millionth, so that a vote may turn once in a thousand tests
        assert np.sum(answer.predictions != model.predict(case["asked"])) <= 1
        if k != 5:
            continue
        right = 0
        for place in range(len(fold.training)):  # each left out in turn
            rest = np.delete(np.arange(len(fold.training)), place)
            model.fit(case["learnt"][rest], labels[fold.training][rest])
            right += int(model.predict(case["learnt"][[place]])[0] == labels[fold.training][place])
        assert answer.inner_accuracy == pytest.approx(right / len(fold.training), abs=1.5 / len(fold.training))


def test_a_feature_that_does_not_vary_in_training_says_nothing(tmp_path: Path) -> None:
    features = np.array([[1, 3], [3, 3], [5, 3], [9, 8]], np.float32)
    found = Standardised(FeatureTable.of(tmp_path / "features", features), np.array([0, 1, 2]))
    assert np.allclose(found.whole(np.arange(4)), np.array([[-1.5, 0], [0, 0], [1.5, 0], [4.5, 0]]) * (2 / 3) ** 0.5)


def test_rows_of_a_table_come_in_chunks_and_selected_ones_are_numbered_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.evaluation.probe.table._CHUNK_VALUES", 6)  # 3 rows a chunk
    features = np.arange(20, dtype=np.float32).reshape(10, 2)
    table = FeatureTable.of(tmp_path / "features", features)
    rows = np.array([0, 2, 3, 7, 9])
    chunks = list(table.chunks(rows))
    assert [(places.start, places.stop) for places, _ in chunks] == [(0, 2), (2, 3), (3, 4), (4, 5)]
    assert np.array_equal(np.concatenate([values for _, values in chunks]), features[rows])
    some = table.only(np.array([1, 4, 5, 8]))
    assert len(some) == 4
    assert np.array_equal(np.concatenate([values for _, values in some.chunks(np.array([1, 3]))]), features[[4, 8]])


# ---- choices, by hand


def on_a_line(training: list[float], test: list[float]) -> Coordinates:
    """One coordinate a picture."""
    return Coordinates(torch.tensor(training).double()[:, None], torch.tensor(test).double()[:, None], 1)


def test_ridge_scores_and_penalty_by_hand() -> None:
    # centred coordinates -1, 1 and targets -1, 1: the weight is 2 / (2 + alpha), the score of 3 is three times that
    wanted = torch.tensor([[-1.0], [1.0]]).double()
    found = ridge.scores(torch.tensor([[-1.0], [1.0]]).double(), wanted, torch.tensor([[3.0]]).double(), [0.0001, 2.0, 6.0])
    assert [float(each) for each in found] == pytest.approx([3 * 2 / 2.0001, 1.5, 0.75])
    pictures = on_a_line([-0.5, 0.5, -1.0, 1.0], [0.2, -0.2])
    labels = np.array([0, 1, 0, 1])
    inner = [Fold(np.array([0, 1]), np.array([2, 3]))]
    # learnt on +-0.5: weight = 1 / (0.5 + alpha); 1 is exact for the held-out +-1 at alpha = 0.5
    answer = ridge.classify(pictures, labels, 2, inner, [0.1, 0.5, 3.0])
    assert (answer.chosen, answer.at_end, answer.inner_accuracy) == (0.5, "", 1.0)
    assert answer.predictions.tolist() == [1, 0]
    assert ridge.classify(pictures, labels, 2, inner, [0.5, 3.0]).at_end == "lower"
    assert ridge.classify(pictures, labels, 2, inner, [0.1, 0.5]).at_end == "upper"


def test_logistic_penalty_by_hand() -> None:
    # the inner test pictures contradict the training pictures, so that the strongest penalty, which believes least, loses least
    pictures = on_a_line([-1.0, 1.0, -1.0, 1.0], [2.0])
    inner = [Fold(np.array([0, 1]), np.array([2, 3]))]
    answer = logistic.classify(pictures, np.array([0, 1, 1, 0]), inner, [0.01, 1.0, 100.0])
    assert (answer.chosen, answer.at_end, answer.inner_accuracy) == (100.0, "upper", 0.0)
    answer = logistic.classify(pictures, np.array([0, 1, 0, 1]), inner, [0.01, 1.0, 100.0])
    assert (answer.chosen, answer.at_end, answer.inner_accuracy) == (0.01, "lower", 1.0)
    assert answer.predictions.tolist() == [1]


def test_the_number_of_neighbours_by_hand(tmp_path: Path) -> None:
    # directions in degrees: the training picture at 3 is one of class 1 among class 0, and deceives its neighbours at k = 1
    degrees = np.radians([0, 2, 3, 4, 6, 90, 92, 94, 96, 98, 3.2, 95])
    labels = np.array([0, 0, 1, 0, 0, 1, 1, 1, 1, 1, 0, 1])
    features = np.stack([np.cos(degrees), np.sin(degrees)], 1).astype(np.float32)
    table = Standardised(FeatureTable.of(tmp_path / "features", features), np.arange(10))
    table.mean, table.scale = torch.zeros(2).double(), torch.ones(2).double()  # the angles as they are
    training, test = np.arange(10), np.array([10, 11])
    answer = neighbours.classify(table, training, test, labels, 2, [1, 3])
    # left out in turn: with one neighbour 0 is right; 2 and 4 follow 3; 3 itself is wrong; 6 follows 4 and is right: 7 of 10.
    # with three: only 3 itself is wrong: 9 of 10
    assert (answer.chosen, answer.inner_accuracy) == (3, pytest.approx(0.9))
    assert answer.at_end == "upper"
    assert answer.predictions.tolist() == [0, 1]
    one = neighbours.classify(table, training, test, labels, 2, [1])
    assert (one.chosen, one.inner_accuracy, one.at_end) == (1, pytest.approx(0.7), "")
    assert one.predictions.tolist() == [1, 1]


def test_a_layer_is_chosen_by_its_accuracy_in_training_and_the_first_of_equals() -> None:
    assert chosen_layer([0.3, 0.5, 0.5, 0.2]) == 1
    assert best_of([2.0, 1.0, 1.0]) == 1


def test_an_end_of_a_grid_counts_if_it_is_better_than_its_neighbour() -> None:
    assert end_of_grid([3.0, 2.0, 2.5]) == ""
    assert end_of_grid([2.0, 2.1, 2.5]) == "lower"
    assert end_of_grid([2.5, 2.1, 2.0]) == "upper"
    assert end_of_grid([2.0, 2.001, 2.5]) == ""  # level
    assert end_of_grid([2.0]) == ""
    assert end_of_grid([2.0, 2.1], least=0.2) == ""


def test_folds_hold_every_row_once_with_every_class_and_follow_the_seed() -> None:
    labels = np.array([0] * 10 + [1] * 20 + [2] * 5)
    folds = stratified_folds(labels, 5, 7)
    assert np.array_equal(np.sort(np.concatenate([fold.test for fold in folds])), np.arange(35))
    for fold in folds:
        assert np.bincount(labels[fold.test]).tolist() == [2, 4, 1]
        assert not set(fold.training) & set(fold.test)
    assert all(np.array_equal(a.test, b.test) for a, b in zip(folds, stratified_folds(labels, 5, 7), strict=True))
    assert not all(np.array_equal(a.test, b.test) for a, b in zip(folds, stratified_folds(labels, 5, 8), strict=True))
    assert len(inner_folds(labels, 0)) == 5
    assert len(inner_folds(np.array([0, 0, 0, 1, 1, 1, 1]), 0)) == 3
    assert len(inner_folds(np.repeat([0, 1], 1500), 0)) == 1
