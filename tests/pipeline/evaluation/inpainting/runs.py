"""Runs of narrow networks with the data sets that they were trained on, and their tables of inpainting, for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline import recipes
from pipeline.config import parse, to_mapping
from pipeline.evaluation.inpainting.settings import InpaintingConfig
from pipeline.evaluation.inpainting.settings import parse as parse_table
from pipeline.training.checkpoint.store import Checkpoint, write
from pipeline.training.mask_shapes import SHAPES, shapes_digest
from shards.dataset import manifest
from shards.store import Store

TINY = ("--recipe", "inpainting", "--method.width", "4", "--method.bottleneck", "8", "--method.image_size", "64")
SMALL = ("--batch", "2", "--part", "2", "--train_part", "16", "--workers", "1", "--data.threads", "1", "--pictures", "3")
MOST = "mean,telea,nearest_hog,nearest_encoder"
HELD_BACK = 12


def write_run(
    folder: Path, sets: Path | Mapping[str, Path], *more: str, held_back: int = HELD_BACK, recipe: Sequence[str] = TINY, spoil: float = 0.0
) -> None:
    """Writes a run folder with one checkpoint of step 20, whose settings and position name its data sets.

    Args:
        folder: run folder.
        sets: folder of the data set, or of each of several by its name in data.sources.
        more: further settings.
        held_back: samples that the run holds back of every data set.
        recipe: settings of the recipe.
        spoil: number that is added to every weight.
    """
    named = sets if isinstance(sets, Mapping) else {"": sets}
    shards = [word for name, place in named.items() for word in (f"--data.{f'sources.{name}.' if name else ''}shards", str(place))]
    config = parse(recipes.SETTINGS, [*shards, *recipe, *more])
    made = recipes.make(config.recipe, config.method, config.seed)
    random = torch.Generator().manual_seed(20)
    for player in made.players:
        for name, tensor in player.network.state_dict().items():
            if tensor.is_floating_point():
                drawn = torch.randn(tensor.shape, generator=random)
                tensor.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else tensor + 0.05 * drawn + spoil)
    position = {"seed": config.seed}
    for name, place in named.items():
        fingerprint = manifest.load(str(place)).fingerprint
        facts = {"epoch": 0, "consumed": 0, "lanes": 64, "held_back": held_back, "data_set": fingerprint}
        position |= {f"{name}.{fact}" if name else fact: value for fact, value in facts.items()}
    known = {"recipe": config.recipe, "position": position, "config": to_mapping(config), "decoder": "simplejpeg", "stored_side": 96}
    known[SHAPES] = shapes_digest(made.mask)
    write(Store(str(folder / "checkpoints")), Checkpoint(20, known, {each.name: each.network.state_dict() for each in made.players}))


def settings(given: Path, out: Path, *more: str) -> InpaintingConfig:
    """Settings of a table of small parts, of four methods."""
    return parse_table([str(given / "run"), "--out", str(out), "--methods", MOST, *SMALL, *more])


def table_of(folder: Path) -> dict[str, Any]:
    """The table of a folder without the seconds that it took."""
    found: dict[str, Any] = json.loads((folder / "table.json").read_bytes())
    assert found.pop("seconds").keys() >= {"decode", "network", "figures"}
    return found
