"""The command that a build ends with: it fits the data set, and the training accepts it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from pipeline import recipes
from pipeline.config import Config, parse
from pipeline.recipes.features import FeaturesSettings
from pipeline.stream.loader import StreamConfig, StreamLoader
from pipeline.training.step import largest_slice
from shards.__main__ import main
from shards.build.train_command import FEWEST, LARGE, SMALL_BATCH, train_command
from tests.conftest import ROOT
from tests.shards.trees import classed, write_folder


def parsed(command: str, monkeypatch: pytest.MonkeyPatch) -> Config[FeaturesSettings]:
    """The settings that the training reads from a command, which is started in the root of the repository."""
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    script = words.index("launch/pretrain.py")
    assert words[:2] == ["accelerate", "launch"]
    assert all(Path(word).is_file() for word in [words[script], *(word for word in words[:script] if word.endswith(".yaml"))])
    return parse(recipes.SETTINGS, words[script + 1 :])


def test_the_training_reads_the_data_set_that_was_built_where_its_name_has_a_dollar(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parsed(train_command(17, "s3://bucket/a$b", {}, gpu=False), monkeypatch).data.shards == "s3://bucket/a$b"


@pytest.mark.parametrize(("samples", "gpu"), [(FEWEST, False), (7, False), (17, False), (1000, True), (LARGE, False)])
def test_the_training_accepts_the_command_for_any_size(samples: int, gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    config = parsed(train_command(samples, "s3://bucket/some set", {}, gpu), monkeypatch)
    assert config.data.shards == "s3://bucket/some set"
    assert config.run == "runs/some_set"
    assert config.recipe == "features"
    batch = config.training.global_batch
    assert batch <= samples - samples // 10
    assert largest_slice(batch, 2, config.method.unit) == batch // 2


def test_a_small_set_keeps_the_batch_of_its_configuration_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "global_batch" not in train_command(17, "x", {}, gpu=False)
    assert parsed(train_command(17, "x", {}, gpu=False), monkeypatch).training.global_batch == SMALL_BATCH
    assert "--training.global_batch 8 --method.batch_norm_group 4" in train_command(16, "x", {}, gpu=False)


def test_machine_and_size_choose_launcher_and_configuration() -> None:
    assert train_command(800, "x", {}, gpu=False).startswith(
        "accelerate launch --config_file launch/accelerate/cpu.yaml launch/pretrain.py --config launch/configs/small.yaml "
    )
    assert train_command(800, "x", {}, gpu=True).startswith("accelerate launch launch/pretrain.py --config launch/configs/small.yaml ")
    assert train_command(LARGE, "x", {}, gpu=False).startswith(
        "accelerate launch --config_file launch/accelerate/node.yaml launch/pretrain.py --config launch/configs/features.yaml "
    )
    assert train_command(FEWEST - 1, "x", {}, gpu=False) == ""


def test_options_of_the_store_are_passed_on_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = {"endpoint_url": "http://127.0.0.1:8333", "key": "user", "secret": "hunter2"}
    command = train_command(800, "s3://name:hunter2@bucket/it's", storage, gpu=False)
    assert "hunter2" not in command
    config = parsed(command, monkeypatch)
    assert config.data.storage_options == {"endpoint_url": "http://127.0.0.1:8333", "key": "VALUE", "secret": "VALUE"}
    assert (config.data.shards, config.run) == ("s3://bucket/it's", "runs/it_s")


def test_a_build_ends_with_a_command_that_reads_what_was_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "in", classed(7))
    assert main(["build", str(tmp_path / "in"), str(tmp_path / "my shards"), "--workers", "0"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("then: accelerate launch ")
    config = parsed(last.removeprefix("then: "), monkeypatch)
    with StreamLoader(StreamConfig(config.data, 227, config.training.global_batch)) as loader:
        assert len(next(iter(loader)).keys) == config.training.global_batch
