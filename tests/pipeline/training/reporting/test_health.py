"""A run that is not well is reported when it begins to be, and when it has recovered; nothing in between."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.objective import accuracy, discriminator
from pipeline.recipes.adversarial import WON
from pipeline.recipes.player import Collapse
from pipeline.training.reporting.health import CollapseWatch, Starvation


def changes(starvation: Starvation, fraction: float, steps: int, seconds: float = 0.5) -> list[bool]:
    """Returns the changes that were reported while steps waited for a fraction of their time."""
    return [starvation.present for _ in range(steps) if starvation.add(seconds, fraction * seconds)]


def test_a_rank_that_begins_to_starve_is_reported_once_and_so_is_its_recovery() -> None:
    starvation = Starvation(0.5, 10)
    assert changes(starvation, 0.1, 100) == []
    assert changes(starvation, 0.9, 200) == [True]
    assert starvation.fraction == pytest.approx(0.9, abs=0.01)
    assert changes(starvation, 0.1, 200) == [False]
    assert changes(starvation, 0.9, 200) == [True], "and the next time again"


def test_nothing_is_said_before_a_window_is_full_nor_of_one_slow_batch() -> None:
    starvation = Starvation(0.5, 10)
    assert changes(starvation, 1.0, 19) == []
    assert changes(starvation, 1.0, 1) == [True]
    starvation = Starvation(0.5, 10)
    assert changes(starvation, 0.0, 100) == []
    assert changes(starvation, 1.0, 1, seconds=4) == []


def test_a_fraction_that_wavers_about_the_limit_is_one_report() -> None:
    starvation = Starvation(0.5, 10)
    assert [change for _ in range(10) for fraction in (0.53, 0.47) for change in changes(starvation, fraction, 60)] == [True]


def test_a_limit_of_one_reports_nothing() -> None:
    assert changes(Starvation(1.0, 1), 1.0, 100) == []


BAD = {"adversarial": 0.002, "accuracy_real": 1.0, "accuracy_generated": 1.0}
GOOD = {"adversarial": 1.2, "accuracy_real": 0.8, "accuracy_generated": 0.7}


def reports(watch: CollapseWatch, row: dict[str, float], steps: int) -> list[bool]:
    return [watch.collapsed for _ in range(steps) if watch.add(row)]


def test_a_collapse_is_reported_once_and_so_is_its_end() -> None:
    watch = CollapseWatch(WON, 20)
    assert reports(watch, GOOD, 100) == []
    assert reports(watch, BAD, 100) == [True]
    assert watch.means == pytest.approx(BAD)
    assert reports(watch, GOOD, 100) == [False]
    assert reports(watch, BAD, 100) == [True]


@pytest.mark.parametrize(
    ("row", "collapsed"),
    [
        (BAD, True),
        ({**GOOD, "adversarial": 0.002}, True),
        ({**BAD, "adversarial": 0.5}, True),
        ({**BAD, "adversarial": 0.5, "accuracy_real": 0.9}, False),
        (GOOD, False),
    ],
)
def test_a_loss_near_nothing_or_an_accuracy_of_nearly_one_on_both_sides_is_a_collapse(row: dict[str, float], collapsed: bool) -> None:
    assert reports(CollapseWatch(WON, 10), row, 50) == [True] * collapsed


def test_a_few_steps_are_no_collapse() -> None:
    watch = CollapseWatch(WON, 20)
    assert [report for _ in range(10) for row in (BAD, GOOD) for report in reports(watch, row, 15)] == []


def test_losses_that_are_not_finite_or_not_there_say_nothing() -> None:
    watch = CollapseWatch(WON, 5)
    for row in ({**BAD, "adversarial": math.nan}, {**BAD, "accuracy_real": math.inf}, {}, {"adversarial": 0.0}):
        assert reports(watch, row, 20) == []
    assert reports(watch, BAD, 4) == []
    assert reports(watch, BAD, 1) == [True]


def test_a_declaration_of_one_kind_is_enough() -> None:
    assert reports(CollapseWatch(Collapse({"loss": 0.1}, {}, ""), 3), {"loss": 0.05}, 5) == [True]
    assert reports(CollapseWatch(Collapse({}, {"right": 0.9}, ""), 3), {"right": 0.95}, 5) == [True]
    assert reports(CollapseWatch(Collapse({}, {}, ""), 3), {"right": 0.95}, 5) == []


def test_what_the_recipe_declares_is_what_its_losses_are_called() -> None:
    real, generated = torch.full((4,), 20.0), torch.full((4,), -20.0)
    row = {
        "adversarial": float(discriminator(real, generated).mean()),
        **{k: float(v.mean()) for k, v in accuracy(real, generated).items()},
    }
    assert reports(CollapseWatch(WON, 3), row, 5) == [True]
