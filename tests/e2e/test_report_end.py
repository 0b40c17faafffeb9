"""A run that is finished writes its report, unless it is told not to; and one that can't be written ends no run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pipeline.training.record.run_folder import read_lines
from tests.conftest import ROOT
from tests.datasets import photographs, write_dataset
from tests.launching import clean_environment, python, run_alone, setting_list

SMALL = [
    *("--recipe", "inpainting", "--method.width", "8", "--method.bottleneck", "16", "--method.batch_norm_group", "2"),
    *("--training.global_batch", "4", "--training.micro_batch", "4", "--monitoring.enabled", "False"),
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report end")
    write_dataset(folder, photographs(20, 140, 160), [20])
    return folder


@pytest.mark.slow
def test_a_finished_run_has_a_report_and_no_report_changes_how_it_ends(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "report.html").mkdir(parents=True)
    (run / "report.html" / "in the way").touch()
    done = run_alone(*setting_list(shards, run, 2, *SMALL))
    assert done.returncode == 0, done.stderr
    assert "finished: 2 steps" in done.stdout
    assert f"no report was written ({run / 'report.html'}: can't be written" in done.stdout
    (run / "report.html" / "in the way").unlink()
    (run / "report.html").rmdir()
    done = run_alone(*setting_list(shards, run, 3, *SMALL, "--monitoring.report", "False"))
    assert done.returncode == 0, done.stderr
    assert not (run / "report.html").exists()
    done = run_alone(*setting_list(shards, run, 4, *SMALL))
    assert done.returncode == 0, done.stderr
    assert f"report: {run / 'report.html'}" in done.stdout
    report = (run / "report.html").read_text()
    assert "All 4 steps are done" in report
    assert "a picture; the peak is unknown: give that of a rank's device as monitoring.peak_teraflops" in report


@pytest.mark.slow
def test_a_finished_run_whose_console_is_lost_ends_with_0_and_its_report(shards: Path, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [python(), "launch/pretrain.py", *setting_list(shards, tmp_path / "run", 2, *SMALL)]
    with open(writer, "wb") as pipe, open("/dev/full", "wb") as full:
        done = subprocess.run(command, cwd=ROOT, env=clean_environment(), stdout=full, stderr=pipe, timeout=120, check=False)
    assert read_lines(tmp_path / "run" / "events.jsonl")[-1]["reason"] == "finished"
    assert done.returncode == 0
    assert "All 2 steps are done" in (tmp_path / "run" / "report.html").read_text()
