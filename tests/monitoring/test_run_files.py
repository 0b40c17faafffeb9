"""The format of a run folder: JSON lines are read one at a time whatever a crash left in them, and one rule decides which steps count."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.run_files import LONGEST_LINE, Lines, json_text, last_counted_steps, read_lines, step_name, step_of_name, with_nans


def test_damaged_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    junk = [b"\0" * 50, b'{"step": 1, "atte', b"[" * 50_000, b"17", b"\xff\xfe"]
    path.write_bytes(b'{"step": 1}\n\n' + b"\n".join(junk) + b'\n{"step": 2}\n{"step": 3, "loss')
    lines = Lines(path)
    for _ in range(2):  # a second pass counts from zero
        assert [row["step"] for row in lines] == [1, 2]
        assert (lines.damaged, lines.cut_short, lines.missing) == (5, True, False)
    assert read_lines(path) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_null_because_json_has_none(value: float) -> None:
    row = {"step": 1, "losses": {"a": {"total": value, "part": 0.5}}, "list": [value, (1, value)], "word": "NaN"}
    text = json_text(row)
    assert json.loads(text, parse_constant=pytest.fail) == {
        **{"step": 1, "losses": {"a": {"total": None, "part": 0.5}}, "list": [None, [1, None]], "word": "NaN"}
    }
    assert json_text({"step": 1, "part": 0.5}, indent=1) == json.dumps({"step": 1, "part": 0.5}, indent=1)


def test_figures_that_are_null_are_read_as_nan_and_a_probe_that_is_not_there_stays_none() -> None:
    read = with_nans({"l1": None, "baselines": {"constant": {"l1": None, "l2": 2.0}}, "probe": None, "choice": "these"})
    assert math.isnan(read["l1"])
    assert math.isnan(read["baselines"]["constant"].pop("l1"))
    assert (read["baselines"], read["probe"], read["choice"]) == ({"constant": {"l2": 2.0}}, None, "these")


def test_a_last_line_that_is_whole_counts_without_its_end(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}')
    lines = Lines(path)
    assert [row["step"] for row in lines] == [1, 2]
    assert not lines.cut_short


def test_a_file_that_is_not_there_has_no_rows_and_one_that_can_not_be_read_is_an_error(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "none")
    assert list(lines) == []
    assert lines.missing
    (tmp_path / "file").touch()
    assert read_lines(tmp_path / "file" / "events.jsonl") == []
    with pytest.raises(OSError, match="directory"):  # an attempt that was recorded must not look like none
        read_lines(tmp_path)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with open(path, "wb") as file:
        for step in range(100_000):
            file.write(b'{"step": %d, "samples": "0123456789abcdef"}\n' % step)
        file.write(b"x" * 3000 + b"\n" + b'{"step": 100000}\n')
    tracemalloc.start()
    lines = Lines(path, longest=1000)
    assert sum(1 for _ in lines) == 100_001
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert lines.damaged == 1, "the line that is too long"
    assert peak < 300_000
    assert LONGEST_LINE > 1 << 20, "a mixture of thousands of data sets still fits the line of a start"


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6)), min_size=1, max_size=6))
def test_a_step_counts_where_no_later_attempt_undid_it(attempts: list[tuple[int, int]]) -> None:
    starts, taken, last_writer, reached = list[int](), [], dict[int, int](), 0
    for number, (begin, steps) in enumerate(attempts):
        starts.append(min(begin, reached))
        last_writer = {step: owner for step, owner in last_writer.items() if step <= starts[-1]}
        for step in range(starts[-1] + 1, starts[-1] + 1 + steps):
            taken.append((number, step))
            last_writer[step] = number
        reached = max(reached, starts[-1] + steps)
    limits = last_counted_steps(starts)
    counted = [(number, step) for number, step in taken if step <= limits[number]]
    assert counted == sorted(((number, step) for step, number in last_writer.items()), key=lambda pair: pair[1])


@given(st.integers(0, 10**9 - 1))
def test_names_sort_by_step_and_give_it_back(step: int) -> None:
    assert step_of_name(step_name(step)) == step
    assert step_name(step) <= step_name(step + 1) or step + 1 == 10**9


@pytest.mark.parametrize("name", ["step_", "step_000000001.png", "latest", ".partial-step_000000001", "step_-00000001"])
def test_other_names_have_no_step(name: str) -> None:
    assert step_of_name(name) is None


def test_it_needs_the_standard_library_alone() -> None:
    file = Path(sys.modules["monitoring.run_files"].__file__ or "")
    script = "import runpy, sys; runpy.run_path(sys.argv[1]); print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-S", "-c", script, str(file)], capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded) <= {*sys.stdlib_module_names, "__main__", "_frozen_importlib", "_frozen_importlib_external"}
