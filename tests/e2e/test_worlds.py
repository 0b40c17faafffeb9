"""One global batch is one gradient, whatever the number of ranks: 1, 2, 3 (which does not divide it) and 4."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.training.checkpoint import CheckpointStore, read
from shards.store import Store
from tests.launching import launch, losses, setting_list

STEPS, TOLERANCE = 20, 1e-4


def rule(name: str) -> list[str]:
    """Plain descent in small steps. Adam divides by the gradient's size and so hides a wrong scale, and at its usual rate a
    difference in the last bit crosses so many kinks of the ReLUs within 20 steps that biases, which start at 0, differ by
    per cents."""
    return [f"--method.{name}.kind", "sgd", f"--method.{name}.learning_rate", "2e-5"]


def train(shards: Path, run: Path, ranks: int, *settings: str) -> dict[str, torch.Tensor]:
    done = launch(ranks, *setting_list(shards, run, STEPS, *settings), timeout=580)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"world size {ranks}" in done.stderr
    store = Store(str(run / "checkpoints"))
    assert CheckpointStore(store).steps() == [STEPS]
    found = read(store, STEPS)
    return {
        f"{file}: {name}": tensor for file, tensors in found.tensors.items() for name, tensor in tensors.items() if "optimiser" not in file
    }


def assert_same_training(shards: Path, folder: Path, worlds: list[int], *settings: str, weight_tolerance: float = TOLERANCE) -> None:
    weights = {ranks: train(shards, folder / f"run{ranks}", ranks, *settings) for ranks in worlds}
    expected = losses(folder / f"run{worlds[0]}")
    assert len(expected) == STEPS
    for ranks in worlds[1:]:
        found = losses(folder / f"run{ranks}")
        assert [found[step]["samples"] for step in expected] == [row["samples"] for row in expected.values()]
        for step, row in expected.items():
            for player, parts in row["losses"].items():
                for part, value in parts.items():
                    assert found[step]["losses"][player][part] == pytest.approx(value, rel=TOLERANCE, abs=1e-6), (ranks, step, player, part)
        for name, tensor in weights[worlds[0]].items():
            other = weights[ranks][name]
            difference = (other.double() - tensor.double()).norm() / tensor.double().norm().clamp(min=1e-12)
            assert float(difference) < weight_tolerance, (ranks, name)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_features_at_1_2_3_and_4_ranks(imagenet_shards: Path, tmp_path: Path) -> None:
    settings = ["--training.global_batch", "32", "--training.micro_batch", "8", "--training.max_gradient_norm", "1.0"]
    assert_same_training(imagenet_shards, tmp_path, [1, 2, 3, 4], *settings, *rule("optimiser"))


@pytest.mark.slow
def test_inpainting_with_batch_norm_groups_at_1_2_and_3_ranks(imagenet_shards: Path, tmp_path: Path) -> None:
    network = ["--method.width", "16", "--method.bottleneck", "64", "--method.batch_norm_group", "4"]
    settings = ["--recipe", "inpainting", "--training.global_batch", "16", "--training.micro_batch", "4", *network]
    rules = [*rule("optimiser"), *rule("discriminator_optimiser")]
    # the biases of batch norm start at 0 and are sums that nearly cancel: a wrong scale shows in them as a difference of tenths
    assert_same_training(imagenet_shards, tmp_path, [1, 2, 3], *settings, *rules, weight_tolerance=5e-3)
