"""The loop tells time for data from time for everything else, and keeps its record complete however it ends."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import recipes
from pipeline.config import parse
from pipeline.stream.loader import Batch, StreamLoader
from pipeline.training.checkpoint.store import Checkpoint, CheckpointStore
from pipeline.training.finished import finished_before
from pipeline.training.loop import pretrain
from pipeline.training.record.run_folder import RunFolder
from pipeline.training.reporting import reporter
from pipeline.training.reporting.reporter import Reporter, StepFacts
from pipeline.training.step import StepResult, TrainStep
from pipeline.training.supervision.interruption import Interruption
from shards.errors import ExplainedError
from tests.datasets import photographs, write_dataset

STEPS, PAUSE = 8, 0.4


def run_settings(folder: Path, steps: int, *more: str) -> list[str]:
    """Writes a small data set, and returns the settings of a short run on it without an endpoint."""
    write_dataset(folder / "set", photographs(24, 140, 160), [12, 12])
    settings = ["--recipe", "inpainting", "--method.width", "8", "--method.bottleneck", "8", "--method.batch_norm_group", "4"]
    settings += ["--data.shards", str(folder / "set"), "--run", str(folder / "run"), "--training.steps", str(steps)]
    return [*settings, "--training.global_batch", "4", "--monitoring.enabled", "False", *more]


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_time_for_pictures_is_no_wait_for_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next batches get ready meanwhile. Counted as a wait, the time would be reported as starvation, with advice that does not help."""
    seen: list[tuple[float, float]] = []
    step = Reporter.step

    def noted(self: Reporter, facts: StepFacts) -> None:
        seen.append((facts.seconds, facts.wait_seconds))
        step(self, facts)

    monkeypatch.setattr(Reporter, "step", noted)
    monkeypatch.setattr(reporter, "save_grid", lambda *_: time.sleep(PAUSE))
    settings = run_settings(tmp_path, STEPS, "--training.pictures_every", "1")
    assert pretrain(parse(recipes.SETTINGS, settings), Interruption()).finished
    took, waited = (sum(column) for column in zip(*seen[1:], strict=True))  # the first batch is really waited for
    assert len(seen) == STEPS
    assert took > (STEPS - 1) * PAUSE, "the steps' time is all the time there was"
    assert waited < 0.5 * (STEPS - 1) * PAUSE


def test_a_step_that_raises_leaves_the_losses_of_the_steps_before_in_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are still on the device, because losses are read every `log_every` steps. The event `end` comes after their lines."""
    step, calls, lines_at_end = TrainStep.__call__, itertools.count(1), list[int]()
    event = RunFolder.event

    def failing(self: TrainStep, *arguments: Any) -> StepResult:
        if next(calls) == 4:
            raise RuntimeError("the fourth step")
        return step(self, *arguments)

    def noted(self: RunFolder, kind: str, **facts: Any) -> None:
        if kind == "end":
            lines_at_end.append(len(rows(self.path / "history.jsonl")))
        event(self, kind, **facts)

    monkeypatch.setattr(TrainStep, "__call__", failing)
    monkeypatch.setattr(RunFolder, "event", noted)
    settings = run_settings(tmp_path, STEPS, "--training.log_every", "100")
    with pytest.raises(RuntimeError, match="the fourth step"):
        pretrain(parse(recipes.SETTINGS, settings), Interruption())
    assert lines_at_end == [3]
    history = rows(tmp_path / "run" / "history.jsonl")
    assert [row["step"] for row in history] == [1, 2, 3]
    assert all(row["losses"] for row in history)
    end = rows(tmp_path / "run" / "events.jsonl")[-1]
    assert (end["event"], end["step"], end["reason"], end["message"]) == ("end", 3, "RuntimeError", "the fourth step")


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (["--data.shards", "nowhere"], "nowhere holds no shards"),
        (["--evaluation.shards", "nowhere"], "nowhere holds no shards"),
        (["--checkpoint.resume", "nowhere/step_000000001"], "nowhere/step_000000001"),
        (["--monitoring.enabled", "True", "--monitoring.port", "0", "--data.shards", "nowhere"], "nowhere holds no shards"),
    ],
    ids=["no data set", "no data set to evaluate on", "no checkpoint to start from", "with an endpoint and its target"],
)
@pytest.mark.parametrize("there", [False, True], ids=["new", "made before"])
def test_a_run_that_is_refused_leaves_no_trace(
    refused: list[str], message: str, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if there:
        (tmp_path / "runs" / "mine").mkdir(parents=True)
    before = {*tmp_path.rglob("*")}
    settings = [*run_settings(tmp_path / "data", 1), "--run", "runs/mine", *refused]
    with pytest.raises(ExplainedError, match=message):
        pretrain(parse(recipes.SETTINGS, settings), Interruption())
    assert {path for path in tmp_path.rglob("*") if "data" not in path.parts} == before


def test_a_step_is_saved_once_however_often_its_turn_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop may come while the batch behind a checkpoint is waited for, and a finished run may be started again."""
    saved, save, batches, interruption = list[int](), CheckpointStore.save, StreamLoader.__iter__, Interruption()

    def noted(self: CheckpointStore, checkpoint: Checkpoint, began: float | None = None) -> None:
        saved.append(checkpoint.step)
        save(self, checkpoint, began)

    def stopped_behind_the_fourth(self: StreamLoader) -> Iterator[Batch]:
        yield from itertools.islice(batches(self), 4)
        interruption._requested = "SIGTERM"
        self.waiting()  # as the loader calls it while the store does not answer

    monkeypatch.setattr(CheckpointStore, "save", noted)
    monkeypatch.setattr(StreamLoader, "__iter__", stopped_behind_the_fourth)
    settings = run_settings(tmp_path, STEPS, "--checkpoint.every", "2")
    outcome = pretrain(parse(recipes.SETTINGS, settings), interruption)
    assert (outcome.step, outcome.finished, outcome.reason) == (4, False, "SIGTERM")
    assert saved == [2, 4]
    shorter = [*settings, "--training.steps", "4"]
    assert finished_before(parse(recipes.SETTINGS, shorter)) is None, "the run was stopped"
    again = pretrain(parse(recipes.SETTINGS, shorter), Interruption())
    assert (again.step, again.finished) == (4, True)
    assert saved == [2, 4]
    for same in (shorter, [*shorter, "--monitoring.per", "rank", "--watchdog.stall_minutes", "3"], [*shorter, "--training.steps", "3"]):
        answer = finished_before(parse(recipes.SETTINGS, same))
        assert answer is not None
        assert answer.startswith(f"finished before: 4 steps are done, everything is in {tmp_path / 'run'}; nothing was trained now")
        assert "give more --training.steps than 4" in answer
        assert answer.endswith(f"next: python launch/export.py {tmp_path / 'run'} {tmp_path / 'run' / 'encoder.safetensors'}")
    for other in (["--training.steps", "5"], ["--seed", "1"], ["--checkpoint.resume", "none"], ["--checkpoint.url", str(tmp_path)]):
        assert finished_before(parse(recipes.SETTINGS, [*shorter, *other])) is None, other
    for size, local_size, answered in (("2", "2", True), ("2", "1", False), ("2", "", False), ("1", "1", True)):
        monkeypatch.setenv("WORLD_SIZE", size)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local_size)
        found = finished_before(parse(recipes.SETTINGS, shorter)) is not None
        assert found is answered, f"{local_size} of {size} ranks are on this node, and others may not see the run folder"
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert finished_before(parse(recipes.SETTINGS, shorter)) is None, "its checkpoint is gone"


def test_a_finished_run_asks_its_store_for_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store"
    config = parse(recipes.SETTINGS, [*run_settings(tmp_path, 1), "--checkpoint.url", store.as_uri()])
    assert pretrain(config, Interruption()).finished
    assert finished_before(config) is not None
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert finished_before(config) is None, "rank 0 alone asks the store, so that the other rank does not know its answer"
    monkeypatch.delenv("WORLD_SIZE")
    shutil.move(store, tmp_path / "elsewhere")
    assert finished_before(config) is None, "its checkpoint is gone"
    store.write_text("no folder")
    assert finished_before(config) is None, "the store can't be read"


def test_a_run_that_turned_no_pictures_goes_on_so_and_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Positions of earlier versions say nothing of the orientation; pictures must not change in the middle of a run."""
    state = StreamLoader.state_dict
    settings = run_settings(tmp_path, 1, "--evaluation.every", "0", "--training.pictures_every", "0")

    def train(steps: int, *more: str) -> None:
        assert pretrain(parse(recipes.SETTINGS, [*settings, "--training.steps", str(steps), *more]), Interruption()).finished

    with monkeypatch.context() as earlier:
        earlier.setattr(StreamLoader, "state_dict", lambda self: {k: v for k, v in state(self).items() if k != "turned"})
        train(1, "--data.orientation", "stored")
    capsys.readouterr()
    train(2)
    assert "data.orientation stays stored, as the run began; only a new run takes turned" in capsys.readouterr().err
    assert "orientation: stored" in (tmp_path / "run" / "config.yaml").read_text()
    starts = [row for row in rows(tmp_path / "run" / "events.jsonl") if row["event"] == "start"]
    assert starts[1]["position"]["turned"] == 0
