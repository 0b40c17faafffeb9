"""The page shows what the run folder holds, stays small, and is written however damaged the folder is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring.report import write_run_page
from monitoring.report.lines import LONGEST_LINE, Lines
from monitoring.report.page import LARGEST
from monitoring.report.pictures import MOST_FOLLOWED, MOST_PICTURES, MOST_STEPS
from monitoring.report.record import NEWEST_EVENTS, read
from pipeline.training.record.run_folder import RunFolder
from tests.monitoring.report.runs import (
    BEGUN,
    Page,
    draw,
    draw_grid,
    evaluation_row,
    history_row,
    start,
    write_evaluations,
    write_run,
    written,
)


def test_steps_that_were_taken_back_are_marked_and_count_nowhere(run: Path) -> None:
    record = read(run)
    first, second = record.attempts
    assert (first.counted, first.undone, second.counted, second.undone) == (8, 4, 12, 0)
    curve = record.curves[("loss", "generator", "total")]
    assert sorted(curve.undone) == [9, 10, 11, 12]
    assert [curve.counted[step].mean for step in range(9, 21)] == [5.0] * 12, "the steps of the second attempt, not a mean of both"
    page = written(run)
    assert page.found("path", "undone"), "drawn, and differently from the others"
    assert "4 steps taken back" in page.source
    assert "All 20 steps are done" in page.source
    assert ">160<" in page.source, "images: 20 steps of 8, not 24"


def test_it_reads_what_the_run_folder_writes(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", writes=True)
    folder.write_config({"recipe": "features", "training": {"steps": 4}})
    folder.event("start", attempt=1, world_size=3, step=0, global_batch=6, recipe="features")
    folder.history(history_row(step, 1) for step in range(1, 5))
    folder.event("end", step=4, reason="finished")
    folder.close()
    draw(folder.path, 4).rename(folder.picture(4))
    record = read(folder.path)
    assert record.problems == []
    assert record.is_finished
    assert (record.steps, record.planned, record.attempts[0].counted, record.attempts[0].world_size) == (4, 4, 4, 3)
    assert [step for step, _ in record.pictures] == [4]


def test_the_largest_run_stays_below_five_megabytes(tmp_path: Path) -> None:
    events = [
        start(number, number, message="<&\"'>" * 300, versions={f"package {name}": "<" * 200 for name in range(100 * (number == 1000))})
        for number in range(1, 1001)
    ]
    events += [{"time": BEGUN, "event": f"kind {number % 90}", "message": "<&'\">" * 400, "step": number} for number in range(1100)]
    losses = {f"player <{player}>": {f"part & {part}": 1.0 for part in range(9)} for player in range(9)}
    spread = np.random.default_rng(0).normal(size=700)
    history = [
        history_row(
            step, 1000 if step > 3000 else 1, losses={who: dict.fromkeys(parts, float(spread[step % 700])) for who, parts in losses.items()}
        )
        for step in range(1, 5000, 7)
    ]
    sections = {f"section {number}": {f"key {key}": "<&>" * 90 for key in range(10)} for number in range(50)}
    run = write_run(tmp_path / "run", events, history, **sections)
    layers = {f"layer & {number}": 9 for number in range(100)}
    baselines = {f"<baseline> {number}" * 9: {"loss": 0.3 + number} for number in range(9)}
    more: dict[str, Any] = {"maps": layers, "dead_maps": layers, "baselines": baselines}
    rows = [evaluation_row(step, float(spread[step % 700]), 1000, **more) for step in range(1000)]
    write_evaluations(run, rows)
    first = draw_grid(run, 0, torch.rand(4, 3, 144, 144, generator=torch.Generator().manual_seed(0)))
    for step in range(1, 1000):
        os.link(first, run / "pictures" / f"step_{step:09d}.png")
    with open(run / "quarantine.jsonl", "w") as file:
        for number in range(100):
            file.write(
                json.dumps({"sample_id": number, "name": "<" * 500, "shard": "&" * 500, "cause": "digest", "reason": "'" * 900}) + "\n"
            )
    report = write_run_page(run)
    assert report.bytes < LARGEST
    source = report.path.read_text(encoding="utf-8")
    followed = MOST_FOLLOWED * (MOST_STEPS + 2)
    assert source.count("<img ") == MOST_PICTURES + followed + 1, "and the empty image of the viewer"
    assert 100 < source.count('class="kind"') <= NEWEST_EVENTS
    assert "earlier attempts are not listed" in source
    assert "older ones are in events.jsonl" in source
    assert "more settings are in config.yaml" in source


@pytest.mark.parametrize("missing", ["events.jsonl", "history.jsonl", "config.yaml"])
def test_missing_files_are_named(run: Path, missing: str) -> None:
    (run / missing).unlink()
    report = write_run_page(run)
    assert any(missing in problem for problem in report.problems)
    page = Page(report.path)
    assert missing in page.source
    assert len(page.found("section")) >= 7


def test_without_events_the_history_alone_decides_which_steps_count(run: Path) -> None:
    expected = [(each.number, each.counted, each.undone) for each in read(run).attempts]
    (run / "events.jsonl").unlink()
    assert [(each.number, each.counted, each.undone) for each in read(run).attempts] == expected


def test_damaged_lines_are_left_out_and_counted(run: Path) -> None:
    whole = read(run)
    for name in ("events.jsonl", "history.jsonl"):
        lines = (run / name).read_bytes().splitlines(keepends=True)
        junk = [
            b"\0" * 50 + b"\n",
            b'{"step": 1, "atte\n',
            b"[" * 50_000 + b"\n",
            b"x" * (2 * LONGEST_LINE) + b"\n",
            b"17\n",
            b"\xff\xfe\n",
        ]
        (run / name).write_bytes(b"".join([*junk, *lines, b'{"step": 999, "loss']))
    record = read(run)
    assert [(each.counted, each.undone) for each in record.attempts] == [(each.counted, each.undone) for each in whole.attempts]
    assert sum("6 damaged lines" in problem for problem in record.problems) == 2
    assert sum("cut short" in problem for problem in record.problems) == 2
    assert "6 damaged lines" in written(run).source


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = [
    "step",
    "attempt",
    "event",
    "time",
    "losses",
    "gradient_norms",
    "rate",
    "skipped",
    "world_size",
    "global_batch",
    "reason",
    "message",
]
KINDS = st.sampled_from(
    ["start", "end", "checkpoint", "stall", "rank_died", "collapse", "restart", "starving", "not_learning", "learning_again"]
)
SCORES = st.dictionaries(st.sampled_from(["loss", "l1", "l2", "psnr", "chance", "knn", "ridge", "classes"]), JSON | st.floats(), max_size=5)
EVALUATIONS = st.fixed_dictionaries(
    {"step": st.integers(0, 9) | JSON, "loss": st.floats() | JSON},
    optional={
        "attempt": st.integers(0, 3) | JSON,
        "baselines": st.dictionaries(st.text(max_size=4), SCORES | JSON, max_size=3) | JSON,
        "maps": st.dictionaries(st.sampled_from("ab"), st.integers(-1, 9) | JSON) | JSON,
        "dead_maps": st.dictionaries(st.sampled_from("ab"), st.integers(-1, 9) | JSON) | JSON,
        "probe": SCORES | JSON,
        "pictures": JSON,
        "feature_spread": st.floats() | JSON,
    },
)
SPEED = ["images_per_second", "model_flop_utilisation", "flops_per_image"]
ROWS = st.dictionaries(st.sampled_from([*KEYS, *SPEED, "position", "player", "bytes", "versions"]), JSON, max_size=8)


@settings(max_examples=50)
@given(
    st.lists(st.tuples(ROWS, KINDS), max_size=6),
    st.lists(ROWS, max_size=6),
    st.lists(EVALUATIONS, max_size=6),
    JSON | st.binary(max_size=40),
)
def test_any_content_of_the_files_gives_a_page(
    tmp_path_factory: pytest.TempPathFactory,
    events: list[tuple[dict[str, Any], str]],
    history: list[dict[str, Any]],
    evaluations: list[dict[str, Any]],
    kept: Any,
) -> None:
    run = tmp_path_factory.mktemp("run")
    named = [{**row, "event": kind} if len(row) % 3 else row for row, kind in events]
    stepped = [{"step": step, "attempt": 1, **row} for step, row in enumerate(history, 1)]
    for name, rows in (("events", named), ("history", stepped), ("quarantine", history), ("evaluation", evaluations)):
        (run / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "config.yaml").write_bytes(kept if isinstance(kept, bytes) else json.dumps(kept).encode())
    page = written(run)
    assert len(page.found("script")) == 2
    json.loads(page.source.partition('id="chart-data">')[2].partition("</script>")[0], parse_constant=pytest.fail)


def test_a_run_that_goes_on_is_read_as_far_as_it_has_come(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [start(1, 0)], [history_row(step, 1) for step in range(1, 51)])
    with open(run / "history.jsonl", "a") as file:
        file.write('{"step": 51, "attem')
    page = written(run)
    assert ">running<" in page.source
    assert "50 of 100 steps are done, about 10 s are left at this speed" in page.source
    assert "cut short" not in page.source, "the line is still being written"
    for name in ("history.jsonl", "events.jsonl"):
        os.utime(run / name, (BEGUN, BEGUN))
    assert ">silent<" in written(run).source


@pytest.mark.parametrize(
    ("end", "word"),
    [
        ({"reason": "finished"}, "finished"),
        ({"reason": "SIGTERM"}, "stopped"),
        ({"reason": "NonFiniteError", "message": ""}, "failed"),
    ],
)
def test_the_page_shows_how_the_run_ended(tmp_path: Path, end: dict[str, str], word: str) -> None:
    run = write_run(tmp_path / "run", [start(1, 0), {"time": BEGUN + 200, "event": "end", "step": 9, **end}], [history_row(9, 1)])
    assert f">{word}<" in written(run).source


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"signal": "SIGKILL"}, "was killed by SIGKILL"),
        ({"exit_code": 79}, "ended with exit code 79"),
        ({}, "died of a signal such as SIGKILL"),
    ],
)
def test_the_page_names_the_rank_that_died_first_where_no_rank_wrote_an_end(tmp_path: Path, how: dict[str, Any], words: str) -> None:
    died = [{"time": BEGUN + 200, "event": "rank_died", "attempt": 1, "rank": rank, "node": "n1", **how} for rank in (3, 4)]
    source = written(write_run(tmp_path / "run", [start(1, 0), *died], [history_row(9, 1)])).source
    assert ">failed<" in source
    assert f": rank 3 on n1 {words}. The same command continues it." in source


def test_the_speed_of_the_networks_is_shown_with_its_part_of_the_peak_or_with_the_setting_that_gives_the_peak(tmp_path: Path) -> None:
    cost, rows = {"flops_per_image": 5.18e12, "peak_flops": 1e15}, [history_row(step, 1) for step in (1, 2, 3)]
    page = written(write_run(tmp_path / "unknown", [start(1, 0, **{**cost, "peak_flops": None})], rows))
    assert ">207 T<" in page.source
    assert "5.18 T a picture; the peak is unknown" in page.source
    assert "monitoring.peak_teraflops" in page.source
    page = written(write_run(tmp_path / "known", [start(1, 0, **cost)], [{**row, "model_flop_utilisation": 0.2072} for row in rows]))
    assert "5.18 T a picture; 20.7 % of the peak of all ranks, median" in page.source
    assert "Model-FLOP utilisation, all ranks" in page.source
    assert "monitoring.peak_teraflops" not in page.source
    assert "Model FLOP/s" not in written(write_run(tmp_path / "older", [start(1, 0)], rows)).source


def test_states_that_ended_or_belong_to_an_earlier_attempt_are_no_notes(tmp_path: Path) -> None:
    collapse, over = {"event": "collapse", "player": "discriminator", "step": 5}, {"event": "collapse_over", "player": "discriminator"}
    assert read(write_run(tmp_path / "a", [start(1, 0), collapse], [])).states
    assert not read(write_run(tmp_path / "b", [start(1, 0), collapse, over], [])).states
    assert not read(write_run(tmp_path / "c", [start(1, 0), collapse, start(2, 0)], [])).states


def test_lines_are_read_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}')
    lines = Lines(path)
    assert [row["a"] for row in lines] == [1, 2]
    assert not lines.damaged
    assert not lines.cut_short, "the last line is complete without its newline"
    assert Lines(tmp_path / "none").missing
