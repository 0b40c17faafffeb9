"""The page says whether a run learns: against the stronger baseline and the random start, in words, tables and curves."""

from __future__ import annotations

import gc
import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from monitoring.metrics.definitions import PROBLEMS
from monitoring.report import write_run_page
from monitoring.report.evaluations import MOST_EVALUATIONS
from monitoring.report.record import read
from monitoring.report.summary import HEADLINES
from pipeline.training.reporting.learning import problems
from tests.conftest import ROOT
from tests.monitoring.report.runs import (
    BEGUN,
    Page,
    evaluation_row,
    history_row,
    start,
    write_evaluations,
    write_run,
    written,
)

START = evaluation_row(0, 0.97, output_spread=0.01, probe={"classes": 40, "chance": 0.03, "knn": 0.19, "ridge": 0.25})
END = {"time": BEGUN + 200, "event": "end", "step": 100, "reason": "finished"}


def painted_row(step: int, loss: float, attempt: int = 1) -> dict[str, Any]:
    """A line of the history of a network that is judged by its reconstruction."""
    return history_row(step, attempt, losses={"context_encoder": {"total": loss, "reconstruction": loss}})


def falling(step: int) -> float:
    """A loss that begins far above all that comes later."""
    return 2.2 if step < 4 else 0.5 - 0.001 * step


def finished(folder: Path, *losses: float, events: tuple[dict[str, Any], ...] = (), **more: Any) -> Path:
    """A finished run of 100 steps, evaluated at its start and at evenly spaced steps; `more` goes into the last evaluation."""
    run = write_run(folder, [start(1, 0), *events, END], [painted_row(step, falling(step)) for step in range(1, 101)])
    rows = [evaluation_row(100 * number // len(losses), loss) for number, loss in enumerate(losses, 1)]
    return write_evaluations(run, [START, *rows[:-1], {**rows[-1], **more}])


def chart_data(page: Page) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(page.source.partition('id="chart-data">')[2].partition("</script>")[0])["charts"]
    return found


def test_a_run_that_learns_says_by_how_much(tmp_path: Path) -> None:
    page = written(finished(tmp_path / "run", 0.5, 0.38, 0.352))
    assert ">finished<" in page.source
    assert page.found("span", "good")[0]["class"] == "state good"
    said = "held-back L1 8.8 %, visible mean 9.9 %: 11 % better; random start 24.2 %"
    assert f"All 100 steps are done: {said}." in page.source
    assert f"{said[0].upper()}{said[1:]}." in page.source, "in the part of the page, too"
    assert "11 % better than the visible mean" in page.source, "among the figures"
    assert 'href="#learning"' in page.source
    assert page.found("section")[0]["id"] == "learning", "before everything else"


@pytest.mark.parametrize(("loss", "word"), [(0.41, "3.5 % worse"), (0.396, "no better"), (math.nan, "not better")])
def test_a_finished_run_that_beats_no_baseline_is_not_green(tmp_path: Path, loss: float, word: str) -> None:
    page = written(finished(tmp_path / "run", 0.5, loss))
    (state,) = page.found("span", "state")
    assert state["class"] == "state warn"
    assert ">finished, baseline not beaten<" in page.source
    assert "the network paints no better than the visible mean" in page.source
    assert f"visible mean 9.9 %: {word}; random start 24.2 %" in page.source
    assert "too early" not in page.source
    (tmp_path / "run" / "config.yaml").write_text("evaluation: {judge_after: 1000}")
    assert "too early to judge: evaluation.judge_after is 1,000 steps" in written(tmp_path / "run").source


def test_a_run_that_was_better_once_says_when(tmp_path: Path) -> None:
    assert "It was 11 % better at step 50." in written(finished(tmp_path / "run", 0.352, 0.41)).source
    assert "It was" not in written(finished(tmp_path / "never", 0.42, 0.41)).source


def test_the_random_start_alone_is_no_verdict(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [start(1, 0), END], [painted_row(step, 0.5) for step in range(1, 101)])
    page = written(write_evaluations(run, [START]))
    assert page.found("span", "state")[0]["class"] == "state good"
    assert "Only the random start has been evaluated." in page.source


NOT_LEARNING = (
    {"time": BEGUN + 100, "event": "not_learning", "step": 50, "problem": "dead_maps", "message": "230 of 256 maps of relu5 never fire."},
    {"time": BEGUN + 100, "event": "not_learning", "step": 50, "problem": "baseline", "message": "The network is no better than a colour."},
)


def test_problems_of_learning_are_notes_until_they_end(tmp_path: Path) -> None:
    page = written(finished(tmp_path / "both", 0.352, events=NOT_LEARNING))
    assert "230 of 256 maps of relu5 never fire since step 50: docs/operations.md, Maps of the network are dead." in page.source
    assert "The network is no better than a colour since step 50: docs/operations.md, The network is no better" in page.source
    assert page.found("span", "state")[0]["class"] == "state warn", "the baseline is beaten, and still all is not well"
    assert "finished, with problems" in page.source
    over = {"time": BEGUN + 150, "event": "learning_again", "step": 80, "problem": "baseline"}
    record = read(finished(tmp_path / "one", 0.352, events=(*NOT_LEARNING, over)))
    assert list(record.states) == [("not_learning", "dead_maps")]
    again = [{**each, "event": "learning_again"} for each in NOT_LEARNING]
    assert written(finished(tmp_path / "none", 0.352, events=(*NOT_LEARNING, *again))).found("span", "state")[0]["class"] == "state good"


def test_a_later_attempt_takes_over_the_problems_of_the_step_that_it_continues_from(tmp_path: Path) -> None:
    dead, baseline = NOT_LEARNING
    over = {"event": "learning_again", "step": 60, "problem": "dead_maps"}
    for continued, expected in ((40, set()), (50, {"dead_maps", "baseline"}), (60, {"baseline"})):
        run = write_run(tmp_path / str(continued), [start(1, 0), dead, baseline, over, start(2, continued)], [])
        assert {who for _, who in read(run).states} == expected


def test_the_notes_name_parts_of_the_documents() -> None:
    headlines = {line.removeprefix("## ") for line in (ROOT / "docs/operations.md").read_text().splitlines() if line.startswith("## ")}
    assert set(HEADLINES) == set(PROBLEMS)
    assert set(HEADLINES.values()) <= headlines


def test_tables_show_scores_dead_maps_spreads_and_the_probe(tmp_path: Path) -> None:
    page = written(finished(tmp_path / "run", 0.34, 0.352, dead_maps={"relu1": 3, "relu5": 235}, feature_dimensions=1.04))
    cells = page.source.partition('<section id="learning"')[2].partition("</section>")[0]
    for expected in (
        "network at step 100",
        "best, at step 50",
        "random start",
        "one colour",
        "8.8 %",
        "16.9 dB",
        ">235<",
        "91.8 %",
        "1.04",
        "0.01",
        "21 %",
        "19 %",
        "40 classes",
    ):
        assert expected in cells, expected
    assert cells.count('<div class="wide" tabindex="0" role="region" aria-label="') == 4, "every table can be reached and has a name"


def test_evaluations_of_steps_that_were_taken_back_count_nowhere(run: Path) -> None:
    """The first attempt trained 12 steps, and the second one continued from step 8."""
    rows = [
        START,
        evaluation_row(4, 0.6),
        evaluation_row(8, 0.5),
        evaluation_row(12, 0.1),
        evaluation_row(8, 0.51, 2),
        evaluation_row(16, 0.36, 2),
    ]
    record = read(write_evaluations(run, rows))
    assert [(row.step, row.scores.loss) for row in record.evaluations.rows] == [(0, 0.97), (4, 0.6), (8, 0.51), (16, 0.36)]
    assert (record.evaluations.undone, record.evaluations.count) == (1, 5)
    assert record.evaluations.best is not None
    assert record.evaluations.best.step == 16
    assert "Without 1 evaluation of steps that were taken back." in written(run).source
    (run / "events.jsonl").unlink()
    assert [row.step for row in read(run).evaluations.rows] == [0, 4, 8, 16], "the history alone decides as well"


@pytest.mark.parametrize("before", ["other", None])
def test_figures_on_other_pictures_are_not_compared(tmp_path: Path, before: str | None) -> None:
    run = finished(tmp_path / "run", 0.4)
    old = {} if before is None else {"choice": before}
    rows = [{**START, **old}, {**evaluation_row(25, 0.2), **old}, *(evaluation_row(step, 0.41, choice="new") for step in (50, 75, 100))]
    found = read(write_evaluations(run, rows)).evaluations
    assert found.start is None
    assert found.best is not None
    assert (found.best.step, found.best.choice) == (50, "new")
    assert [row.step for row in found.rows] == [50, 75, 100]
    assert (found.count, found.others) == (3, 2)
    page = written(run)
    assert "held-back L1 10.2 %, visible mean 9.9 %: 3.5 % worse." in page.source, "without a random start"
    assert "It was" not in page.source
    assert "3 evaluations on 256 pictures that the run never trains on, with the same crops and random draws each time;" in page.source
    assert "Without 2 evaluations on other pictures" in page.source
    assert len(chart_data(page)[0]["lines"][1]["m"]) == 3, "nor drawn as one curve"
    write_evaluations(run, [{**START, "choice": "new"}, *rows])
    assert read(run).evaluations.start is None, "the last line of step 0 counts"
    write_evaluations(run, [*rows[:1], {**START, "choice": "new"}, *rows[1:]])
    assert "random start 24.2 %" in written(run).source


def test_of_several_lines_of_one_step_the_last_counts(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", 0.4)
    rows = [
        START,
        evaluation_row(40, 0.36),
        evaluation_row(50, 0.2),
        evaluation_row(50, 0.38),
        evaluation_row(100, 0.3),
        evaluation_row(100, 0.39),
    ]
    found = read(write_evaluations(run, rows)).evaluations
    assert [(row.step, row.scores.loss) for row in found.rows] == [(0, 0.97), (40, 0.36), (50, 0.38), (100, 0.39)]
    assert found.best is not None
    assert found.best.step == 40


def test_a_run_may_return_to_the_pictures_that_it_began_with_and_many_choices_take_little_memory(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", 0.4)
    rows = [
        {**START, "choice": "a"},
        evaluation_row(10, 0.35, choice="a"),
        evaluation_row(20, 0.1, choice="b"),
        evaluation_row(30, 0.36, choice="a"),
    ]
    found = read(write_evaluations(run, rows)).evaluations
    assert found.start is not None
    assert found.best is not None
    assert (found.best.step, found.count, found.others) == (10, 3, 1)
    write_evaluations(run, [START, *(evaluation_row(step, 0.4, choice=str(step) * 60) for step in range(1, 100))])
    found = read(run).evaluations
    assert (found.count, found.others, len(found.rows)) == (1, 99, 1)
    assert found.newest is not None
    assert len(found.newest.choice) <= 200


@pytest.mark.parametrize("pictures", [7, 8])
@pytest.mark.parametrize(
    ("figures", "problem"),
    [
        ({"dead_maps": {"relu1": 48, "relu5": 128}}, None),
        ({"dead_maps": {"relu1": 49, "relu5": 128}}, "dead_maps"),
        ({"output_spread": 0.05}, None),
        ({"output_spread": 0.049}, "constant_output"),
        ({"feature_dimensions": 1.5}, None),
        ({"feature_dimensions": 1.49}, "collapsed_features"),
        ({"feature_spread": 0.01}, None),
        ({"feature_spread": 0.0099}, "collapsed_features"),
    ],
)
def test_the_page_warns_of_figures_that_the_run_reports(
    tmp_path: Path, figures: dict[str, Any], problem: str | None, pictures: int
) -> None:
    row = evaluation_row(100, 0.352, pictures=pictures, **figures)
    expected = [problem] if problem and pictures >= 8 else []
    assert list(problems(row)) == expected
    page = written(finished(tmp_path / "run", 0.352, pictures=pictures, **figures)).source
    tables = page.partition("<h3>Outputs and features</h3>")[2].partition("<h3>Probe")[0]
    assert tables.count('<span class="dot warn">') == len(expected)


def test_baselines_and_held_back_losses_are_in_the_chart_of_the_loss(tmp_path: Path) -> None:
    page = written(finished(tmp_path / "run", 0.5, 0.38, 0.352))
    assert "Context encoder: reconstruction loss" in page.source
    curves = page.source.partition('<section id="curves"')[2].partition("</section>")[0]
    assert curves.count('<line class="level"') == 2
    assert "visible mean 0.395</text>" in curves
    assert "one colour 0.474</text>" in curves
    loss = chart_data(page)[0]
    assert [len(line["i"]) for line in loss["lines"]] == [100, 4]
    assert loss["lines"][1]["m"] == [0.97, 0.5, 0.38, 0.352]
    label = next(each["aria-label"] for each in page.found("div", "plot") if "reconstruction" in each["aria-label"])
    assert "held back: 0.97 at step 0, 0.352 at step 100" in label
    assert "visible mean: 0.395" in label


def test_the_first_steps_do_not_squeeze_the_curve_and_are_named(tmp_path: Path) -> None:
    page = written(finished(tmp_path / "run", 0.5, 0.38, 0.352))
    loss = chart_data(page)[0]
    assert 0.5 <= loss["high"] <= 0.6, "not 2.2"
    assert "Beyond this axis: values of the first steps, up to 2.2." in page.source
    later = [painted_row(step, 2.2 if step == 60 else 0.4) for step in range(1, 101)]
    run = write_evaluations(write_run(tmp_path / "spike", [start(1, 0), END], later), [START, evaluation_row(100, 0.38)])
    page = written(run)
    assert chart_data(page)[0]["high"] >= 2.2, "a spike later on is never hidden"
    assert "Beyond this axis: values of the first steps, up" not in page.source


def test_a_run_without_evaluations_is_shown_as_ever(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", 0.352)
    (run / "evaluation.jsonl").unlink()
    page = written(run)
    assert ">finished<" in page.source
    assert "All 100 steps are done." in page.source
    assert "learning" not in page.source.partition("<main>")[2].partition("<footer>")[0].replace("Learning rate", "")
    assert not page.found("line", "level")
    assert chart_data(page)[0]["high"] >= 2.2
    assert read(run).problems == []


def test_many_evaluations_take_little_memory_and_keep_first_best_and_newest(tmp_path: Path) -> None:
    peaks = []
    for number in (500, 500, 2000):  # the first reading is not measured, because it fills the caches of what it calls
        run = write_run(tmp_path / "run", [start(1, 0)], [painted_row(10 * number, 0.4)])
        rows = [START, *(evaluation_row(10 * step, 0.2 if step == 321 else 0.4) for step in range(1, number + 1))]
        write_evaluations(run, rows)
        gc.collect()
        tracemalloc.start()
        found = read(run).evaluations
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(found.rows) <= MOST_EVALUATIONS
        assert found.count == number + 1
        assert (found.rows[0].step, found.rows[-1].step) == (0, 10 * number)
        assert found.best is not None
        assert found.best.step == 3210
        distances = {after.step - before.step for before, after in zip(found.rows, found.rows[1:], strict=False)}
        assert len(distances) <= 2, "evenly spread, but for the newest"
    assert peaks[2] < 2 * peaks[1], "3.6 times as much where all are kept"


def test_damaged_evaluations_are_left_out_and_counted(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", 0.352)
    whole = read(run).evaluations
    with open(run / "evaluation.jsonl", "a") as file:
        file.write('nonsense\n{"step": 100}\n{"loss": 1}\n[1]\n{"step": -1, "loss": 0.1}\n{"step": 100, "lo')
    report = write_run_page(run)
    assert [each for each in report.problems if "evaluation.jsonl" in each] == [
        "evaluation.jsonl: 5 damaged lines were left out.",
        "evaluation.jsonl: its last line is cut short and was left out.",
    ]
    assert read(run).evaluations == whole


def test_a_recipe_without_a_reconstruction_loss_gets_a_chart_of_its_held_back_loss(tmp_path: Path) -> None:
    history = [history_row(step, 1, losses={"classifier": {"total": 0.5}}) for step in range(1, 101)]
    run = write_run(tmp_path / "run", [start(1, 0), END], history)
    page = written(write_evaluations(run, [{**START, "probe": None}, evaluation_row(100, 0.352, probe=None, maps={})]))
    assert "Held-back loss" in page.source.partition('<section id="learning"')[2].partition("</section>")[0]
    assert "Probe" not in page.source
    assert "Dead maps" not in page.source
