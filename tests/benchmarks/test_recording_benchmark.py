"""The benchmark of the metrics runs, and what a step tells stays little: functions are counted, no time is asserted."""

from __future__ import annotations

import subprocess
import sys
from types import FrameType

import pytest

from benchmarks.recording import _row, prepared, taped
from tests.conftest import ROOT


def test_every_batch_is_a_line_of_the_table() -> None:
    command = [sys.executable, "-m", "benchmarks.recording", "--pairs", "10", "--batches", "2", "3", "--log-every", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    _, head, rule, *rows = [line for line in done.stdout.splitlines() if line]
    assert head.startswith("| pictures a step |")
    assert rule.count("---") == head.count("|") - 1
    assert [row.split("|")[1].strip() for row in rows] == ["2", "3"]
    assert all(float(row.split("|")[5]) > 0 for row in rows)


def functions_called(training_steps: int, log_every: int) -> float:
    """Functions, of Python and of C, that a step calls to tell what it has to."""
    count = 0

    def note(_frame: FrameType, event: str, _called: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    with prepared(2, log_every) as training:
        play = taped(training, training_steps)
        play()
        before = sys.getprofile()
        sys.setprofile(note)
        try:
            play()
        finally:
            sys.setprofile(before)
    return count / training_steps


@pytest.mark.parametrize(("log_every", "most"), [(1000, 500), (1, 1000)])
def test_what_a_step_tells_takes_few_function_calls(log_every: int, most: int) -> None:
    """They are what it costs: 362 for each step, 687 for one that is logged. Who needs many more measures anew before raising this."""
    assert 100 < functions_called(20, log_every) < most


def test_a_noisy_machine_does_not_make_the_verdict_milder() -> None:
    """Recording costs 2 % here, in steps that differ by more than that."""
    off = [0.010 * (1 + number % 7) for number in range(100)]
    on = [seconds + 0.0002 for seconds in reversed(off)]
    assert _row(4, off, on, 0.0002).split(" | ")[-2] == "no"
    assert _row(4, off, on, 0.00004).split(" | ")[-2:] == ["yes", "8.0 |"]
