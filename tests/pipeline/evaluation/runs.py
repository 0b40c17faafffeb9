"""Runs for tests of finished encoders: networks of an eighth of the width, whose weights were drawn, in checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from monitoring.run_files import EVALUATION
from pipeline import recipes
from pipeline.config import parse, to_mapping
from pipeline.training.checkpoint.store import Checkpoint, write
from shards.store import Store

KINDS: dict[str, tuple[str, ...]] = {
    "caffenet": ("--recipe", "features", "--method.width", "12"),
    "torchvision": ("--recipe", "autoencoder", "--method.layout", "torchvision", "--method.width", "8"),
    "batch norm": ("--recipe", "features", "--method.width", "12", "--method.batch_norm", "True", "--method.pooling", "strided"),
    "inpainting": ("--recipe", "inpainting", "--method.width", "8", "--method.bottleneck", "16"),
}
"""Settings of a run by the kind of its encoder."""
FINGERPRINT = 0x0123456789ABCDEF


def write_run(folder: Path, kind: str, step: int = 20, seed: int = 3, trained: bool = True, **facts: Any) -> nn.Module:
    """Writes a run folder with one checkpoint, and returns the encoder in evaluation mode.

    Args:
        folder: run folder, made when missing.
        kind: key of KINDS.
        step: step of the checkpoint.
        seed: seed of the run.
        trained: whether weights and statistics differ from the run's initial ones.
        facts: facts of the checkpoint that replace those of such a run; ... leaves one out.
    """
    config = parse(recipes.SETTINGS, ["--data.shards", "https://name:secret@host/set", "--seed", str(seed), *KINDS[kind]])
    recipe = recipes.make(config.recipe, config.method, config.seed)
    plain = {
        "recipe": config.recipe,
        "position": {"epoch": 0, "consumed": 0, "lanes": 64, "data_set": FINGERPRINT},
        "config": to_mapping(config),
        "decoder": "simplejpeg",
        "stored_side": 256,
        "torch": str(torch.__version__),
    }
    random = torch.Generator().manual_seed(seed + step)
    for player in recipe.players:
        for name, tensor in player.network.state_dict().items() if trained else ():
            drawn = torch.randn(tensor.shape, generator=random)
            tensor.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else tensor + 0.05 * drawn)
    tensors = {player.name: player.network.state_dict() for player in recipe.players}
    kept = {name: fact for name, fact in {**plain, **facts}.items() if fact is not ...}
    write(Store(str(folder / "checkpoints")), Checkpoint(step, kept, tensors))
    encoder: nn.Module = next(player.network.encoder for player in recipe.players if hasattr(player.network, "encoder"))
    return encoder.eval()


def write_scores(folder: Path, *steps: int, choices: Mapping[int, str] | None = None) -> None:
    """Writes the rows of a run's evaluations, each with figures that follow from its step.

    Args:
        folder: run folder.
        steps: steps of the rows, in their order.
        choices: digest of the evaluated pictures by step; a step that is missing has a row without one.
    """
    both = {
        "constant": {"loss": 0.474, "l1": 9.5, "l2": 2.4, "psnr": 16.0},
        "visible_mean": {"loss": 0.395, "l1": 9.0, "l2": 2.1, "psnr": 17.0},
    }
    rows = [
        {"step": step, "attempt": 1, "pictures": 256, "loss": 0.5 - step / 1000, "l1": 9 - step / 10, "l2": 2.0, "psnr": 17 + step / 10}
        | {"baselines": both, "gain": step / 1000, "probe": None, "seconds": 1.0}
        | ({"choice": choices[step]} if choices and step in choices else {})
        for step in steps
    ]
    (folder / EVALUATION).write_text("".join(json.dumps(row) + "\n" for row in rows))


def pictures(side: int, count: int = 3, seed: int = 0) -> torch.Tensor:
    """Random pictures, uint8 (count, side, side, 3)."""
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
