"""Writes a trained encoder, which is the product of a pretraining run, to files that other programs read."""

from __future__ import annotations

import json
import os
import shutil
import struct
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Literal

from safetensors.torch import save

from monitoring.run_files import json_text
from pipeline.evaluation.architecture import EncoderInvalid
from pipeline.evaluation.encoder import CARD, CONFIG, WEIGHTS, TrainedEncoder, read_encoder
from pipeline.evaluation.model_card import model_card
from pipeline.evaluation.onnx_file import onnx_bytes
from pipeline.evaluation.torchvision_names import FORMAT as TORCHVISION
from pipeline.evaluation.torchvision_names import with_torchvision_names
from pipeline.mapping import check_local
from shards.counting import counted
from shards.local_files import TEMPORARY_PREFIX, whole_file
from shards.store import Options

Format = Literal["safetensors", "folder", "onnx"]


def export_encoder(
    run: str,
    target: Path,
    step: int | None = None,
    options: Options | None = None,
    kind: Format | None = None,
    torchvision_names: bool = False,
    stored_side: int | None = None,
) -> str:
    """Writes an encoder with all that is known of it; a file or folder appears whole or not at all.

    Args:
        run: run folder, the URL of its checkpoints, or an exported encoder that is to be converted.
        target: file or folder to write.
        step: step of a run's checkpoint; None takes the newest that verifies.
        options: options of the store, as in fsspec.
        kind: safetensors, one file; folder, the same file with config.json and a model card; onnx, one file that onnxruntime has checked.
            None decides by the ending of `target`: .safetensors and .onnx are files, anything else is a folder.
        torchvision_names: name the weights as in torchvision's AlexNet, `features.0.weight`; safetensors only.
        stored_side: shorter side in pixels that the training's pictures were stored at, instead of what the facts say; None leaves them.

    Returns:
        A sentence for a person: the target, the step, and the number of tensors and values.

    Raises:
        EncoderInvalid: there is no encoder, `target` names nothing that can be made, the layout is not torchvision's, ONNX differs, or
            `stored_side` is less than 1; or the target can't be written, and what was there is unchanged.
        ConfigError: `target` is a URL.
        CheckpointInvalid: no checkpoint of the run verifies.
    """
    kind = kind or _kind_of(target)
    if torchvision_names and kind != "safetensors":
        raise EncoderInvalid(f"{target}: torchvision's names are for weights: export them as safetensors, not as {kind}")
    if stored_side is not None and stored_side < 1:
        raise EncoderInvalid(f"--stored-side {stored_side}: give the shorter side of the stored pictures in pixels, 1 or more")
    _check_target(target, kind)
    encoder = read_encoder(run, options, step)
    if stored_side is not None:
        encoder = replace(encoder, facts=replace(encoder.facts, shorter_side=stored_side, shorter_side_from="option"))
    try:
        if kind == "folder":
            _write_folder(target.resolve(), encoder)
        elif kind == "onnx":
            _write_file(target.resolve(), onnx_bytes(encoder))
        else:
            _write_file(target.resolve(), _safetensors(encoder, torchvision_names))
    except OSError as error:
        raise EncoderInvalid(f"{target}: can't be written ({error.strerror or error}). Make room, or name another place") from error
    values = sum(tensor.numel() for tensor in encoder.weights.values())
    facts = encoder.facts
    size = f"{counted(len(encoder.weights), 'tensor')}, {counted(values, 'value')}"
    return f"{target}: the encoder of {facts.player} after {counted(facts.step, 'step')}, {size}"


def _safetensors(encoder: TrainedEncoder, torchvision_names: bool = False) -> bytes:
    tensors, metadata = encoder.weights, encoder.facts.to_metadata()
    if torchvision_names:
        tensors, metadata = with_torchvision_names(encoder), {**metadata, "format": TORCHVISION}
    return _in_order(save(tensors, metadata=metadata))


def _in_order(data: bytes) -> bytes:
    """The bytes of a safetensors file with its metadata in the order of their names, because safetensors writes them in a random order: the
    same encoder is the same file, whose digest can be compared."""
    start = struct.unpack("<Q", data[:8])[0] + 8
    header = json.loads(data[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + data[start:]


def _kind_of(target: Path) -> Format:
    if target.suffix == ".safetensors":
        return "safetensors"
    return "onnx" if target.suffix == ".onnx" else "folder"


def _check_target(target: Path, kind: Format) -> None:
    """Refuses a target before anything is read.

    Raises:
        EncoderInvalid: the folder of the target does not exist, or something else than an export of this kind is in its place.
        ConfigError: the target is a URL.
    """
    check_target(target, "the encoder", is_file=kind != "folder")
    if kind == "folder" and target.exists():
        found = {path.name for path in target.iterdir()} if target.is_dir() else {target.name}
        if found not in (set(), {WEIGHTS, CONFIG, CARD}):  # a README.md alone may be anybody's
            lost = ", ".join(sorted(found)[:5])
            raise EncoderInvalid(f"{target}: is not an exported folder alone ({lost}). Name a new folder to write the encoder to")


def check_target(target: Path, content: str, is_file: bool = True) -> None:
    """Refuses a place that nothing can be written to, before the work whose result belongs there.

    Args:
        target: file or folder to write.
        content: words for the result, for the error.
        is_file: whether the target is a file.

    Raises:
        EncoderInvalid: the folder of the target does not exist, or the target is no file that can be replaced.
        ConfigError: the target is a URL.
    """
    check_local("target", str(target), f"Write {content} to a disk, and copy it to the store afterwards")
    if not target.resolve().parent.is_dir():
        raise EncoderInvalid(f"{target}: its folder does not exist. Make it first, or name another")
    if is_file and target.exists() and not target.is_file():
        raise EncoderInvalid(f"{target}: is not a file that can be replaced. Name a file to write {content} to")


def _write_file(target: Path, data: bytes) -> None:
    with whole_file(target, durable=False) as file:  # the file behind a link, not the link
        file.write(data)


def _write_folder(target: Path, encoder: TrainedEncoder) -> None:
    """Writes a folder beside its target and renames it; a former export moves out of the way and is deleted at the end."""
    partial, former = (target.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}") for _ in range(2))
    replaces = target.exists()
    try:
        partial.mkdir()
        (partial / WEIGHTS).write_bytes(_safetensors(encoder))
        (partial / CONFIG).write_text(json_text(encoder.facts.to_mapping(), indent=1) + "\n", encoding="utf-8")
        (partial / CARD).write_text(model_card(encoder.facts), encoding="utf-8")
        if replaces:
            os.replace(target, former)
        try:
            os.replace(partial, target)
        except BaseException:
            if replaces:
                os.replace(former, target)
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(former, ignore_errors=True)
