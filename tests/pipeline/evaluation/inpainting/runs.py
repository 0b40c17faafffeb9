"""Runs of narrow networks and the data sets that they were trained on, for tests of the table of inpainting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline import recipes
from pipeline.config import parse, to_mapping
from pipeline.training.checkpoint.store import Checkpoint, write
from shards.dataset.manifest import Manifest
from shards.store import Store

TINY = ("--recipe", "inpainting", "--method.width", "4", "--method.bottleneck", "8", "--method.image_size", "64")


def write_run(folder: Path, shards: Path, manifest: Manifest, held_back: int, *more: str, step: int = 20, recipe: Sequence[str] = TINY) -> None:
    """Writes a run folder with one checkpoint whose settings and position name a data set.

    Args:
        folder: run folder.
        shards: folder of the data set.
        manifest: manifest of the data set.
        held_back: samples that the run holds back.
        more: further settings.
        step: step of the checkpoint.
        recipe: settings of the recipe.
    """
    config = parse(recipes.SETTINGS, ["--data.shards", str(shards), *recipe, *more])
    made = recipes.make(config.recipe, config.method, config.seed)
    random = torch.Generator().manual_seed(step)
    for player in made.players:
        for name, tensor in player.network.state_dict().items():
            drawn = torch.randn(tensor.shape, generator=random)
            tensor.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else tensor + 0.05 * drawn)
    position = {"epoch": 0, "consumed": 0, "lanes": 64, "held_back": held_back, "data_set": manifest.fingerprint}
    facts = {"recipe": config.recipe, "position": position, "config": to_mapping(config), "decoder": "simplejpeg", "stored_side": 96}
    write(Store(str(folder / "checkpoints")), Checkpoint(step, facts, {each.name: each.network.state_dict() for each in made.players}))
