"""The baselines through the real training: interruptions and micro-batches, evaluations, exports and probes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from launch.evaluate import main
from monitoring.run_files import EVALUATION
from pipeline import recipes
from pipeline.config import parse
from pipeline.evaluation.encoder import load_encoder, random_start, read_encoder
from pipeline.evaluation.export import export_encoder
from pipeline.evaluation.painter import EncoderInvalid, read_painter
from pipeline.mapping import ConfigError
from pipeline.training.checkpoint.store import read
from pipeline.training.loop import Outcome, pretrain
from pipeline.training.record.run_folder import read_lines
from pipeline.training.supervision.interruption import Interruption
from shards.store import Store
from tests.datasets import photographs, write_dataset

RECIPES = {
    "denoising": ["--method.width", "6", "--evaluation.every", "0"],
    "relative_position": [
        *("--method.width", "6", "--method.units", "8", "--method.batch_norm_group", "2", "--method.colour", "projection"),
        *("--method.patch", "70", "--method.gap", "20", "--method.jitter", "5"),
    ],
    "labels": ["--method.width", "6", "--method.units", "8", "--method.classes", "7"],
}
PLAYERS = {"denoising": "context_encoder", "relative_position": "classifier", "labels": "classifier"}
STEPS = 3
SGD = ("--method.optimiser.kind", "sgd", "--method.optimiser.learning_rate", "1e-3")
"""Adam takes a whole step where rounding decides the sign of a gradient that is nearly 0."""


@pytest.fixture(scope="module")
def shards(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    return made_once("baselines", lambda folder: write_dataset(folder, photographs(90, 120, 130), [50, 40]))


def train(recipe: str, shards: Path, run: Path, steps: int, *more: str) -> Outcome:
    words = ["--recipe", recipe, "--data.shards", str(shards), "--run", str(run), "--training.steps", str(steps), "--data.threads", "1"]
    words += ["--training.global_batch", "4", "--training.pictures_every", "2", "--training.pictures", "2", "--monitoring.enabled", "False"]
    return pretrain(parse(recipes.SETTINGS, [*words, "--evaluation.pictures", "8", *RECIPES[recipe], *more]), Interruption())


def tensors(run: Path) -> Mapping[str, Mapping[str, Tensor]]:
    return read(Store(str(run / "checkpoints")), STEPS).tensors


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_in_parts_has_the_bits_of_one_that_was_not_interrupted(recipe: str, shards: Path, tmp_path: Path) -> None:
    assert train(recipe, shards, tmp_path / "whole", STEPS, *SGD).finished
    for steps in (2, STEPS):
        assert train(recipe, shards, tmp_path / "parts", steps, *SGD).finished
    expected, found = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    for player, named in expected.items():
        for name, tensor in named.items():
            assert torch.equal(found[player][name], tensor), f"{player} {name}"
    assert train(recipe, shards, tmp_path / "micro", STEPS, *SGD, "--training.micro_batch", "2").finished
    network = PLAYERS[recipe]
    for name, tensor in tensors(tmp_path / "micro")[network].items():
        assert torch.allclose(tensor, expected[network][name], rtol=1e-3, atol=1e-5), name
    assert len(list((tmp_path / "whole").rglob("*.png"))) == (recipe == "denoising"), "a grid is of paintings"


def test_a_network_that_names_a_class_is_evaluated_beside_guesses(shards: Path, tmp_path: Path) -> None:
    outcome = train("labels", shards, tmp_path, 1, "--evaluation.pictures", "9")
    row = read_lines(tmp_path / EVALUATION)[-1]
    assert row["pictures"] == 9
    assert row["baselines"]["chance"] == pytest.approx({"loss": np.log(7), "accuracy": 1 / 7})
    share = row["baselines"]["largest_class"]["accuracy"]
    assert share == row["probe"]["chance"] if row["probe"] else share >= 2 / 9
    assert 9 * row["accuracy"] == pytest.approx(round(9 * row["accuracy"]))
    assert row["gain"] == pytest.approx(1 - (1 - row["accuracy"]) / (1 - max(share, 1 / 7)))
    assert "output_spread" not in row
    assert {"relu5", "relu6", "relu7"} < row["dead_maps"].keys()
    assert "held back accuracy" in outcome.learned


def test_data_sets_of_other_classes_end_a_run_before_it_trains(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"method\.classes: 6 is not .* which has 7 classes"):
        train("labels", shards, tmp_path / "six", 1, "--method.classes", "6")
    write_dataset(tmp_path / "plain", photographs(4, 120, 130), [4], labels=False)
    with pytest.raises(ConfigError, match="plain has none"):
        train("labels", tmp_path / "plain", tmp_path / "none", 1)
    with pytest.raises(ConfigError, match="plain has none"):
        train("labels", shards, tmp_path / "evaluated", 1, "--evaluation.shards", str(tmp_path / "plain"))
    assert not list(tmp_path.rglob("history.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_checkpoint_is_exported_and_probed(recipe: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(recipe, shards, tmp_path / "run", 1)
    assert "after 1 step" in export_encoder(str(tmp_path / "run"), tmp_path / "encoder")
    facts = read_encoder(tmp_path / "encoder").facts
    assert (facts.side, facts.shorter_side, facts.output) == (227, 256, (16, 6, 6))
    module, _ = load_encoder(tmp_path / "encoder")
    weights, axis = module.get_submodule("conv1").get_parameter("weight"), torch.tensor([-1.0, 2.0, -1.0]).view(1, 3, 1, 1)
    for each in (weights, random_start(facts, 3).get_submodule("conv1").get_parameter("weight")):
        seen = (each * axis).sum(1).abs().max()
        assert (seen < 1e-6) == (recipe == "relative_position"), "an encoder of projected colours sees no green against magenta"
    for number in range(8):
        folder = tmp_path / "pictures" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 40, 3), 20 * number, np.uint8)).save(folder / f"{number}.png")
    quick = ("--layers", "pool5", "--folds", "2", "--knn", "1", "--device", "cpu", "--out", str(tmp_path / "probe.json"))
    assert main(["probe", str(tmp_path / "encoder"), "--labelled", str(tmp_path / "pictures"), *quick]) == 0
    assert json.loads((tmp_path / "probe.json").read_text())["encoder"]["recipe"] == recipe
    assert ("accuracy" in (tmp_path / "encoder" / "README.md").read_text()) == (recipe != "denoising")
    with pytest.raises(EncoderInvalid, match="does not learn to fill holes"):
        read_painter(str(tmp_path / "run"))
