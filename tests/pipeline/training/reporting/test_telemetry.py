"""Metrics are published as soon as the ranks have joined, and an alert is raised for the runs that are missed."""

from __future__ import annotations

import json
import shutil
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import recipes
from pipeline.config import Config, parse
from pipeline.training import loop, run_loader
from pipeline.training.checkpoint import store as checkpoint
from pipeline.training.reporting.reporter import Reporter
from pipeline.training.reporting.telemetry import names_of
from pipeline.training.supervision.interruption import Interruption
from shards.errors import ShardError, StoreError
from tests.datasets import photographs, write_dataset


def pretrain(folder: Path, steps: int, *settings: str) -> bool:
    small = ["--recipe", "inpainting", "--method.width", "8", "--method.bottleneck", "8", "--method.batch_norm_group", "4"]
    small += ["--data.shards", str(folder / "set"), "--run", str(folder / "run"), "--training.steps", str(steps)]
    small += ["--training.global_batch", "4", "--monitoring.port", "0", "--monitoring.report", "False"]
    return loop.pretrain(parse(recipes.SETTINGS, [*small, *settings]), Interruption()).finished


def targets(folder: Path) -> list[Any]:
    return [each for path in sorted((folder / "run" / "targets").glob("*.json")) for each in json.loads(path.read_text())]


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns the list that gets the metrics as they are served when the data set is opened."""
    write_dataset(tmp_path / "set", photographs(24, 140, 160), [12, 12])
    said: list[str] = []
    loader = run_loader.StreamLoader

    def opened(*arguments: Any) -> run_loader.StreamLoader:
        for target in targets(tmp_path):
            with urllib.request.urlopen(f"http://{target['targets'][0]}/metrics", timeout=60) as answer:
                said.append(answer.read().decode())
        return loader(*arguments)

    monkeypatch.setattr(run_loader, "StreamLoader", opened)
    return said


@pytest.mark.slow
def test_a_later_attempt_that_can_not_start_is_missed_and_tells_of_itself_until_then(tmp_path: Path, asked: list[str]) -> None:
    assert pretrain(tmp_path, 1)
    assert targets(tmp_path) == [], "it has ended in good order"
    shutil.rmtree(tmp_path / "set")
    with pytest.raises(ShardError):
        pretrain(tmp_path, 2)
    assert len(targets(tmp_path)) == 1
    assert len(asked) == 2
    assert 'context_encoder_rank_up{node="' in asked[1]
    assert "context_encoder_heartbeat_age_seconds{" in asked[1]
    (attempt,) = (line for line in asked[1].splitlines() if line.startswith("context_encoder_attempt{"))
    assert attempt.endswith(" 2.0")
    write_dataset(tmp_path / "set", photographs(24, 140, 160), [12, 12])
    assert pretrain(tmp_path, 2)
    assert targets(tmp_path) == [], "what the failed one had left is swept"


def test_a_first_attempt_that_is_refused_is_not_missed(tmp_path: Path, asked: list[str]) -> None:
    shutil.rmtree(tmp_path / "set")
    with pytest.raises(ShardError):
        pretrain(tmp_path, 2)
    assert "context_encoder_attempt{" in asked[0]
    assert targets(tmp_path) == []


def test_a_first_attempt_that_has_trained_is_missed(tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("as a step that fails")

    monkeypatch.setattr(loop.TrainStep, "__call__", fails)
    with pytest.raises(RuntimeError, match="as a step"):
        pretrain(tmp_path, 2)
    assert len(asked) == len(targets(tmp_path)) == 1


@pytest.mark.parametrize(
    ("typed", "name"),
    [(".", "mine"), ("./", "mine"), ("sub/..", "mine"), ("../mine/a", "a"), ("link", "link"), ("link/..", "deep"), ("/", "/")],
)
def test_a_run_folder_has_a_name_however_it_was_typed(typed: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    (tmp_path / "deep" / "down").mkdir(parents=True)
    (tmp_path / "mine" / "link").symlink_to(tmp_path / "deep" / "down")
    config = Config(method=None, run=typed)
    assert names_of(config)[0] == name
    assert names_of(replace(config, monitoring=replace(config.monitoring, run_name="given")))[0] == "given"


def test_a_run_has_the_name_that_it_is_given(tmp_path: Path, asked: list[str]) -> None:
    assert pretrain(tmp_path, 1, "--monitoring.run_name", "lab/first")
    assert 'run="lab/first"' in asked[0]
    assert 'run="run"' not in asked[0]


@pytest.mark.parametrize(("read_back", "failures"), [(True, 1), (False, 0)])
def test_a_save_that_can_not_be_read_back_is_counted_and_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_back: bool, failures: int
) -> None:
    write_dataset(tmp_path / "set", photographs(24, 140, 160), [12, 12])
    counted: list[float | None] = []
    close = Reporter.close

    def look(self: Reporter) -> None:
        (family,) = (each for each in self.metrics.registry.collect() if each.name == "context_encoder_checkpoint_failures")
        counted.append(next(sample.value for sample in family.samples if sample.name.endswith("_total")))
        close(self)

    def silent(*_: Any) -> None:
        raise StoreError("nobody may read here")

    monkeypatch.setattr(Reporter, "close", look)
    monkeypatch.setattr(checkpoint, "verify", silent)
    assert pretrain(tmp_path, 1, "--checkpoint.read_back", str(read_back), "--monitoring.enabled", "False")
    assert counted == [failures]
