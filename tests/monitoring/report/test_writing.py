"""A page is written whole or not at all, and never spoils the end of a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from monitoring.report import RunPageError, missing_page, page_of_finished_run, write_run_page, writing
from tests.conftest import ROOT


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunPageError, match="Name the folder of a run"):
        write_run_page(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_can_not_be_written_leaves_the_old_one_and_nothing_else(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunPageError, match="--output"):
        write_run_page(run, tmp_path / "nowhere" / "page.html")
    taken = tmp_path / "taken"
    (taken / "inside").mkdir(parents=True)
    with pytest.raises(RunPageError, match="--output"):
        write_run_page(run, taken)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "taken"}


def test_the_command_prints_the_path_of_the_page_and_the_missing_parts(run: Path, tmp_path: Path) -> None:
    (run / "config.yaml").unlink()
    command = [sys.executable, "launch/report.py"]
    done = subprocess.run(
        [*command, str(run), "--output", str(tmp_path / "page.html")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.split(":")[0]) == (0, str(tmp_path / "page.html"))
    assert "config.yaml" in done.stderr
    assert not (run / "report.html").exists()
    done = subprocess.run([*command, str(tmp_path / "no run")], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_run_that_has_finished_before_gets_its_page_only_where_it_has_none(run: Path) -> None:
    assert missing_page(run) == f"report: {run / 'report.html'}"
    (run / "report.html").write_text("mine")
    assert missing_page(run) == ""
    assert (run / "report.html").read_text() == "mine"


def test_a_page_that_fails_or_hangs_does_not_disturb_the_end_of_a_run(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert page_of_finished_run(run) == f"report: {run / 'report.html'}"
    assert page_of_finished_run(tmp_path).startswith("no report was written (")

    def broken(record: object) -> str:
        raise LookupError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(writing, "page", broken)
        assert page_of_finished_run(run) == "no report was written (a bug)"
    (run / "config.yaml").unlink()
    os.mkfifo(run / "config.yaml")  # blocks its reader for ever, as a hanging disk does
    assert "no report was written within" in page_of_finished_run(run, seconds=0.3)
    with open(run / "config.yaml", "w"):  # releases the reader
        pass
