"""Where a run continues: the checkpoint that counts, on every rank, and the players that it fills.

Rank 0 reads and the others are told, so that only rank 0 needs to see the store that checkpoints are in.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.config import Config, TrainingConfig
from pipeline.recipes.player import Player, Recipe
from pipeline.training.checkpoint.store import Checkpoint, CheckpointInvalid, CheckpointStore, read, step_of
from pipeline.training.engine.engine import Contestant, Replicated
from pipeline.training.ranks.world import World
from pipeline.training.record.run_folder import RunFolderError
from shards.store import Store
from shards.urls import split


def find(config: Config[Any], checkpoints: CheckpointStore, world: World, decoder: str) -> Checkpoint | None:
    """The checkpoint to continue from, on every rank; rank 0 reads and the others are told, so that only it needs to see the store.
    `decoder` describes what decodes pictures here."""
    found = world.on_first(lambda: _read(config, checkpoints, decoder))
    facts = world.share((found.step, dict(found.facts)) if found else None)
    if facts is None:
        return None
    flat = {f"{file}\0{name}": tensor for file, tensors in found.tensors.items() for name, tensor in tensors.items()} if found else None
    tensors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in world.share_tensors(flat).items():
        file, _, name = key.partition("\0")
        tensors.setdefault(file, {})[name] = tensor
    return Checkpoint(facts[0], facts[1], tensors)


def _read(config: Config[Any], checkpoints: CheckpointStore, decoder: str) -> Checkpoint | None:
    resume, where = config.checkpoint.resume, checkpoints.store.describe()
    steps = checkpoints.steps()
    if resume == "none" and steps:
        raise RunFolderError(
            f"{where}: holds checkpoints up to step {steps[-1]}. Choose another folder with --run, or --checkpoint.resume auto"
        )
    if not steps and resume not in ("auto", "none"):  # where the run starts; later attempts continue from its own checkpoints
        parent, name = split(resume.rstrip("/"))
        store = Store(parent, config.data.storage_options if "://" in parent else None)
        found = read(store, step_of(name, store.describe(name)))
        _check(found, config, store.describe(), decoder)
        checkpoints.claim(Path(config.run))  # last: a start that fails takes the place from nobody
        return found
    checkpoints.claim(Path(config.run))
    newest = checkpoints.newest(lambda text: print(f"warning: {text}", file=sys.stderr, flush=True))
    if newest is None and steps:
        raise CheckpointInvalid(
            f"{where}: none of its {len(steps)} checkpoints verifies. Restore one, or start a new run with another --run"
        )
    if newest is not None:
        _check(newest, config, where, decoder)
    return newest


def _check(found: Checkpoint, config: Config[Any], where: str, decoder: str) -> None:
    """Refuses a checkpoint of another recipe, or of pictures from another decoder."""
    if found.facts["recipe"] != config.recipe:
        raise CheckpointInvalid(
            f"{where}: the checkpoint of step {found.step} is one of the recipe {found.facts['recipe']!r}, "
            f"this run's is {config.recipe!r}. Choose another folder with --run, or the other recipe"
        )
    if found.facts["decoder"] != decoder and not config.checkpoint.other_decoder:
        raise CheckpointInvalid(
            f"{where}: step {found.step} was trained on pictures decoded by {found.facts['decoder']}, here is {decoder}: "
            "pixels may differ in their last bit. Set data.decoder back or install the other version, or accept it with "
            "--checkpoint.other_decoder True"
        )


def enter(recipe: Recipe, found: Checkpoint | None, world: World, training: TrainingConfig) -> list[Contestant]:
    """Brings the players into the run: weights from the checkpoint, on the device, wrapped, with their optimisers.

    Raises:
        CheckpointInvalid: it does not fit these players.
        ConfigError: the mode can't be had here.
    """
    contestants = []
    for player in recipe.players:
        if found is not None:
            _load_weights(player.name, player.network, found)
        contestants.append(_contestant(player, world, training))
        if found is not None:
            contestants[-1].load_optimiser(found.tensors.get(f"{player.name}.optimiser", {}))
    return contestants


def _contestant(player: Player, world: World, training: TrainingConfig) -> Contestant:
    player.network.train()
    if training.mode == "ddp":
        return Replicated(player, world, training.max_gradient_norm)
    from pipeline.training.engine.zero import Sharded  # noqa: PLC0415  # not needed, nor paid for, without DeepSpeed

    return Sharded(player, world, training)


def _load_weights(name: str, network: torch.nn.Module, found: Checkpoint) -> None:
    saved, own = found.tensors.get(name, {}), network.state_dict()
    wrong = sorted(saved.keys() ^ own.keys()) + sorted(key for key in saved.keys() & own.keys() if saved[key].shape != own[key].shape)
    if wrong:
        raise CheckpointInvalid(
            f"the checkpoint of step {found.step} does not fit the {name} of these settings: {len(wrong)} tensors differ, "
            f"the first is {wrong[0]}. Set method.* as it was (the run folder's config.yaml), or choose another folder with --run"
        )
    network.load_state_dict(dict(saved))
