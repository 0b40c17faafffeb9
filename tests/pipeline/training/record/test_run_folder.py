"""A run folder has one writer, and what a crash cut short does not spoil the rest."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.training.record import run_folder
from pipeline.training.record.run_folder import RunFolder, RunFolderError, append_row, last_saved_step, read_lines


def test_two_runs_never_write_into_one_folder(tmp_path: Path) -> None:
    script = "import sys, pathlib, pipeline.training.record.run_folder as module; module.RunFolder(pathlib.Path(sys.argv[1]), writes=True)"
    command = [sys.executable, "-c", script, str(tmp_path)]
    first = RunFolder(tmp_path, writes=True)
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "another run is writing here" in refused.stderr
    RunFolder(tmp_path, writes=False).close()
    first.close()
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_line_that_a_crash_cut_short_is_left_out_and_the_next_starts_anew(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, writes=True)
    folder.event("start", step=0)
    folder.history([{"step": 1}, {"step": 2}])
    folder.close()
    for name in ("events.jsonl", "history.jsonl"):
        with open(tmp_path / name, "a") as file:
            file.write('{"step": 3, "loss')
    folder = RunFolder(tmp_path, writes=True)
    assert folder.attempts() == 1
    folder.event("start", step=2)
    folder.history([{"step": 3}])
    folder.close()
    assert [row["step"] for row in read_lines(tmp_path / "history.jsonl")] == [1, 2, 3]
    events = read_lines(tmp_path / "events.jsonl")
    assert [(row["event"], row["step"]) for row in events] == [("start", 0), ("start", 2)]
    assert all(row["time"] > 1e9 for row in events)


@pytest.mark.parametrize("write", ["history", "evaluation", "event", "append_row"])
def test_every_line_is_json_also_where_a_figure_is_not_finite(write: str, tmp_path: Path) -> None:
    row = {"step": 3, "losses": {"generator": {"total": float("nan")}}, "norm": float("inf")}
    if write == "append_row":
        with open(tmp_path / "lines.jsonl", "a+b", buffering=0) as file:
            append_row(file, row)
    else:
        with closing(RunFolder(tmp_path, writes=True)) as folder:
            calls = {"history": lambda: folder.history([row]), "evaluation": lambda: folder.evaluation(row)}
            calls.get(write, lambda: folder.event("x", **row))()
    (path,) = tmp_path.glob("*.jsonl")
    found = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert (found["step"], found["losses"], found["norm"]) == (3, {"generator": {"total": None}}, None)


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", writes=False)
    folder.event("start")
    folder.history([{"step": 1}])
    folder.write_config({"seed": 1})
    assert not (tmp_path / "run").exists()


def test_a_folder_in_which_no_run_began_is_left_as_it_was_found(tmp_path: Path) -> None:
    first, second = (RunFolder(tmp_path / "runs" / name, writes=True) for name in ("first", "second"))
    second.event("start", step=0)
    first.targets.mkdir()
    for folder in (first, second):
        folder.close()
        folder.close()
    assert sorted(path.name for path in (tmp_path / "runs").rglob("*")) == [".lock", "events.jsonl", "second"]
    kept = RunFolder(tmp_path / "kept", writes=True)
    kept.quarantine.write_text("{}")
    kept.close()
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [kept.quarantine.name], "no file with something in it is removed"


def test_a_lock_that_its_last_holder_has_removed_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = RunFolder(tmp_path / "run", writes=True)
    take = run_folder.try_lock

    def taken_when_the_other_is_gone(file: int) -> bool:
        refused.close()
        return take(file)

    monkeypatch.setattr(run_folder, "try_lock", taken_when_the_other_is_gone)
    run = RunFolder(tmp_path / "run", writes=True)
    monkeypatch.undo()
    with pytest.raises(RunFolderError, match="another run is writing here"):
        RunFolder(tmp_path / "run", writes=True)
    run.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"file/run: the run folder can't be written .*--run"):
        RunFolder(tmp_path / "file" / "run", writes=True)


def test_the_settings_are_those_of_the_newest_attempt(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, writes=True)
    folder.write_config({"seed": 1, "betas": [0.5, 0.9]})
    folder.write_config({"seed": 2})
    assert (tmp_path / "config.yaml").read_text() == "seed: 2\n"
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "config.yaml"}, "nothing temporary is left"


def test_the_step_that_was_saved_last_is_that_of_the_newest_event(tmp_path: Path) -> None:
    assert last_saved_step(tmp_path) is None
    folder = RunFolder(tmp_path, writes=True)
    folder.event("start", step=0)
    for step in (90, 60):  # the checkpoint of step 90 was damaged, and the next attempt went back behind it
        folder.event("checkpoint", step=step)
    folder.close()
    assert last_saved_step(tmp_path) == 60


def test_after_a_restart_the_folder_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = RunFolder(tmp_path, writes=True)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    threading.Timer(0.3, first.close).start()
    began = time.monotonic()
    RunFolder(tmp_path, writes=True).close()
    assert 0.2 < time.monotonic() - began < 30
