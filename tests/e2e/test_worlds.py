"""One global batch is one gradient, whatever the number of ranks and the mode: DDP at 1 to 4 ranks, ZeRO 1 to 3 at 2 and 3.

Neither 3 nor 4 divides the batches, so that ranks have unequal shares and, with micro-batches of one unit, unequal numbers of passes.
Every recipe, optimiser, mode and number of ranks meets every other, not each combination of them all.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline import recipes
from pipeline.config import parse
from pipeline.training.checkpoint.store import CheckpointStore, folder_name, read, step_of
from pipeline.training.record.run_folder import read_lines
from shards.store import Store
from shards.urls import split
from tests.launching import losses, setting_list, train_in_turn

STEPS, TOLERANCE = 20, 1e-4
MOVED = 5e-2  # of what 20 steps did, to weights and to the optimiser's state; float32 rounds weights off by up to a fiftieth of it
UNJUDGED = ["--evaluation.every", "0"]  # an evaluation takes longer than the training, and never changes it
# an eighth of the published network, which begins with paintings that are far off, so that its gradients are long
NARROW = ["--recipe", "features", "--method.width", "12", "--method.output_gain", "1"]
FEATURES = [*NARROW, "--training.global_batch", "5"]
LARGER = [*NARROW, "--training.global_batch", "16"]
INPAINTING = ["--recipe", "inpainting", "--training.global_batch", "20", "--method.batch_norm_group", "4"]
INPAINTING += ["--method.width", "8", "--method.bottleneck", "16"]
PATCHES = ["--recipe", "relative_position", "--training.global_batch", "10", "--method.batch_norm_group", "2", "--method.width", "6"]
PATCHES += ["--method.units", "8", "--method.patch", "70", "--method.gap", "20", "--method.jitter", "5"]


def sgd(rate: str, *optimisers: str) -> list[str]:
    """Plain descent shows a wrong scale of the gradient, which Adam divides away. In small steps: at usual rates a difference in the last
    bit crosses so many kinks of the ReLUs within 20 steps that biases, which start at 0, differ by per cents."""
    return [part for name in optimisers for part in (f"--method.{name}.kind", "sgd", f"--method.{name}.learning_rate", rate)]


def adam(*optimisers: str) -> list[str]:
    """Small steps, as with sgd, and an epsilon of the gradients' size: Adam's steps then depend on the gradient's scale."""
    return [part for name in optimisers for part in (f"--method.{name}.learning_rate", "1e-6", f"--method.{name}.epsilon", "1e-4")]


BOTH = ("optimiser", "discriminator_optimiser")
CONFIGURATIONS = {
    "features, sgd, a batch of 16": [
        *LARGER,
        *sgd("2e-5", "optimiser"),
        *("--training.micro_batch", "4", "--training.max_gradient_norm", "1.0"),
    ],
    "features, sgd, accumulated and clipped": [
        *FEATURES,
        *sgd("2e-5", "optimiser"),
        *("--training.micro_batch", "2", "--training.max_gradient_norm", "1.0"),
    ],
    "features, adam": [*FEATURES, *adam("optimiser")],
    "inpainting, adam, accumulated and clipped": [
        *INPAINTING,
        *adam(*BOTH),
        *("--training.micro_batch", "4", "--training.max_gradient_norm", "0.25"),
    ],
    "inpainting, sgd": [*INPAINTING, *sgd("5e-5", *BOTH)],
    "inpainting, usual rates": INPAINTING,
    "relative position, sgd, accumulated": [*PATCHES, *sgd("2e-5", "optimiser"), "--training.micro_batch", "4"],
}
FEATURES_16, FEATURES_SGD, FEATURES_ADAM, INPAINTING_ADAM, INPAINTING_SGD, USUAL, PATCHES_SGD = CONFIGURATIONS
BEFORE = {
    FEATURES_SGD: [*FEATURES, *sgd("1e-3", "optimiser"), "--training.max_gradient_norm", "1.0"],
    FEATURES_ADAM: FEATURES,
    INPAINTING_ADAM: INPAINTING,
    INPAINTING_SGD: [*INPAINTING, *sgd("1e-2", *BOTH)],
    PATCHES_SGD: [*PATCHES, *sgd("1e-3", "optimiser")],
}
"""Trainings that come first, at rates that move the weights. Biases start at 0, and the gradients of some are sums that nearly cancel:
after a few small steps from there they would hold little but last bits."""
PLAN = {
    1: [(name, "ddp") for name in (FEATURES_16, FEATURES_SGD, FEATURES_ADAM, INPAINTING_ADAM, INPAINTING_SGD, PATCHES_SGD)],
    2: [
        (PATCHES_SGD, "zero3"),
        (FEATURES_16, "ddp"),
        (FEATURES_SGD, "zero2"),
        *((FEATURES_ADAM, mode) for mode in ("zero1", "zero3")),
        *((INPAINTING_ADAM, mode) for mode in ("ddp", "zero1", "zero3")),
        (INPAINTING_SGD, "zero2"),
        *((USUAL, mode) for mode in ("ddp", "zero1", "zero2", "zero3")),
    ],
    3: [
        (FEATURES_16, "ddp"),
        *((FEATURES_SGD, mode) for mode in ("zero1", "zero3")),
        *((FEATURES_ADAM, mode) for mode in ("ddp", "zero2")),
        *((INPAINTING_ADAM, mode) for mode in ("ddp", "zero2")),
        *((INPAINTING_SGD, mode) for mode in ("ddp", "zero1", "zero3")),
    ],
    4: [(FEATURES_16, "ddp"), (FEATURES_ADAM, "ddp"), (INPAINTING_ADAM, "ddp"), (INPAINTING_SGD, "ddp")],
}
"""Ranks -> what they train, one after another."""

Runs = dict[tuple[str, str], Path]


@pytest.fixture(scope="module")
def trained(imagenet_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Runs]:
    """(configuration, mode) -> run folder of what a number of ranks trained, in one start of them."""
    done: dict[int, Runs] = {}

    beginning = tmp_path_factory.mktemp("beginning")

    def command(name: str, mode: str, run: Path) -> list[str]:
        start = ["--checkpoint.resume", str(beginning / name / "checkpoints" / folder_name(STEPS))] if name in BEFORE else []
        settings = setting_list(imagenet_shards, run, first_step(name) + STEPS, *CONFIGURATIONS[name], *UNJUDGED)
        return [*settings, "--training.mode", mode, *start]

    def train(ranks: int) -> Runs:
        if not done:
            runs = [[*setting_list(imagenet_shards, beginning / name, STEPS, *more, *UNJUDGED)] for name, more in BEFORE.items()]
            train_in_turn(beginning, 1, runs)
        if ranks not in done:
            folder = tmp_path_factory.mktemp(f"ranks{ranks}")
            done[ranks] = {case: folder / f"{number}" for number, case in enumerate(PLAN[ranks])}
            train_in_turn(folder, ranks, [command(name, mode, run) for (name, mode), run in done[ranks].items()])
        return done[ranks]

    return train


def first_step(name: str) -> int:
    """Steps that were done before those which are compared."""
    return STEPS if name in BEFORE else 0


def state(name: str, run: Path, ranks: int, mode: str) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of a run's last checkpoint; the run was what it was meant to be."""
    assert [row["world_size"] for row in read_lines(run / "events.jsonl") if row["event"] == "start"] == [ranks]
    store = Store(str(run / "checkpoints"))
    assert CheckpointStore(store).steps() == [first_step(name) + STEPS]
    found = read(store, first_step(name) + STEPS)
    assert (found.facts["mode"], found.facts["world_size"]) == (mode, ranks)
    return {file: dict(tensors) for file, tensors in found.tensors.items()}


def begun(name: str, run: Path) -> dict[str, dict[str, torch.Tensor]]:
    """State of a run's networks before its first step."""
    if name in BEFORE:
        settings = yaml.safe_load((run / "config.yaml").read_text())
        store, step = split(settings["checkpoint"]["resume"])
        return {file: dict(tensors) for file, tensors in read(Store(store), step_of(step, step)).tensors.items() if "." not in file}
    config = parse(recipes.SETTINGS, ["--data.shards", "none", *CONFIGURATIONS[name]])
    players = recipes.make(config.recipe, config.method, config.seed).players
    return {player.name: player.network.state_dict() for player in players}


def distance(one: torch.Tensor, other: torch.Tensor, measure: torch.Tensor) -> float:
    return float((one.double() - other.double()).norm() / measure.double().norm().clamp(min=1e-12))


def assert_same(name: str, run: Path, ranks: int, mode: str, reference: Path) -> None:
    found, expected = losses(run), losses(reference)
    assert list(expected) == list(range(first_step(name) + 1, first_step(name) + STEPS + 1))
    assert [found[step]["samples"] for step in expected] == [row["samples"] for row in expected.values()]
    for step, row in expected.items():
        for player, parts in row["losses"].items():
            for part, value in parts.items():
                assert found[step]["losses"][player][part] == pytest.approx(value, rel=TOLERANCE, abs=1e-6), (step, player, part)
            assert found[step]["gradient_norms"][player] == pytest.approx(row["gradient_norms"][player], rel=5e-3), (step, player)
    one, other, first = state(name, run, ranks, mode), state(name, reference, 1, "ddp"), begun(name, reference)
    assert {file: tensors.keys() for file, tensors in one.items()} == {file: tensors.keys() for file, tensors in other.items()}
    for file, tensors in other.items():
        for key, tensor in tensors.items():
            assert distance(one[file][key], tensor, tensor) < (TOLERANCE if file in first else MOVED), (file, key)
            if file in first:  # in small steps weights hardly move: the way that they went has to be the same, too
                moved = tensor - first[file][key]
                assert moved.norm() > 0, (file, key)
                assert distance(one[file][key], tensor, moved) < MOVED, (file, key)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_training_is_that_of_one_process(trained: Callable[[int], Runs], ranks: int) -> None:
    alone = trained(1)
    for (name, mode), run in trained(ranks).items():
        if name != USUAL:
            print(f"{name}, {ranks} ranks, {mode}")  # shown where it fails
            assert_same(name, run, ranks, mode, alone[name, "ddp"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_clipping_was_on_where_it_was_asked_for(trained: Callable[[int], Runs]) -> None:
    for name, limit in ((FEATURES_SGD, 1.0), (INPAINTING_ADAM, 0.25)):
        norms: list[Any] = [row["gradient_norms"] for row in losses(trained(1)[name, "ddp"]).values()]
        assert all(value > limit for row in norms for value in row.values()), norms


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_at_two_ranks_every_mode_trains_the_same_bits(trained: Callable[[int], Runs]) -> None:
    """The sum of two gradients does not depend on their order, so that nothing hides behind a tolerance, at rates that move the weights."""
    runs = {mode: run for (name, mode), run in trained(2).items() if name == USUAL}
    expected = state(USUAL, runs["ddp"], 2, "ddp")
    for mode in ("zero1", "zero2", "zero3"):
        rows = losses(runs[mode])
        assert {step: row["losses"] for step, row in rows.items()} == {step: row["losses"] for step, row in losses(runs["ddp"]).items()}
        for file, tensors in state(USUAL, runs[mode], 2, mode).items():
            assert tensors.keys() == expected[file].keys()
            assert [name for name, tensor in tensors.items() if not tensor.equal(expected[file][name])] == [], (mode, file)
