"""Writes the encoder of a checkpoint, which is the product of a pretraining run, to a file that any framework reads."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from pipeline.training.checkpoint.store import Checkpoint, CheckpointInvalid, CheckpointStore, read
from pipeline.training.record.run_folder import checkpoint_store
from shards.local_files import whole_file
from shards.store import Options

_PREFIX = "encoder."


def export_encoder(run: str, target: Path, step: int | None = None, options: Options | None = None) -> str:
    """Writes the encoder's weights as safetensors, named as in `pipeline.model.encoder.Encoder`.

    Args:
        run: run folder, or the URL of its checkpoints.
        target: file to write; its metadata hold the step, recipe, player and method of the weights.
        step: step of the checkpoint; None takes the newest that verifies.
        options: options of the store, as in fsspec.

    Returns:
        A sentence for a person: the file, the step, and the number of tensors and values.

    Raises:
        CheckpointInvalid: no checkpoint verifies, it holds no encoder, or `target` names no file that can be made.
        OSError: the file can't be written; a file that was there is unchanged.
    """
    store = checkpoint_store(run, options)
    skipped: list[str] = []
    checkpoint = CheckpointStore(store).newest(skipped.append) if step is None else read(store, step)
    if checkpoint is None:
        raise CheckpointInvalid(f"{store.describe()}: no checkpoint that verifies. {' '.join(skipped)}")
    player, weights = _encoder(checkpoint)
    if not weights:
        raise CheckpointInvalid(f"{store.describe()}: step {checkpoint.step} of the recipe {checkpoint.facts['recipe']!r} holds no encoder")
    method = json.dumps(checkpoint.facts["config"]["method"])
    facts = {"step": str(checkpoint.step), "recipe": str(checkpoint.facts["recipe"]), "player": player, "method": method}
    if target.exists() and not target.is_file():
        raise CheckpointInvalid(f"{target}: is not a file that can be replaced. Name a file to write the encoder to")
    if not target.resolve().parent.is_dir():
        raise CheckpointInvalid(f"{target}: its folder does not exist. Make it first, or name another file")
    with whole_file(target.resolve(), durable=False) as file:  # the file behind a link, not the link
        file.write(save(weights, metadata=facts))
    values = sum(tensor.numel() for tensor in weights.values())
    return f"{target}: the encoder of {player} after {checkpoint.step} steps, {len(weights)} tensors, {values:,} values"


def _encoder(checkpoint: Checkpoint) -> tuple[str, dict[str, Tensor]]:
    """The first player that has an encoder, and its tensors."""
    for player, tensors in checkpoint.tensors.items():
        weights = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if name.startswith(_PREFIX) and "/" not in name}
        if weights:
            return player, weights
    return "", {}
