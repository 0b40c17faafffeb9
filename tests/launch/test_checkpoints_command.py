"""`launch/checkpoints.py`: finds the checkpoints of a run on any store, and never prunes one that a run could need."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
import yaml

from launch.checkpoints import main
from pipeline.training.checkpoint.store import Checkpoint, CheckpointStore, folder_name, write
from pipeline.training.record.run_folder import RunFolder
from shards.store import Store


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["launch/checkpoints.py", *arguments])
    return main()


def fill(store: Store, steps: range) -> None:
    for step in steps:
        write(store, Checkpoint(step, {"recipe": "features"}, {"player": {"weight": torch.full((3,), float(step))}}))


def damage(store: Store, step: int) -> None:
    path = Path(store.path(f"{folder_name(step)}/player.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose checkpoints are elsewhere, in a folder that has a literal `$` in its name."""
    with_record = tmp_path / "run"
    with_record.mkdir()
    (with_record / "events.jsonl").write_text('{"event": "start"}\n')
    (with_record / "config.yaml").write_text(yaml.safe_dump({"checkpoint": {"url": str(tmp_path / "else$$where")}}))
    return with_record


@pytest.fixture
def store(run: Path) -> Store:
    found = Store(str(run.parent / "else$where"))
    fill(found, range(10, 61, 10))
    return found


@pytest.mark.parametrize("number", ["-1", "-5", "2.5", "x"])
@pytest.mark.parametrize("option", ["--keep-every", "--keep-last"])
def test_a_number_that_nothing_can_be_kept_by_is_refused(
    option: str, number: str, run: Path, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        call(monkeypatch, "prune", str(run), option, number)
    assert f"argument {option}: {number!r} is not a whole number of " in capsys.readouterr().err
    assert len([entry for entry, _ in store.list() if entry.endswith("checkpoint.json")]) == 6


@pytest.mark.parametrize(
    ("action", "bad", "following"),
    [
        ("list", False, "next: python launch/checkpoints.py verify {run} --storage key=VALUE"),
        ("verify", False, "next: python launch/export.py {run} encoder.safetensors --storage key=VALUE"),
        ("verify", True, "next: restore the damaged ones, or leave them: the run continues from the newest that verifies"),
    ],
)
def test_what_to_do_next_is_said(
    action: str,
    bad: bool,
    following: str,
    run: Path,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if bad:
        damage(store, 40)
    assert call(monkeypatch, action, str(run), "--storage", "key=secret") == int(bad)
    assert capsys.readouterr().out.splitlines()[-1] == following.format(run=run)


def test_checkpoints_elsewhere_are_found(
    run: Path, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "verify", str(run)) == 0
    assert capsys.readouterr().out.count("verified") == 6
    damage(store, 40)
    assert call(monkeypatch, "verify", str(run)) == 1
    assert "step_000000040  DAMAGED" in capsys.readouterr().out


def test_prune_keeps_the_newest_that_verify(
    run: Path, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(store, 60)
    arguments = ["prune", str(run), "--keep-last", "2", "--keep-every", "20"]
    assert call(monkeypatch, *arguments, "--dry-run") == 0
    assert CheckpointStore(store).steps() == [10, 20, 30, 40, 50, 60]
    said = capsys.readouterr()
    assert "step_000000060" in said.err
    assert call(monkeypatch, *arguments) == 0
    assert capsys.readouterr().out.count(" deleted") == said.out.count("would be deleted") == 2
    assert CheckpointStore(store).steps() == [20, 40, 50, 60]  # 60 is damaged: not counted, not deleted


def test_prune_deletes_nothing_where_too_few_verify_or_the_run_goes_on(
    run: Path, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (20, 30, 40, 50):
        damage(store, step)
    assert call(monkeypatch, "prune", str(run), "--keep-last", "3") == 0
    assert len(CheckpointStore(store).steps()) == 6
    holder = RunFolder(run, writes=True)
    try:
        assert call(monkeypatch, "prune", str(run), "--keep-last", "1") == 1
    finally:
        holder.close()
    assert "another run is writing here" in capsys.readouterr().err
    assert len(CheckpointStore(store).steps()) == 6
    with pytest.raises(SystemExit):
        call(monkeypatch, "prune", str(run), "--keep-last", "0")


def test_a_run_without_checkpoints_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert call(monkeypatch, "list", str(tmp_path / "empty")) == 1
    assert "no checkpoints" in capsys.readouterr().err


@pytest.mark.parametrize("program", ["checkpoints", "ledger", "export"])
def test_an_option_of_the_store_without_a_value_is_refused_and_not_repeated(
    program: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {"checkpoints": ["list", str(run)], "ledger": [str(run)], "export": [str(run), str(run / "encoder")]}[program]
    monkeypatch.setattr(sys, "argv", [f"launch/{program}.py", *arguments, "--storage", "hunter2"])
    assert importlib.import_module(f"launch.{program}").main() == 1
    said = capsys.readouterr().err
    assert "a --storage option is KEY=VALUE" in said
    assert "hunter2" not in said
