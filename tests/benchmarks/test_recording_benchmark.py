"""The benchmark of the metrics runs: a line for each batch, and all that a step tells is on its tape. No timing is asserted."""

from __future__ import annotations

import subprocess
import sys

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
