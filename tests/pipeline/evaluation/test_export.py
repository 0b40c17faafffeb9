"""`launch/export.py`: the encoder of a checkpoint becomes a file that any framework reads, whole or not at all."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from launch.export import main
from pipeline.training.checkpoint.store import Checkpoint, folder_name, write
from shards.store import Store


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["launch/export.py", *arguments])
    return main()


@pytest.fixture
def checkpoints(tmp_path: Path) -> str:
    folder = tmp_path / "checkpoints"
    for step in (10, 20):
        weights = {"encoder.conv.weight": torch.full((40,), float(step)), "decoder.conv.weight": torch.zeros(3)}
        facts = {"recipe": "features", "config": {"method": {"width": 64}}}
        write(Store(str(folder)), Checkpoint(step, facts, {"context_encoder": weights}))
    return str(folder)


def test_the_encoder_of_the_newest_checkpoint_or_of_a_step_is_written_alone(
    checkpoints: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "encoder.safetensors"
    for arguments, step in (([], 20), (["--step", "10"], 10)):
        assert call(monkeypatch, checkpoints, str(target), *arguments) == 0
        assert f"the encoder of context_encoder after {step} steps, 1 tensors, 40 values" in capsys.readouterr().out
        assert {name: tensor.tolist() for name, tensor in load_file(target).items()} == {"conv.weight": [float(step)] * 40}
        with safe_open(target, "pt") as file:
            assert file.metadata() == {"step": str(step), "recipe": "features", "player": "context_encoder", "method": '{"width": 64}'}


def test_a_file_that_can_not_be_written_is_an_error_and_the_old_one_stays(
    checkpoints: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "encoders" / "encoder.safetensors"
    assert call(monkeypatch, checkpoints, str(target)) == 1
    assert "error: " in capsys.readouterr().err
    target.parent.mkdir()
    target.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # fails a write in its middle, as a full disk does
    try:
        code = call(monkeypatch, checkpoints, str(target))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1
    assert "too large" in capsys.readouterr().err
    assert [(path.name, path.read_bytes()) for path in target.parent.iterdir()] == [("encoder.safetensors", b"old")]


def test_without_a_sound_checkpoint_there_is_an_error(
    checkpoints: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (10, 20):
        (Path(checkpoints) / folder_name(step) / "context_encoder.safetensors").write_bytes(b"damaged")
    assert call(monkeypatch, checkpoints, str(tmp_path / "encoder.safetensors")) == 1
    assert "no checkpoint that verifies" in capsys.readouterr().err
    assert not (tmp_path / "encoder.safetensors").exists()
