"""Rows of evaluations in; sentences, events and metrics out, each change of state once."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from monitoring.metrics.run_metrics import RunMetrics
from monitoring.run_files import EVALUATION, EVENTS
from pipeline.config import EvaluationConfig
from pipeline.training.record.run_folder import RunFolder, read_lines
from pipeline.training.reporting.learning import Learning, problems, sentence, stronger_baseline

WELL: dict[str, Any] = {
    "step": 1000,
    "attempt": 1,
    "pictures": 80,
    "choice": "these",
    "loss": 0.36,
    "l1": 18.0,
    "l2": 5.0,
    "psnr": 13.5,
    "baselines": {
        "constant": {"loss": 0.47, "l1": 24.0, "l2": 8.0, "psnr": 11.5},
        "visible_mean": {"loss": 0.4, "l1": 20.0, "l2": 6.0, "psnr": 12.8},
    },
    "gain": 0.1,
    "maps": {"relu1": 12, "relu2": 32},
    "dead_maps": {"relu1": 0, "relu2": 16},
    "output_spread": 0.6,
    "feature_dimensions": 9.0,
    "feature_spread": 0.4,
    "probe": None,
    "seconds": 1.0,
}
ILL = {
    "baseline": {"gain": -0.2, "l1": 24.0},
    "dead_maps": {"dead_maps": {"relu1": 0, "relu2": 17}},
    "constant_output": {"output_spread": 0.01},
    "collapsed_features": {"feature_dimensions": 1.2},
}
LENGTHS = {"feature_spread": 0.005}
"""Features that have collapsed onto a point, in however many dimensions."""


def gauges(metrics: RunMetrics) -> list[str]:
    """The figures of the newest evaluation as Prometheus gets them."""
    lines = generate_latest(metrics.registry).decode().splitlines()
    return [line for line in lines if re.match("context_encoder_(held_back|output_spread|feature|dead_maps)", line)]


@contextmanager
def learning(folder: Path, judge_after: int = 1000) -> Iterator[tuple[Learning, list[str], RunMetrics]]:
    said: list[str] = []
    metrics = RunMetrics("run", 0, 1, "node")
    with closing(RunFolder(folder, writes=True)) as run:
        yield Learning(EvaluationConfig(judge_after=judge_after), run, metrics, said.append), said, metrics


def reported(folder: Path) -> list[tuple[str, str]]:
    return [(row["event"], row["problem"]) for row in read_lines(folder / EVENTS)]


def shown(metrics: RunMetrics, problem: str) -> float:
    lines = generate_latest(metrics.registry).decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith("context_encoder_not_learning") and problem in line)


def test_the_stronger_baseline_is_the_one_to_beat() -> None:
    assert stronger_baseline(WELL) == "visible_mean"
    assert sentence(WELL) == "held back L1 18 %, visible mean 20 %: 10% better"
    assert sentence({**WELL, **ILL["baseline"]}) == "held back L1 24 %, visible mean 20 %: 20% worse"
    assert sentence({**WELL, "gain": math.nan, "l1": math.nan}).endswith("no number")
    probe = {"classes": 40, "chance": 0.03, "knn": 0.09, "ridge": 0.14}
    assert sentence({**WELL, "probe": probe}).endswith("labels by k-NN 9%, by ridge 14% (the largest of 40 classes: 3%)")
    assert problems(WELL) == {}, "half of a layer's maps may be dead"
    assert list(problems({**WELL, **LENGTHS})) == ["collapsed_features"]


def test_a_few_pictures_say_nothing_about_how_pictures_differ() -> None:
    """Features of two pictures lie on a line whatever the network."""
    ill = {**WELL, **ILL["dead_maps"], **ILL["constant_output"], **ILL["collapsed_features"]}
    assert problems({**ill, "pictures": 7}) == {}
    assert len(problems({**ill, "pictures": 8})) == 3
    assert list(problems({**ill, **ILL["baseline"], "pictures": 1})) == ["baseline"]


def test_figures_of_other_pictures_or_networks_are_not_taken_over(tmp_path: Path) -> None:
    with learning(tmp_path) as (watch, _, _):
        watch.add({**WELL, "step": 0, "l1": 40.0})
        watch.add(WELL)
    for step, choice in ((1000, "others"), (0, "these")):  # other pictures; a run that begins anew, perhaps with other networks
        with learning(tmp_path) as (watch, _, _):
            watch.resume(step, choice)
            assert not watch.has(0)
            watch.add({**WELL, "step": 2000, "choice": choice})
            assert "random start" not in watch.conclusion()


def test_a_run_without_an_evaluation_says_why(tmp_path: Path) -> None:
    with learning(tmp_path) as (watch, said, _):
        watch.not_evaluated("evaluation.every is 0")
        assert said == [watch.conclusion()] == ["not evaluated on pictures that are not trained on: evaluation.every is 0"]


@pytest.mark.parametrize("problem", ILL)
def test_each_problem_is_reported_once_and_its_end_too(problem: str, tmp_path: Path) -> None:
    ill = {**WELL, **ILL[problem]}
    assert list(problems(ill)) == [problem]
    with learning(tmp_path) as (watch, said, metrics):
        watch.resume(0, "these")
        assert shown(metrics, problem) == 0
        watch.add({**ill, "step": 999})
        assert (reported(tmp_path), shown(metrics, problem)) == ([], 0), "too early"
        watch.add(ill)
        watch.add({**ill, "step": 2000})
        assert reported(tmp_path) == [("not_learning", problem)]
        assert shown(metrics, problem) == 1
        assert problems(ill)[problem] in said[2]
        assert "not learning: " in watch.conclusion()
        watch.add({**WELL, "step": 3000})
        assert reported(tmp_path) == [("not_learning", problem), ("learning_again", problem)]
        assert shown(metrics, problem) == 0
        assert "not learning" not in watch.conclusion()
    assert [row["step"] for row in read_lines(tmp_path / EVALUATION)] == [999, 1000, 2000, 3000]


def test_a_network_that_gives_no_numbers_is_reported(tmp_path: Path) -> None:
    broken = {**WELL, **dict.fromkeys(("loss", "l1", "gain", "output_spread", "feature_dimensions"), math.nan)}
    assert set(problems(broken)) == {"baseline", "constant_output", "collapsed_features"}
    with learning(tmp_path) as (watch, _, metrics):
        watch.add(broken)
        figures = gauges(metrics)
    (line,) = (tmp_path / EVALUATION).read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["l1"] is None
    with learning(tmp_path) as (watch, said, metrics):
        watch.resume(1000, "these")
        assert gauges(metrics) == figures, "null is read as NaN"
        watch.add({**broken, "step": 2000})
        assert len(said) == 1, "no second report of the same problem"
        assert "no number" in watch.conclusion()


def test_an_attempt_takes_over_what_was_reported_before_it(tmp_path: Path) -> None:
    with learning(tmp_path) as (watch, _, _):
        watch.add({**WELL, "step": 0, "l1": 40.0, "gain": -1.0})
        watch.add({**WELL, **ILL["baseline"]})
        watch.add({**WELL, "step": 2000})  # undone: the next attempt continues from step 1000
    with learning(tmp_path) as (watch, said, metrics):
        watch.resume(1000, "these")
        assert (watch.has(1000), watch.has(2000)) == (True, False)
        assert shown(metrics, "baseline") == 1
        watch.add({**WELL, **ILL["baseline"], "step": 2000, "attempt": 2})
        assert len(said) == 1, "no second report of the same problem"
        assert watch.conclusion().startswith("held back L1 24 %, visible mean 20 %: 20% worse; the random start had 40 % (after step 2000")
        probe = {"classes": 40, "chance": 0.03, "knn": 0.09, "ridge": 0.14}
        watch.add({**WELL, "step": 0, "l1": 40.0, "probe": probe})
        assert "the random start had 40 %, k-NN 9%, ridge 14% (after" in watch.conclusion()


def test_a_run_that_ends_before_it_is_judged_says_so(tmp_path: Path) -> None:
    with learning(tmp_path) as (watch, _, _):
        watch.add({**WELL, **ILL["baseline"], "step": 10})
        assert watch.conclusion().endswith("too early to judge: evaluation.judge_after is 1,000 steps")


NAMED: dict[str, Any] = {
    **{key: value for key, value in WELL.items() if key not in ("l1", "l2", "psnr", "output_spread")},
    "pictures": 266,
    "loss": 1.7,
    "accuracy": 0.2,
    "unlabelled": 10,
    "baselines": {"chance": {"loss": 2.08, "accuracy": 0.125}, "largest_class": {"loss": 2.0, "accuracy": 0.1}},
    "gain": 0.086,
}
"""A row of a recipe that names a class. Of 256 pictures, 12.5 % + 2 * sqrt(0.125 * 0.875 / 256) = 16.63 % is more than luck."""
FEW, ONE = "too few pictures to tell", "all pictures are of one class, so a guess can't be beaten"


def test_named_classes_are_compared_with_the_better_guess() -> None:
    assert stronger_baseline(NAMED) == "chance"
    assert sentence(NAMED) == "held back accuracy 20 %, chance 12.5 %: better; 10 pictures have no label"
    assert problems(NAMED) == {}
    lucky = {**NAMED, "accuracy": 0.166}
    assert sentence(lucky).startswith("held back accuracy 16.6 %, chance 12.5 %: no better: it takes more than 16.6 %")
    assert list(problems(lucky)) == ["baseline"]
    assert "right no more often than by chance: 16.6 % against 12.5 %" in problems(lucky)["baseline"]
    assert problems({**NAMED, "accuracy": 0.1664}) == {}
    assert problems({**NAMED, "accuracy": math.nan}).keys() == {"baseline"}


@pytest.mark.parametrize(
    ("pictures", "unlabelled", "guess", "best", "wrong"),
    [
        (4, 0, 0.5, FEW, FEW),
        (64, 57, 0.125, FEW, FEW),
        (64, 56, 0.125, "better", "no better"),
        (30, 0, 0.9, FEW, "no better"),  # luck would explain an accuracy of 1, and nothing excuses one of 0
        (41, 0, 0.9, "better", "no better"),
        (1024, 0, 0.997, FEW, "no better"),
        (10_000, 0, 1.0, ONE, ONE),
    ],
)
def test_a_network_without_an_error_is_never_reported_and_one_without_a_hit_always_where_pictures_can_tell(
    pictures: int, unlabelled: int, guess: float, best: str, wrong: str, tmp_path: Path
) -> None:
    row = {
        **NAMED,
        "pictures": pictures,
        "unlabelled": unlabelled,
        "accuracy": 1.0,
        "baselines": {"chance": {"loss": 1.0, "accuracy": guess}},
    }
    failed, told = {**row, "accuracy": 0.0}, wrong == "no better"
    assert f"%: {best}" in sentence(row)
    assert f"%: {wrong}" in sentence(failed)
    assert problems(row) == {}
    assert problems(failed).keys() == ({"baseline"} if told else set())
    assert "more than luck" not in problems(failed).get("baseline", "") or (pictures, guess) in ((64, 0.125), (41, 0.9))
    with learning(tmp_path) as (watch, _, metrics):
        watch.add(failed)
        assert shown(metrics, "baseline") == told
        assert ("not learning" in watch.conclusion()) == told


def test_pictures_without_a_label_give_one_clear_sentence(tmp_path: Path) -> None:
    row = {**NAMED, "unlabelled": 266, "loss": math.nan, "accuracy": math.nan, "gain": math.nan}
    assert problems(row) == {}
    with learning(tmp_path) as (watch, said, _):
        watch.add({**row, "step": 0})
        watch.add(row)
        assert said[-1].endswith(": no accuracy on held-back pictures, because none of 266 pictures has a label")
        assert "nan" not in watch.conclusion()


def test_a_run_that_names_no_class_better_than_chance_is_reported_once(tmp_path: Path) -> None:
    with learning(tmp_path) as (watch, said, metrics):
        watch.add({**NAMED, "step": 0, "accuracy": 0.11})
        watch.add({**NAMED, "accuracy": 0.15})
        watch.add({**NAMED, "accuracy": 0.15, "step": 2000})
        assert reported(tmp_path) == [("not_learning", "baseline")]
        watch.add({**NAMED, "step": 3000})
        assert shown(metrics, "baseline") == 0
        assert watch.conclusion().startswith(
            "held back accuracy 20 %, chance 12.5 %: better; 10 pictures have no label; the random start had 11 %"
        )
    assert len(said) == 6
