"""Finds the checkpoint that a run continues from, and builds the engines with its state.

Rank 0 reads and broadcasts, so that only rank 0 needs access to the store of the checkpoints.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.config import Config, TrainingConfig
from pipeline.masking.source import MaskSource
from pipeline.model.whole_convolution import to_memory_format
from pipeline.recipes.player import Player, Recipe
from pipeline.training.checkpoint.store import Checkpoint, CheckpointInvalid, CheckpointStore, read, step_of
from pipeline.training.engine.compilation import compile_network
from pipeline.training.engine.engine import MEMORY_FORMATS, Engine, ReplicatedEngine
from pipeline.training.mask_shapes import changed_shapes, check_ranks
from pipeline.training.ranks.world import World
from pipeline.training.record.run_folder import RunFolderError
from shards.counting import counted
from shards.store import Store
from shards.urls import split

_OF_THE_ATTEMPT = ("run", "training.steps", "checkpoint.url", "checkpoint.resume")  # settings that may differ in every attempt


def find_checkpoint(
    config: Config[Any], checkpoints: CheckpointStore, world: World, decoder: str, mask: MaskSource | None = None
) -> Checkpoint | None:
    """Returns the checkpoint to continue from, on every rank; None for a new run.

    Args:
        config: settings of the run.
        checkpoints: checkpoints of the run; only rank 0 reads them.
        world: ranks of the run.
        decoder: description of the decoder of this attempt.
        mask: source of the masks of this attempt.

    Raises:
        RunFolderError: checkpoint.resume is none and there are checkpoints, or another run writes there.
        CheckpointInvalid: no checkpoint verifies, or the one found is of another recipe, decoder or bank of shapes.
        ShapesError: the ranks read different banks of shapes.
        StoreError: the store does not answer.
    """
    check_ranks(mask, world)
    found = world.on_first(lambda: _read(config, checkpoints, decoder, mask))
    facts = world.broadcast((found.step, dict(found.facts)) if found else None)
    if facts is None:
        return None
    flat = {f"{file}\0{name}": tensor for file, tensors in found.tensors.items() for name, tensor in tensors.items()} if found else None
    tensors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in world.broadcast_tensors(flat).items():
        file, _, name = key.partition("\0")
        tensors.setdefault(file, {})[name] = tensor
    return Checkpoint(facts[0], facts[1], tensors)


def _read(config: Config[Any], checkpoints: CheckpointStore, decoder: str, mask: MaskSource | None) -> Checkpoint | None:
    resume, where = config.checkpoint.resume, checkpoints.store.describe()
    steps = checkpoints.steps()
    if resume == "none" and steps:
        raise RunFolderError(
            f"{where}: holds checkpoints up to step {steps[-1]}. Choose another folder with --run, or --checkpoint.resume auto"
        )
    if not steps and resume not in ("auto", "none"):  # start of the run; later attempts continue from its own checkpoints
        parent, name = split(resume.rstrip("/"))
        store = Store(parent, config.data.storage_options if "://" in parent else None)
        found = read(store, step_of(name, store.describe(name)))
        _check(found, config, store.describe(), decoder, mask)
        checkpoints.claim(Path(config.run))  # last, so that a start that fails takes the place from no other run
        return found
    checkpoints.claim(Path(config.run))
    newest = checkpoints.newest(lambda text: print(f"warning: {text}", file=sys.stderr, flush=True))
    if newest is None and steps:
        raise CheckpointInvalid(
            f"{where}: none of {counted(len(steps), 'checkpoint')} verifies. Restore one, or start a new run with another --run"
        )
    if newest is not None:
        _check(newest, config, where, decoder, mask)
    return newest


def _check(found: Checkpoint, config: Config[Any], where: str, decoder: str, mask: MaskSource | None) -> None:
    """Refuses a checkpoint of another recipe, of pictures from another decoder, or of masks of other shapes."""
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
    kind = getattr(getattr(config.method, "mask", None), "kind", "")
    if changed := changed_shapes(found.facts, mask, kind):
        named = "" if config.checkpoint.resume in ("auto", "none") else " and without --checkpoint.resume"
        raise CheckpointInvalid(f"{where}: step {found.step} {changed}, or start a new run with another --run{named}")


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    """Lists the settings that differ, one line each.

    Settings that say only how far and where this attempt goes are left out, and so are settings that one side does not have.

    Args:
        before: settings of the checkpoint.
        now: settings of this attempt.
        path: prefix of the keys.
    """
    found = []
    for key in sorted(before.keys() & now.keys()):
        where, old, new = f"{path}{key}", *(list(each) if isinstance(each, tuple) else each for each in (before[key], now[key]))
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += changed_settings(old, new, f"{where}.")
        elif old != new and where not in _OF_THE_ATTEMPT:
            found.append(f"{where}: {old} -> {new}")
    return found


def build_engines(recipe: Recipe, found: Checkpoint | None, world: World, training: TrainingConfig) -> list[Engine]:
    """Builds the engine of every player: weights from the checkpoint, network on the device and wrapped, optimiser.

    Args:
        recipe: recipe with the players.
        found: checkpoint to continue from; None starts from the players' initial weights.
        world: ranks of the run.
        training: settings of the loop, with the mode.

    Raises:
        CheckpointInvalid: the checkpoint's weights do not fit these players.
        OptimiserMismatch: the checkpoint's optimiser state does not fit these players.
        ConfigError: DeepSpeed is needed and not installed, or a setting of an optimiser is out of range.
    """
    engines = []
    for player in recipe.players:
        if found is not None:
            _load_weights(player.name, player.network, found)
        engines.append(_engine(player, world, training))
        if found is not None:
            engines[-1].load_optimiser(found.tensors.get(f"{player.name}.optimiser", {}))
    return engines


def _engine(player: Player, world: World, training: TrainingConfig) -> Engine:
    player.network.train()
    compile_network(player.network, training)
    if training.mode == "ddp":
        if world.device.type == "cuda":  # on CPUs every mode has the same bits, and ZeRO's weights are contiguous
            to_memory_format(player.network, MEMORY_FORMATS[training.memory_format])
        return ReplicatedEngine(player, world, training.max_gradient_norm)
    from pipeline.training.engine.zero import ShardedEngine  # noqa: PLC0415  # imports DeepSpeed, which ddp does not need

    return ShardedEngine(player, world, training)


def _load_weights(name: str, network: torch.nn.Module, found: Checkpoint) -> None:
    saved, own = found.tensors.get(name, {}), network.state_dict()
    wrong = sorted(saved.keys() ^ own.keys()) + sorted(key for key in saved.keys() & own.keys() if saved[key].shape != own[key].shape)
    if wrong:
        raise CheckpointInvalid(
            f"the checkpoint of step {found.step} does not fit the {name} of these settings: "
            f"{counted(len(wrong), 'tensor differs', 'tensors differ')}, the first is {wrong[0]}. "
            "Set method.* as it was (the run folder's config.yaml), or choose another folder with --run"
        )
    network.load_state_dict(dict(saved))
