"""The evaluation of a run: it changes nothing of the training, its figures are right, and an interruption changes none of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from monitoring.run_files import EVALUATION, EVENTS, HISTORY
from pipeline import recipes
from pipeline.config import parse
from pipeline.recipes.inpainting import InpaintingRecipe
from pipeline.recipes.player import Networks, Views
from pipeline.stream.fixed import held_back_choice
from pipeline.stream.held_back import held_back_ids
from pipeline.stream.loader import StreamConfig, StreamLoader
from pipeline.stream.order import SampleOrder
from pipeline.training.checkpoint.store import read
from pipeline.training.held_back.opening import EvaluationError
from pipeline.training.loop import Outcome, pretrain
from pipeline.training.record.ledger import _Replay, _Source, account
from pipeline.training.record.run_folder import read_lines
from pipeline.training.reporting.reporter import Reporter, StepFacts
from pipeline.training.supervision.interruption import Interruption
from shards.dataset import manifest as manifests
from shards.store import Store
from tests.datasets import photographs, write_dataset

SMALL = ["--method.width", "8", "--method.bottleneck", "8", "--method.batch_norm_group", "4", "--training.global_batch", "8"]
RECIPES = {
    "features": ["--recipe", "features", "--method.width", "6", "--training.global_batch", "8"],
    "features with batch-norm": [
        *("--recipe", "features", "--method.width", "6", "--training.global_batch", "8"),
        *("--method.batch_norm", "True", "--method.batch_norm_group", "4"),
    ],
    "inpainting": ["--recipe", "inpainting", *SMALL],
    "inpainting, random": ["--recipe", "inpainting", *SMALL, "--method.mask.kind", "block", "--method.mask.overlap", "0"],
    "autoencoder": ["--recipe", "autoencoder", "--method.width", "6", "--training.global_batch", "8"],
}


@pytest.fixture(scope="module")
def shards(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    return made_once("evaluated", lambda folder: write_dataset(folder, photographs(120, 140, 160), [70, 50]))


@pytest.fixture(scope="module")
def damaged(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The same pictures, of which one that is held back is damaged."""

    def fill(folder: Path) -> None:
        pictures = photographs(120, 140, 160)
        whole = write_dataset(folder / "whole", pictures, [70, 50])
        for number in range(120):  # which pictures are held back depends on the bytes of all of them
            changed = [*pictures[:number], pictures[number][:300], *pictures[number + 1 :]]
            manifest = write_dataset(folder / "damaged", changed, [70, 50])
            if number in held_back_ids(manifest, 36):
                break
        assert whole.total_samples == 120

    return made_once("damaged", fill) / "damaged"


def train(shards: Path, run: Path, steps: int, *more: str) -> Outcome:
    settings = ["--data.shards", str(shards), "--run", str(run), "--training.steps", str(steps), "--data.threads", "1"]
    settings += ["--monitoring.enabled", "False", "--training.pictures_every", "0", "--evaluation.held_back", "0.3", *more]
    return pretrain(parse(recipes.SETTINGS, settings), Interruption())


def evaluations(run: Path) -> dict[int, dict[str, Any]]:
    """Step -> row, without what the clock and the attempt make different."""
    return {row["step"]: {k: v for k, v in row.items() if k not in ("seconds", "attempt")} for row in read_lines(run / EVALUATION)}


def tensors(run: Path, step: int) -> dict[str, Any]:
    return dict(read(Store(str(run / "checkpoints")), step).tensors)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_weights_with_and_without_evaluation_are_equal_to_the_bit(recipe: str, shards: Path, tmp_path: Path) -> None:
    often = ["--evaluation.every", "1", "--evaluation.pictures", "8", "--training.pictures_every", "2"]
    train(shards, tmp_path / "with", 3, *RECIPES[recipe], *often)
    train(shards, tmp_path / "without", 3, *RECIPES[recipe], "--evaluation.every", "0")
    assert sorted(evaluations(tmp_path / "with")) == [0, 1, 2, 3]
    assert not (tmp_path / "without" / EVALUATION).exists()
    found, expected = tensors(tmp_path / "with", 3), tensors(tmp_path / "without", 3)
    assert found.keys() == expected.keys()
    for player, named in expected.items():
        for name, tensor in named.items():
            assert torch.equal(found[player][name], tensor), f"{player} {name}"
    samples = [[row["samples"] for row in read_lines(tmp_path / name / HISTORY)] for name in ("with", "without")]
    assert samples[0] == samples[1]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["features", "inpainting", "autoencoder"])
def test_baselines_are_what_one_colour_scores(recipe: str, damaged: Path, tmp_path: Path) -> None:
    """Computed once more from the pictures themselves, with NumPy."""
    outcome = train(damaged, tmp_path, 1, *RECIPES[recipe], "--data.max_bad_fraction", "0.1")
    row = evaluations(tmp_path)[1]
    config = parse(recipes.SETTINGS, ["--data.shards", str(damaged), *RECIPES[recipe]])
    made = recipes.make(config.recipe, config.method, 0)
    stream = StreamConfig(config.data, made.image_size, config.training.global_batch, mask=made.mask, held_back=0.3)
    with StreamLoader(stream) as loader:
        choice = held_back_choice(loader, 256)
        samples, bad = choice.read(range(choice.count))
    assert [error.sample_id for error in bad] == [row["sample_id"] for row in read_lines(tmp_path / "quarantine.jsonl")]
    readable = samples.readable.numpy()
    assert row["pictures"] == readable.sum() == 35
    pixels, masks = samples.images.double().numpy()[readable] / 255, samples.masks.numpy()[readable]
    visible = [picture[~mask].mean(0) for picture, mask in zip(pixels, masks, strict=True)]
    for name, colours in (("visible_mean", visible), ("constant", [np.mean(visible, 0)] * len(visible))):
        judged = [picture[mask if mask.any() else ~mask] for picture, mask in zip(pixels, masks, strict=True)]
        wrong = [np.abs(picture - colour) for picture, colour in zip(judged, colours, strict=True)]
        squared = [np.square(each).mean() for each in wrong]
        assert row["baselines"][name]["l1"] == pytest.approx(100 * np.mean([each.mean() for each in wrong]), rel=1e-4)
        assert row["baselines"][name]["l2"] == pytest.approx(100 * np.mean(squared), rel=1e-4)
        assert row["baselines"][name]["psnr"] == pytest.approx(np.mean([-10 * np.log10(each) for each in squared]), rel=1e-4)
        if recipe == "features":  # its loss is L1 over the dropped pixels, divided by 128 instead of 255
            assert row["baselines"][name]["loss"] == pytest.approx(row["baselines"][name]["l1"] / 100 * 255 / 128, rel=1e-3)
    assert row["gain"] == pytest.approx(1 - row["l1"] / min(each["l1"] for each in row["baselines"].values()))
    assert "held back L1" in outcome.learned
    assert "the random start had" in outcome.learned
    assert set(row["maps"]) >= {"relu1", "relu2"}
    assert all(0 <= row["dead_maps"][layer] <= count for layer, count in row["maps"].items())
    assert row["probe"]["classes"] == 7


@pytest.mark.slow
def test_an_interrupted_run_has_the_evaluations_of_one_that_was_not(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stopped at steps whose evaluation was due, which the next attempt makes up for."""
    settings = [*RECIPES["inpainting"], "--evaluation.every", "2"]
    train(shards, tmp_path / "whole", 5, *settings)
    step = Reporter.step
    for stop_after in (2, 4):
        interruption = Interruption()

        def stopped(self: Reporter, facts: StepFacts, when: int = stop_after, by: Interruption = interruption) -> None:
            step(self, facts)
            if facts.step == when - 1:
                by._requested = "SIGTERM"  # the next step ends with the stop

        monkeypatch.setattr(Reporter, "step", stopped)
        more = ["--data.shards", str(shards), "--run", str(tmp_path / "stopped"), "--training.steps", "5", "--data.threads", "1"]
        more += ["--monitoring.enabled", "False", "--training.pictures_every", "0", "--evaluation.held_back", "0.3"]
        outcome = pretrain(parse(recipes.SETTINGS, [*settings, *more]), interruption)
        assert (outcome.step, outcome.finished) == (stop_after, False)
    monkeypatch.setattr(Reporter, "step", step)
    assert train(shards, tmp_path / "stopped", 5, *settings, "--evaluation.held_back", "0.1").finished, "the run keeps its own pictures"
    assert evaluations(tmp_path / "stopped") == evaluations(tmp_path / "whole")
    assert sorted(evaluations(tmp_path / "whole")) == [0, 2, 4, 5]
    found = account(tmp_path / "stopped")
    assert not found.problems
    assert {epoch.held_back for epoch in found.epochs} == {36}


def test_the_ledger_finds_a_held_back_sample_among_those_that_were_trained_on(shards: Path, tmp_path: Path) -> None:
    train(shards, tmp_path, 2, *RECIPES["inpainting"], "--evaluation.every", "0")
    rows = read_lines(tmp_path / EVENTS)
    for row in rows:
        if row["event"] == "start":
            row["position"]["held_back"] = 35  # others than those that were held back
    (tmp_path / EVENTS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert account(tmp_path).problems


def test_the_ledger_counts_held_back_samples_that_an_epoch_saw(shards: Path) -> None:
    source = _Source(0, "", manifests.load(str(shards)), 0)
    source.count(np.array([1, 1, 4]))
    assert source.count_trained_on(np.array([0, 1, 5])) == 1
    assert source.count_trained_on(np.array([1, 4])) == 2
    replay = _Replay([{"attempt": 1, "step": 0, "world_size": 1}], [source], frozenset())
    source.order = SampleOrder(source.manifest, 0, 8, held_back=12)
    source.counts = None
    source.count(source.order.samples.held_back[:3])
    replay._end_epoch(source, True)
    assert replay._account.problems == ["epoch 0: 3 samples that are held back were trained on"]


@pytest.mark.slow
def test_networks_are_in_evaluation_mode_and_the_probe_sees_whole_pictures(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint, views = InpaintingRecipe.paint, InpaintingRecipe.views
    training, masked = set[bool](), list[bool]()

    def noted_paint(self: InpaintingRecipe, seen: Views, networks: Networks) -> Tensor:
        training.update(network.training for network in networks.values())
        return paint(self, seen, networks)

    def noted_views(self: InpaintingRecipe, images: Tensor, masks: Tensor, labels: Tensor | None, keys: Tensor) -> Views:
        if not torch.is_grad_enabled() and len(images) > 8:  # more than a batch: a chunk of the evaluation
            masked.append(bool(masks.any()))
        return views(self, images, masks, labels, keys)

    monkeypatch.setattr(InpaintingRecipe, "paint", noted_paint)
    monkeypatch.setattr(InpaintingRecipe, "views", noted_views)
    train(shards, tmp_path, 1, *RECIPES["inpainting"])
    assert training == {False}
    assert masked.count(False) == 2, "one chunk of more than a batch, before and after the step"


def test_a_data_set_that_is_trained_on_is_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="is trained on as well"):
        train(shards, tmp_path, 1, *RECIPES["inpainting"], "--evaluation.shards", str(shards))


@pytest.mark.slow
def test_pictures_none_of_which_can_be_read_leave_the_run_without_figures(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path / "own", [picture[:200] for picture in photographs(3, 140, 160)], [3])
    settings = [*RECIPES["inpainting"], "--evaluation.shards", str(tmp_path / "own"), "--data.max_bad_fraction", "1"]
    assert train(shards, tmp_path / "run", 1, *settings, "--training.pictures_every", "1").finished
    assert "none of the held-back pictures can be read" in capsys.readouterr().err
    assert not (tmp_path / "run" / EVALUATION).exists()
    quarantined = {row["sample_id"] for row in read_lines(tmp_path / "run" / "quarantine.jsonl")}
    assert quarantined == {120, 121, 122}, "ids behind those of the training set, so that no picture of it is taken for a bad one"


@pytest.mark.slow
def test_a_run_that_ends_with_a_signal_in_its_last_step_is_evaluated_by_the_next_call(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, interruption = Reporter.step, Interruption()

    def stopped(self: Reporter, facts: StepFacts) -> None:
        step(self, facts)
        interruption._requested = "SIGTERM"

    monkeypatch.setattr(Reporter, "step", stopped)
    settings = ["--data.shards", str(shards), "--run", str(tmp_path), "--training.steps", "2", "--data.threads", "1"]
    settings += ["--monitoring.enabled", "False", "--training.pictures_every", "0", *RECIPES["inpainting"]]
    assert pretrain(parse(recipes.SETTINGS, settings), interruption).finished
    assert sorted(evaluations(tmp_path)) == [0]
    monkeypatch.setattr(Reporter, "step", step)
    assert "after step 2" in pretrain(parse(recipes.SETTINGS, settings), Interruption()).learned
    assert sorted(evaluations(tmp_path)) == [0, 2]


@pytest.mark.slow
def test_a_data_set_of_its_own_leaves_the_training_set_whole(shards: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "own", photographs(10, 140, 160), [10])
    train(shards, tmp_path / "run", 2, *RECIPES["inpainting"], "--evaluation.shards", str(tmp_path / "own"))
    assert evaluations(tmp_path / "run")[2]["pictures"] == 10
    assert account(tmp_path / "run").epochs[0].held_back == 0


def test_a_set_that_can_spare_none_is_not_evaluated(tmp_path: Path) -> None:
    write_dataset(tmp_path / "few", photographs(20, 140, 160), [20])
    outcome = train(tmp_path / "few", tmp_path / "run", 1, *RECIPES["inpainting"])
    assert "not evaluated on pictures that are not trained on: the run holds no pictures back" in outcome.learned
    assert not (tmp_path / "run" / EVALUATION).exists()
