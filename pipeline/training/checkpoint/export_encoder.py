"""The encoder alone: what a pretraining run is for, in a file that any framework reads."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from pipeline.training.checkpoint.store import Checkpoint, CheckpointInvalid, CheckpointStore, read
from pipeline.training.record.run_folder import checkpoint_store
from shards.store import Options

_PREFIX = "encoder."


def export_encoder(run: str, target: Path, step: int | None = None, options: Options | None = None) -> str:
    """Writes the encoder's weights as safetensors, named as in `pipeline.model.encoder.Encoder`.

    Args:
        run: run folder, or the URL of its checkpoints.
        target: file to write; the metadata in it say where the weights are from and how they were trained.
        step: of the checkpoint; None takes the newest that verifies.
        options: of the store.

    Returns:
        What was written, for a person.

    Raises:
        CheckpointInvalid: no checkpoint verifies, or it holds no encoder.
    """
    store = checkpoint_store(run, options)
    skipped: list[str] = []
    found = CheckpointStore(store).newest(skipped.append) if step is None else read(store, step)
    if found is None:
        raise CheckpointInvalid(f"{store.describe()}: no checkpoint that verifies. {' '.join(skipped)}")
    player, weights = _encoder(found)
    if not weights:
        raise CheckpointInvalid(f"{store.describe()}: step {found.step} of the recipe {found.facts['recipe']!r} holds no encoder")
    method = json.dumps(found.facts["config"]["method"])
    facts = {"step": str(found.step), "recipe": str(found.facts["recipe"]), "player": player, "method": method}
    partial = target.with_name(f".{target.name}.partial")
    save_file(weights, partial, metadata=facts)
    os.replace(partial, target)
    values = sum(tensor.numel() for tensor in weights.values())
    return f"{target}: the encoder of {player} after {found.step} steps, {len(weights)} tensors, {values:,} values"


def _encoder(found: Checkpoint) -> tuple[str, dict[str, Tensor]]:
    """The first player that has an encoder, and its tensors."""
    for player, tensors in found.tensors.items():
        weights = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if name.startswith(_PREFIX) and "/" not in name}
        if weights:
            return player, weights
    return "", {}
