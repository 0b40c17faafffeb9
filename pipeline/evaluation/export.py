"""Writes the encoder of a checkpoint, which is the product of a pretraining run, to files that other programs read."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save

from pipeline.evaluation.architecture import EncoderInvalid
from pipeline.evaluation.of_run import trained_encoder
from shards.local_files import whole_file
from shards.store import Options


def export_encoder(run: str, target: Path, step: int | None = None, options: Options | None = None) -> str:
    """Writes the encoder's weights as safetensors, with all that is known of it as metadata.

    Args:
        run: run folder, or the URL of its checkpoints.
        target: file to write.
        step: step of the checkpoint; None takes the newest that verifies.
        options: options of the store, as in fsspec.

    Returns:
        A sentence for a person: the file, the step, and the number of tensors and values.

    Raises:
        EncoderInvalid: the checkpoint holds no encoder, or `target` names no file that can be made.
        CheckpointInvalid: no checkpoint verifies.
        OSError: the file can't be written; a file that was there is unchanged.
    """
    facts, weights = trained_encoder(run, step, options)
    if target.exists() and not target.is_file():
        raise EncoderInvalid(f"{target}: is not a file that can be replaced. Name a file to write the encoder to")
    if not target.resolve().parent.is_dir():
        raise EncoderInvalid(f"{target}: its folder does not exist. Make it first, or name another file")
    with whole_file(target.resolve(), durable=False) as file:  # the file behind a link, not the link
        file.write(save(weights, metadata=facts.to_metadata()))
    values = sum(tensor.numel() for tensor in weights.values())
    return f"{target}: the encoder of {facts.player} after {facts.step} steps, {len(weights)} tensors, {values:,} values"
