"""Intervals and verdicts by hand, and on answers whose truth is known."""

from __future__ import annotations

import random

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.evaluation.probe.intervals import accuracy, difference
from pipeline.evaluation.probe.pictures import ProbeError, divided
from pipeline.evaluation.probe.verdict import compare, too_few

COMPARISONS = 24
"""Eight layers and three classifiers."""


def answers(right: int, count: int) -> NDArray[np.bool_]:
    return np.arange(count) < right


def test_the_interval_of_an_accuracy_is_wilsons() -> None:
    # 8 of 10: the textbook's 0.490 to 0.943
    found = accuracy(answers(8, 10))
    assert (found.value, found.lower, found.upper) == (pytest.approx(0.8), pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert accuracy(answers(0, 10)).lower == pytest.approx(0.0, abs=1e-12)
    assert accuracy(answers(10, 10)).upper == pytest.approx(1.0)
    assert accuracy(answers(0, 10)).upper > 0.2


def test_the_interval_of_a_difference_by_hand() -> None:
    # 100 pictures: both right on 50, the first alone on 20, the other alone on 10. With half a picture more in each outcome the
    # difference is 10 / 102 and its error sqrt(31 - 100 / 102) / 102
    first = np.repeat([True, True, False, False], [50, 20, 10, 20])
    other = np.repeat([True, False, True, False], [50, 20, 10, 20])
    found = difference(first, other)
    assert found.value == pytest.approx(0.1)
    middle, error = 10 / 102, (31 - 100 / 102) ** 0.5 / 102
    assert (found.lower, found.upper) == (pytest.approx(middle - 1.959964 * error), pytest.approx(middle + 1.959964 * error))
    back = difference(other, first)
    assert (back.lower, back.upper) == (pytest.approx(-found.upper), pytest.approx(-found.lower))
    same = difference(first, first)
    assert (same.value, same.lower) == (0.0, pytest.approx(-same.upper))


def test_the_interval_holds_the_true_difference_as_often_as_it_says(draw: random.Random) -> None:
    made = np.random.default_rng(draw.randrange(1 << 32))
    held = 0
    for _ in range(400):
        outcome = made.choice(4, size=300, p=[0.4, 0.2, 0.1, 0.3])  # both, first alone, other alone, neither: the difference is 0.1
        found = difference(outcome <= 1, (outcome == 0) | (outcome == 2))
        held += found.lower < 0.1 < found.upper
    assert 0.9 < held / 400 <= 0.995


def test_better_worse_and_not_distinguishable(draw: random.Random) -> None:
    made = np.random.default_rng(draw.randrange(1 << 32))
    start = made.random(4000) < 0.4
    better = start | (made.random(4000) < 0.1)
    assert compare(better, [start], COMPARISONS, False).verdict == "better"
    assert compare(start, [better], COMPARISONS, False).verdict == "worse"
    assert compare(start, [start], COMPARISONS, False).verdict == "not distinguishable"
    assert compare(better, [start], COMPARISONS, True).verdict == "too few pictures"
    # of several random starts each has to be beaten
    both = compare(better, [start, better], COMPARISONS, False)
    assert both.verdict == "not distinguishable"
    assert both.difference.value == 0


def test_answers_to_random_labels_are_not_distinguishable_in_all_comparisons_at_once(draw: random.Random) -> None:
    made = np.random.default_rng(draw.randrange(1 << 32))
    verdicts = []
    for _ in range(20 * COMPARISONS):
        verdicts.append(compare(made.random(3000) < 0.1, [made.random(3000) < 0.1], COMPARISONS, False).verdict)
    assert sum(verdict != "not distinguishable" for verdict in verdicts) <= 9  # one in 480 is the expectation


def test_few_pictures_get_a_warning_with_the_numbers() -> None:
    labels = np.arange(220) % 10
    names = [f"class {number}" for number in range(10)]
    sentence = too_few(labels, names)
    assert sentence is not None
    assert "220 pictures of 10 classes" in sentence
    assert "8.4 points" in sentence
    assert "no verdict" in sentence
    assert too_few(np.arange(1000) % 10, names) is None
    small = too_few(np.array([0] * 2000 + [1] * 9), ["a", "b"])
    assert small is not None
    assert "class b has 9 pictures" in small


def test_an_interval_around_0_that_is_wider_than_published_gains_is_no_verdict() -> None:
    # the two disagree on every picture of 1,000
    assert compare(answers(700, 1000), [~answers(700, 1000)], 1, False).verdict == "better"
    assert compare(answers(520, 1000), [~answers(520, 1000)], 1, False).verdict == "too few pictures"


# ---- the pictures that are taken


def test_pictures_without_label_and_small_classes_are_left_out_and_named() -> None:
    labels = np.array([0] * 6 + [1] * 2 + [2] * 5 + [-1] * 3)
    found = divided(np.arange(16), labels, ("cat", "dog", "owl"), 5, None, 0)
    assert found.classes == ("cat", "owl")
    assert found.numbers.tolist() == [*range(6), *range(8, 13)]
    assert found.labels.tolist() == [0] * 6 + [1] * 5
    assert found.notes == (
        "3 pictures without a label are left out",
        "classes with fewer than 5 pictures (--folds) are left out: dog (2)",
    )


def test_a_limit_draws_as_many_of_every_class_by_the_seed() -> None:
    labels = np.array([0] * 50 + [1] * 8 + [2] * 30)
    found = divided(np.arange(88), labels, ("a", "b", "c"), 5, 10, 3)
    assert np.bincount(found.labels).tolist() == [10, 8, 10]
    assert found.numbers.tolist() == sorted(found.numbers.tolist())
    assert found.numbers.tolist() == divided(np.arange(88), labels, ("a", "b", "c"), 5, 10, 3).numbers.tolist()
    assert found.numbers.tolist() != divided(np.arange(88), labels, ("a", "b", "c"), 5, 10, 4).numbers.tolist()
    assert found.numbers.max() > 60  # drawn, not the first ones


def test_fewer_than_two_classes_are_refused_with_advice() -> None:
    with pytest.raises(ProbeError, match="two classes with 5 pictures or more, and there are 1"):
        divided(np.arange(9), np.array([0] * 6 + [1] * 3), ("a", "b"), 5, None, 0)
