"""The page of a run whose network names a class: accuracies beside those of guesses, and pictures without a label left out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from monitoring.report.evaluations import Evaluation, Scores
from monitoring.report.learning import verdict
from monitoring.report.record import read
from tests.monitoring.report.runs import BEGUN, evaluation_row, history_row, start, write_evaluations, write_run, written

END = {"time": BEGUN + 200, "event": "end", "step": 100, "reason": "finished"}
GUESSES = {"chance": {"loss": 2.079, "accuracy": 0.125}}


def named(folder: Path, *accuracies: float, unlabelled: int = 3) -> Path:
    """A finished run of a network that names one of eight classes."""

    def row(step: int, accuracy: float) -> dict[str, Any]:
        painted = ("l1", "l2", "psnr", "output_spread")
        kept = {key: value for key, value in evaluation_row(step, 2.08 - accuracy).items() if key not in painted}
        return {**kept, "accuracy": accuracy, "unlabelled": unlabelled, "baselines": GUESSES}

    losses = {"total": 2.0, "cross_entropy": 2.0, "accuracy": 0.2}
    run = write_run(folder, [start(1, 0), END], [history_row(step, 1, losses={"classifier": losses}) for step in range(1, 101)])
    return write_evaluations(run, [row(100 * number // (len(accuracies) - 1), each) for number, each in enumerate(accuracies)])


def test_the_accuracy_of_named_classes_is_shown_beside_chance(tmp_path: Path) -> None:
    page = written(named(tmp_path / "run", 0.12, 0.3, 0.25))
    assert page.found("span", "good")[0]["class"] == "state good"
    assert "held-back accuracy 25 %, chance 12.5 %: better; random start 12 %" in page.source
    assert "best, at step 50" in page.source
    pictures = evaluation_row(0, 1.0)["pictures"]
    assert f"Judged by {pictures - 3} pictures. Left out: 3 pictures without a label." in page.source
    assert "the most frequent class" not in page.source
    for title in ("Held-back accuracy", "Classifier: accuracy", "Classifier: cross entropy loss", "baseline's errors taken away"):
        assert title in page.source.replace("&#x27;", "'"), title
    assert "accuracy loss" not in page.source
    assert ">L1<" not in page.source


def test_curves_of_a_partly_labelled_set_have_the_scale_of_the_held_back_one(tmp_path: Path) -> None:
    shares = (0.75, 0.5, 1.0, 0.0)
    means = [{"total": 2 * (1 - share), "cross_entropy": 2 * (1 - share), "accuracy": 0.5 * (1 - share)} for share in shares]
    parts = [{**each, "unlabelled": share} for each, share in zip(means, shares, strict=True)]
    history = [history_row(step, 1, losses={"classifier": each}) for step, each in enumerate(parts, 1)]
    curves = read(write_run(tmp_path / "run", [start(1, 0)], history)).curves
    for name, value in ((("loss", "classifier", "cross_entropy"), 2.0), (("accuracy", "classifier", "training"), 0.5)):
        found = [bucket for _, bucket in sorted(curves[name].counted.items())]
        assert [bucket.mean for bucket in found] == [value] * 3, f"{name}: no figure of a batch without a label"
        assert not any(bucket.nonfinite for bucket in found)
    unlabelled = curves["accuracy", "classifier", "unlabelled"].counted
    assert [bucket.mean for _, bucket in sorted(unlabelled.items())] == list(shares)


def test_an_accuracy_that_luck_explains_is_not_green(tmp_path: Path) -> None:
    page = written(named(tmp_path / "run", 0.12, 0.15))
    assert page.found("span", "state")[0]["class"] == "state warn"
    assert "the network names classes no better than chance: held-back accuracy 15 %, chance 12.5 %: no better" in page.source


@pytest.mark.parametrize(
    ("accuracy", "guess", "beats", "words"),
    [
        (0.0, 0.9, False, "no better"),
        (0.95, 0.9, None, "too few pictures to tell"),
        (1.0, 1.0, None, "all pictures are of one class, so a guess can't be beaten"),
    ],
)
def test_the_page_judges_an_accuracy_as_the_run_does(accuracy: float, guess: float, beats: bool | None, words: str) -> None:
    found = Evaluation(100, 30, Scores(accuracy=accuracy), {"largest_class": Scores(accuracy=guess)})
    assert found.beats_baselines is beats
    assert verdict(found) == words


def test_few_pictures_of_a_known_class_say_nothing(tmp_path: Path) -> None:
    pictures = evaluation_row(0, 1.0)["pictures"]
    page = written(named(tmp_path / "few", 0.12, 1.0, unlabelled=pictures - 7))
    assert page.found("span", "state")[0]["class"] == "state good"
    assert "held-back accuracy 100 %, chance 12.5 %: too few pictures to tell" in page.source
    assert "All 100 steps are done" in page.source
    page = written(named(tmp_path / "none", math.nan, math.nan, unlabelled=pictures))
    assert f"no held-back accuracy, because none of {pictures} pictures has a label" in page.source
    assert ">L1<" not in page.source
