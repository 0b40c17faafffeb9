"""Curves hide no value, stay small, and are drawn with round numbers."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring.report import axes
from monitoring.report.curves import MOST_BUCKETS, Curves
from monitoring.report.record import read
from tests.monitoring.report.runs import history_row, start, write_run, written


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5000), st.floats(-1e6, 1e6)), min_size=1, max_size=300), st.randoms())
def test_a_bucket_hides_no_value(values: list[tuple[int, float]], random: Any) -> None:
    def filled(values: list[tuple[int, float]]) -> Curves:
        curves = Curves()
        for step, value in values:
            curves.add(step, True, [(("loss",), value)])
        curves.flush()
        return curves

    curves = filled(values)
    buckets = curves[("loss",)].counted
    assert max(buckets) < MOST_BUCKETS
    assert sum(bucket.count for bucket in buckets.values()) == len(values)
    for index, bucket in buckets.items():
        own = [value for step, value in values if step // curves.width == index]
        assert (bucket.least, bucket.greatest) == (min(own), max(own))
        assert math.isclose(bucket.mean, math.fsum(own) / len(own), rel_tol=1e-9, abs_tol=1e-6)
    shuffled = list(values)
    random.shuffle(shuffled)
    again = filled(shuffled)[("loss",)].counted
    assert {key: (each.count, each.least, each.greatest) for key, each in again.items()} == {
        key: (each.count, each.least, each.greatest) for key, each in buckets.items()
    }


def test_a_long_history_takes_little_memory_and_keeps_its_one_spike(tmp_path: Path) -> None:
    spike, peaks = 2345, []
    for steps in (4200, 8400):  # both fill the buffer of steps more than once
        run = write_run(
            tmp_path / "run", [start(1, 0)], [history_row(step, 1, 77.0 if step == spike else 0.5) for step in range(1, steps + 1)]
        )
        tracemalloc.start()
        record = read(run)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 3e6
    assert peaks[1] < 1.2 * peaks[0], "memory does not grow with the history"
    curve = record.curves[("loss", "generator", "total")]
    assert max(bucket.greatest for bucket in curve.counted.values()) == 77.0
    assert curve.counted[spike // record.curves.width].greatest == 77.0
    assert sum(bucket.count for bucket in curve.counted.values()) == steps


@pytest.mark.parametrize("missing", [None, math.nan], ids=["null", "NaN of older versions"])
def test_values_that_are_not_finite_are_marked_and_break_the_line(missing: Any, tmp_path: Path) -> None:
    history = [history_row(step, 1, 0.5) for step in range(1, 10)]
    history[4]["losses"]["generator"]["total"] = missing
    page = written(write_run(tmp_path / "run", [start(1, 0)], history))
    assert page.found("line", "nonfinite")
    lines = [each["d"] for each in page.found("path", "line")]
    assert any(path.count("M") == 2 for path in lines)
    assert "nan" not in "".join(lines).lower()


def test_every_chart_has_its_values_as_a_table_and_a_name(run: Path) -> None:
    page = written(run)
    charts = page.found("figure", "chart")
    assert len(charts) == 4 + 1 + 1 + 3, "total and adversarial loss of the discriminator are equal and drawn once"
    assert len(page.found("details", "values")) == len(charts)
    for plot in page.found("div", "plot"):
        assert plot["tabindex"] == "0"
        assert "over the steps" in plot["aria-label"]


@given(st.floats(-1e12, 1e12), st.floats(1e-9, 1e12))
def test_ticks_are_few_round_and_inside(least: float, extent: float) -> None:
    if least + extent <= least + abs(least) * 1e-6:
        return
    low, high = axes.domain(least, least + extent)
    assert low <= least + 1e-9 * max(extent, abs(least))
    assert high >= least + extent - 1e-9 * max(extent, abs(least))
    found = axes.ticks(low, high)
    assert 3 <= len(found) <= 6
    digits = {f"{abs(after - before):.6e}"[:2].rstrip(".") for before, after in itertools.pairwise(found)}
    assert digits <= {"1", "2", "5", "9", "4"}, "distances are 1, 2 or 5 times a power of ten, up to rounding"


def test_figures_are_written_as_people_write_them() -> None:
    figures = [axes.figure(value) for value in (0.0, 0.123456, 1234567.0, -2.5, 1e-7, math.nan)]
    assert figures == ["0", "0.1235", "1.235e6", "\N{MINUS SIGN}2.5", "1e\N{MINUS SIGN}7", axes.UNKNOWN]
    assert [axes.short(value) for value in (500, 9000, 20_000, 1.5e6)] == ["500", "9,000", "20k", "1.5M"]
    assert [axes.duration(value) for value in (0.25, 75, 720, 11_100, 187_200)] == ["0.25 s", "75 s", "12 min", "3 h 05 min", "2 d 4 h"]
    assert [axes.percent(value) for value in (0.123, 0.004, 1.0)] == ["12.3 %", "0.4 %", "100 %"]
