"""A checkpoint as files: a folder `step_<n>/` of safetensors files, two a player, and `checkpoint.json`.

`checkpoint.json` names each file with size and sha256 and is written last: without it the checkpoint does not exist.
That works alike on a disk and on an object store, which has no rename. Tensors are full and named after parameters, so
that nothing in a checkpoint depends on the number of ranks; nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor

from monitoring import run_files
from shards.counting import counted
from shards.errors import ExplainedError, StoreError
from shards.local_files import sync_folder
from shards.store import Store

T = TypeVar("T")
COMMIT = run_files.COMMIT
FOLDER = re.compile(r"step_(\d{9})/")
_FORMAT, _VERSION = "context-encoder-checkpoint", 1
_TYPES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_SEAL = b' "sha256": "'
_PIECE = 4 << 20  # bytes that are hashed, then written while they are still in the CPU's cache; the GIL is free during both
_PART, _PARTS = 16 << 20, 8000  # bytes and number of the parts of an upload: a part is in memory twice, and S3 takes 10,000 an object
_CHECKSUM_ERROR = "FlexibleChecksumError"  # class of botocore, which is not installed without S3
_READS = 2  # reads of a file whose bytes are wrong, because a network may spoil what the store has right


class CheckpointInvalid(ExplainedError):
    """A checkpoint can't be used; the message names it, what is wrong and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """The state that a run continues from.

    Attributes:
        step: number of steps that were done.
        facts: plain values: recipe, position in the data, settings, versions.
        tensors: file name without ending -> name -> tensor.
    """

    step: int
    facts: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, Tensor]]


def folder_name(step: int) -> str:
    """`step_000001000`: nine digits, so that names sort by step."""
    return run_files.step_name(step)


def step_of(name: str, shown: str) -> int:
    """The step in a checkpoint's folder name.

    Args:
        name: name of the folder.
        shown: the folder as the error names it.

    Raises:
        CheckpointInvalid: this is not the name of a checkpoint.
    """
    match = FOLDER.fullmatch(f"{name}/")
    if not match:
        raise CheckpointInvalid(f"{shown}: not a checkpoint: its folder is called like {folder_name(1000)}.")
    return int(match[1])


def write(store: Store, checkpoint: Checkpoint, before_commit: Callable[[], None] = lambda: None) -> int:
    """Writes one checkpoint of CPU tensors, its commit file last; returns its bytes.

    Args:
        store: store of the checkpoints.
        checkpoint: checkpoint to write.
        before_commit: called when everything but the commit file is on the store; the checkpoint does not exist where it raises.

    Raises:
        StoreError: the store does not take the checkpoint, or holds fewer bytes of it than it took.
    """
    folder = folder_name(checkpoint.step)
    store.delete(f"{folder}/{COMMIT}")  # a checkpoint that is written anew does not exist meanwhile
    files = {}
    for file, tensors in checkpoint.tensors.items():
        name = f"{file}.safetensors"
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        with store.writing(f"{folder}/{name}", block=max(_PART, size // _PARTS)) as target:
            files[name] = _write_tensors(tensors, target)
    for name, entry in files.items():
        found = store.size(f"{folder}/{name}")
        if found != entry["size"]:
            raise StoreError(
                f"{store.describe(f'{folder}/{name}')}: the store took {counted(int(entry['size']), 'byte')} and has {found or 'none'}"
            )
    before_commit()
    facts = {"format": _FORMAT, "version": _VERSION, "step": checkpoint.step, **checkpoint.facts, "files": files}
    data = _commit_file(facts)
    store.write(f"{folder}/{COMMIT}", data)
    if store.local is not None:
        sync_folder(store.local)  # an older checkpoint may be deleted next: the new folder's name must survive a power cut before
    return sum(int(entry["size"]) for entry in files.values()) + len(data)


def describe(store: Store, step: int) -> dict[str, Any]:
    """Reads the facts of a checkpoint from its commit file.

    Raises:
        CheckpointInvalid: there is no commit file, or it is damaged.
    """
    name = f"{folder_name(step)}/{COMMIT}"
    shown = store.describe(name)
    if store.size(name) is None:
        raise CheckpointInvalid(f"{shown}: no such checkpoint.")
    try:
        data = _read(store, name, lambda data: data == _sealed(data[: data.rfind(_SEAL)]))
        facts: dict[str, Any] = json.loads(data)
        if facts["format"] != _FORMAT or facts["version"] != _VERSION:
            raise CheckpointInvalid(f"{shown}: format {facts['format']!r} version {facts['version']!r} is not known here.")
        if facts["step"] != step:
            raise CheckpointInvalid(f"{shown}: is the commit file of step {facts['step']}, not of {step}.")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointInvalid(f"{shown}: damaged ({type(error).__name__}: {error}).") from error
    return facts


def read(store: Store, step: int) -> Checkpoint:
    """Reads a checkpoint, every byte of it verified.

    Raises:
        CheckpointInvalid: a file is missing, cut or damaged.
        StoreError: the store did not answer, which says nothing about the checkpoint.
    """
    facts = describe(store, step)
    tensors = {}
    for path, entry in _files(store, step, facts):
        data = _read(store, path, lambda data, expected=entry["sha256"]: hashlib.sha256(data).hexdigest() == expected)  # type: ignore[misc]
        try:
            tensors[path.rpartition("/")[2].removesuffix(".safetensors")] = safetensors.torch.load(data)
        except Exception as error:  # the sha256 is right, so another program wrote this
            raise CheckpointInvalid(f"{store.describe(path)}: not a safetensors file ({error}).") from error
    return Checkpoint(step, facts, tensors)


def verify(store: Store, step: int) -> int:
    """Reads a checkpoint piece by piece and compares every byte; returns the number of bytes. Files on a local disk or a network file
    system are read from there, not from the page cache.

    Raises:
        CheckpointInvalid: a file is missing, cut or damaged.
        StoreError: the store did not answer, which says nothing about the checkpoint.
    """
    return sum(_verify(store, path, entry) for path, entry in _files(store, step, describe(store, step)))


def _verify(store: Store, path: str, entry: Mapping[str, Any]) -> int:
    size = int(entry["size"])

    def attempt() -> int | None:
        if store.local is not None:
            _drop_from_page_cache(store.local / path)
        seen = hashlib.sha256()
        for start in range(0, size, _PART):
            seen.update(store.read_range(path, start, min(size, start + _PART)))
        return size if seen.hexdigest() == entry["sha256"] else None

    return _read_twice(store, path, attempt)


def _drop_from_page_cache(path: Path) -> None:
    """Drops a file from the page cache, where the system supports it."""
    with suppress(OSError, AttributeError), path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _files(store: Store, step: int, facts: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The files of a checkpoint, each with its entry in the commit file; a file is yielded when it exists with the right size.

    Raises:
        CheckpointInvalid: a file is missing or has another size.
    """
    for name, entry in facts["files"].items():
        path = f"{folder_name(step)}/{name}"
        size = store.size(path)
        if size != entry["size"]:
            found = "is missing" if size is None else f"has {counted(size, 'byte')}"
            raise CheckpointInvalid(f"{store.describe(path)}: {found}, the checkpoint says {entry['size']}.")
        yield path, entry


def _read(store: Store, name: str, is_sound: Callable[[bytes], bool]) -> bytes:
    def attempt() -> bytes | None:
        data = store.read(name)
        return data if is_sound(data) else None

    return _read_twice(store, name, attempt)


def _read_twice(store: Store, name: str, attempt: Callable[[], T | None]) -> T:
    """Makes an attempt to read a file, and a second one where the bytes are wrong (None). An S3 client may notice wrong bytes itself, by
    the checksum that the store keeps.

    Raises:
        CheckpointInvalid: the bytes are wrong both times.
    """
    for _ in range(_READS):
        try:
            result = attempt()
        except StoreError as error:
            if type(error.__cause__).__name__ != _CHECKSUM_ERROR:
                raise
            continue
        if result is not None:
            return result
    raise CheckpointInvalid(f"{store.describe(name)}: damaged (its sha256 differs).")


def _commit_file(facts: Mapping[str, Any]) -> bytes:
    """JSON whose last field is the sha256 of every byte before it, so that no byte of the file can change unseen."""
    return _sealed(json.dumps(facts, indent=1, sort_keys=True).encode().removesuffix(b"\n}") + b",\n")


def _sealed(body: bytes) -> bytes:
    return body + _SEAL + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'


def _write_tensors(tensors: Mapping[str, Tensor], target: IO[bytes]) -> dict[str, int | str]:
    """Writes the safetensors format as a stream, so that a checkpoint is never twice in memory; returns size and sha256."""
    header, position = {}, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [position, position + size]}
        position += size
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    seen, size = hashlib.sha256(), 0
    for data in (struct.pack("<Q", len(head)), head, *map(_bytes_of, tensors.values())):
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            seen.update(piece)
            target.write(piece)
        size += len(data)
    return {"size": size, "sha256": seen.hexdigest()}


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b""
