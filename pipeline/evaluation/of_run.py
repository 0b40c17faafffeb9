"""The encoder of a checkpoint, which is the product of a pretraining run, with all that is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monitoring.run_files import EVALUATION, Lines
from pipeline import recipes
from pipeline.evaluation.architecture import EncoderInvalid, built, described, output_shape
from pipeline.evaluation.facts import EncoderFacts, assumed_side
from pipeline.mapping import ConfigError, from_mapping
from pipeline.recipes.player import ClassifyingRecipe, Recipe
from pipeline.training.checkpoint.store import Checkpoint, CheckpointInvalid, CheckpointStore, read
from pipeline.training.record.environment import environment
from pipeline.training.record.run_folder import checkpoint_store
from shards.store import Options

_PREFIX = "encoder."
_FINGERPRINT = "data_set"  # fact of a position, behind the data set's name


def trained_encoder(run: str, step: int | None = None, options: Options | None = None) -> tuple[EncoderFacts, dict[str, Tensor]]:
    """Reads the encoder of a checkpoint.

    Args:
        run: run folder, or the URL of its checkpoints.
        step: step of the checkpoint; None takes the newest that verifies.
        options: options of the store, as in fsspec.

    Returns:
        The facts, and the weights by the names of the layers, `conv1.weight`.

    Raises:
        CheckpointInvalid: no checkpoint verifies.
        EncoderInvalid: the checkpoint holds no encoder, or one that can't be described; or its recipe is not here.
        RunFolderError: the settings that the run keeps can't be read.
        StoreError: the store does not answer.
    """
    checkpoint, where = checkpoint_of(run, options, step, ", and no exported encoder")
    return _described(checkpoint, where, *_rows(Path(run), checkpoint.step))


def checkpoint_of(run: str, options: Options | None, step: int | None, lacks: str = "") -> tuple[Checkpoint, str]:
    """Reads a checkpoint of a run, and returns it with the words that name it in messages.

    Args:
        run: run folder, or the URL of its checkpoints.
        options: options of the store, as in fsspec.
        step: step of the checkpoint; None takes the newest that verifies.
        lacks: words of the error about what else is not there.

    Raises:
        CheckpointInvalid: no checkpoint verifies.
        StoreError: the store does not answer.
    """
    store = checkpoint_store(run, options)
    skipped: list[str] = []
    checkpoint = CheckpointStore(store).newest(skipped.append) if step is None else read(store, step)
    if checkpoint is None:
        raise CheckpointInvalid(f"{store.describe()}: no checkpoint that verifies{lacks}. {' '.join(skipped)}".rstrip())
    return checkpoint, f"{store.describe()}: step {checkpoint.step}"


def initial_encoder(recipe: str, method: Mapping[str, Any], player: str, seed: int, where: str) -> tuple[Recipe, nn.Module]:
    """Makes a recipe's networks as at step 0 of a run, and returns the recipe with the encoder of one of its players.

    Torch's generator of the CPU stays as it was.

    Args:
        recipe: name of the recipe.
        method: settings of the recipe.
        player: name of the player; "" takes the first that has an encoder.
        seed: seed of the run.
        where: the encoder as the error names it.

    Raises:
        EncoderInvalid: the recipe is not here, does not know these settings, or has no such player with an encoder.
    """
    if recipe not in recipes.RECIPES:
        raise EncoderInvalid(f"{where}: the recipe {recipe!r} is not in pipeline/recipes. There are: {', '.join(sorted(recipes.RECIPES))}")
    try:
        with torch.random.fork_rng(devices=[]):
            made = recipes.make(recipe, from_mapping(recipes.SETTINGS[recipe], method, "method"), seed, draws_masks=False)
    except ConfigError as error:
        raise EncoderInvalid(f"{where}: the settings of another version of this package? {error}") from error
    for each in made.players:
        encoder = getattr(each.network, _PREFIX[:-1], None)
        if isinstance(encoder, nn.Module) and player in ("", each.name):
            return made, encoder
    raise EncoderInvalid(f"{where}: the recipe {recipe!r} has no player{f' {player!r}' if player else ''} whose network has an `encoder`")


def exported(recipe: Recipe, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turns the weights of a recipe's encoder, by the names of its layers, into those for pictures that are normalised and nothing else."""
    return recipe.exported(weights) if isinstance(recipe, ClassifyingRecipe) else dict(weights)


def _described(
    checkpoint: Checkpoint, where: str, scores: Mapping[str, Any] | None, start: Mapping[str, Any] | None
) -> tuple[EncoderFacts, dict[str, Tensor]]:
    config = checkpoint.facts["config"]
    name, method, seed = str(checkpoint.facts["recipe"]), config["method"], int(config["seed"])
    recipe, encoder = initial_encoder(name, method, "", seed, where)
    player = next(each.name for each in recipe.players if getattr(each.network, _PREFIX[:-1], None) is encoder)
    saved = checkpoint.tensors.get(player, {})
    weights = {key.removeprefix(_PREFIX): tensor for key, tensor in saved.items() if key.startswith(_PREFIX)}
    if not weights:
        raise EncoderInvalid(f"{where} of the recipe {name!r} holds no encoder")
    weights, side = exported(recipe, weights), recipe.encoder_side if isinstance(recipe, ClassifyingRecipe) else recipe.image_size
    layers = described(encoder)
    stored = checkpoint.facts.get("stored_side")  # absent from checkpoints of older versions
    facts = EncoderFacts(
        layers=layers,
        side=side,
        mean=recipe.scale.mean,
        divisor=recipe.scale.divisor,
        fill=recipe.scale.fill or recipe.scale.mean,
        shorter_side=assumed_side(side) if stored is None else int(stored),
        shorter_side_from="assumed" if stored is None else "data set",
        output=output_shape(built(layers, weights), side),
        recipe=name,
        player=player,
        method=method,
        layout=str(method.get("layout", "")),
        step=checkpoint.step,
        global_batch=int(config["training"]["global_batch"]),
        seed=seed,
        data_sets=_fingerprints(checkpoint.facts["position"]),
        scores=scores,
        start=start,
        torch=str(checkpoint.facts.get("torch", "")),
        version=environment().get("context-encoders", ""),
    )
    return facts, weights


def _fingerprints(position: Mapping[str, int]) -> dict[str, str]:
    """Fingerprint of each data set by its name, "" where there is one."""
    return {
        key.removesuffix(_FINGERPRINT).removesuffix("."): f"{value:016x}"
        for key, value in position.items()
        if key == _FINGERPRINT or key.endswith(f".{_FINGERPRINT}")
    }


def _rows(run: Path, step: int) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The newest evaluation up to a step, and the one of the random start, if it was on the same pictures.

    A later line of a step replaces an earlier one.
    """
    by_step = {int(row["step"]): row for row in Lines(run / EVALUATION) if isinstance(row.get("step"), int)}
    reached = [each for each in by_step if 0 < each <= step]
    newest, start = by_step[max(reached)] if reached else None, by_step.get(0)
    if newest is not None and start is not None and start.get("choice") != newest.get("choice"):
        start = None  # its figures are not comparable
    return newest, start
