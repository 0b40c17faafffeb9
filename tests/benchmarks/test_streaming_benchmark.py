"""The benchmark of the stream runs: what it prints is a table with a line for each comparison. No timing is asserted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


def run(data_folder: Path, output: Path, *arguments: str) -> list[list[str]]:
    """Runs the script and returns the cells of its table's lines."""
    command = [sys.executable, str(ROOT / "benchmarks" / "streaming.py"), "--seconds", "0.1", "--rounds", "1"]
    command += ["--photographs", "32", "--batch", "32"]
    environment = {**os.environ, "CONTEXT_ENCODER_DATA": str(data_folder)}
    done = subprocess.run(
        [*command, "--scratch", str(output.parent), "--output", str(output), *arguments],
        cwd=output.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert output.read_text() == done.stdout.removesuffix("\n")
    assert [path.name for path in output.parent.iterdir()] == [output.name], "the scratch folder is emptied"
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert lines[1] == "|---|---|---|---|---|---|---|"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]


def test_every_comparison_with_bare_threads_is_a_line_of_the_table(data_folder: Path, tmp_path: Path) -> None:
    head, *rows = run(data_folder, tmp_path / "table.md", "--only", "bare-threads", "--only", "decode-only", "--only", "masks")
    assert head == ["peer", "data", "ours img/s", "peer img/s", "ratio: median (min-max)", "target", "met"]
    assert [row[:2] for row in rows] == [
        ["bare-threads", "full size, random resized 227"],
        ["bare-threads", "stored at 256, random resized 227"],
        ["decode-only", "stored at 256, random 227"],
        ["masks", "227, of an image stored at 256"],
    ]
    for row in rows:
        assert float(row[2]) > 0
        assert float(row[3]) > 0
        assert row[6] in ("met", "not met")


def test_a_peer_that_is_not_there_is_a_line_with_the_reason(data_folder: Path, tmp_path: Path) -> None:
    _, row, order = run(data_folder, tmp_path / "table.md", "--only", "ffcv", "--only", "order", "--ffcv-python", sys.executable)
    assert row[0] == "ffcv"
    assert "No module named 'ffcv'" in row[4]
    assert row[6] == "not measured"
    assert order[0] == "order"
