"""Checkpoints that exist whole or not at all.

A checkpoint is a folder `step_<n>/` of safetensors files, two a player, and `checkpoint.json`, which names each file
with size and sha256 and is written last: without it the checkpoint does not exist. That works alike on a disk and on
an object store, which has no rename. Tensors are full and named after parameters, so that nothing in a checkpoint
depends on the number of ranks; nothing is ever unpickled.

A save takes a snapshot and writes it behind the next steps. The newest checkpoint whose files verify is resumed; a
damaged one is reported and skipped, never deleted.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

import safetensors.torch
import torch
from torch import Tensor

from shards.errors import StoreError
from shards.store import Store

COMMIT = "checkpoint.json"
_FORMAT, _VERSION = "context-encoder-checkpoint", 1
_FOLDER = re.compile(r"step_(\d{9})/")
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
_FAILURES = 3  # saves in a row that may fail before the run stops


class CheckpointInvalid(Exception):
    """A checkpoint that can't be used. Names it, what is wrong and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """What a run continues from.

    Attributes:
        step: steps that were done.
        facts: plain values: recipe, position of the data, settings, versions.
        tensors: file name without ending -> name -> tensor on the CPU.
    """

    step: int
    facts: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, Tensor]]


@dataclass
class SaveReport:
    """What the last save cost, in seconds and bytes, filled in when it is done."""

    step: int
    blocked_seconds: float = 0.0
    seconds: float = 0.0
    bytes: int = 0
    error: str | None = None
    finished: float = field(default=0.0)


def folder_name(step: int) -> str:
    """`step_000001000`: nine digits, so that names sort by step."""
    return f"step_{step:09d}"


def step_of(name: str, shown: str) -> int:
    """The step in a checkpoint's folder name.

    Raises:
        CheckpointInvalid: it is not such a name; `shown` is what the error calls it.
    """
    found = _FOLDER.fullmatch(f"{name}/")
    if not found:
        raise CheckpointInvalid(f"{shown}: not a checkpoint: its folder is called like {folder_name(1000)}.")
    return int(found[1])


class CheckpointStore:
    """The checkpoints of one run below a URL. Only rank 0 writes.

    Args:
        store: a folder or an object store.
        keep_last: newest that are kept.
        keep_every: steps whose checkpoints are kept for good; 0 keeps none.
        report: called in the writing thread after every save.
    """

    def __init__(self, store: Store, keep_last: int = 3, keep_every: int = 0, report: Callable[[SaveReport], None] | None = None) -> None:
        self.store = store
        self.keep_last = keep_last
        self.keep_every = keep_every
        self.report = report or (lambda _: None)
        self._writer: threading.Thread | None = None
        self._failures: list[str] = []
        self._damaged: set[int] = set()

    def steps(self) -> list[int]:
        """Steps of the checkpoints that were committed, oldest first; none of them is verified here."""
        names = (name for name, _ in self.store.list() if name.endswith(f"/{COMMIT}"))
        return sorted(int(found[1]) for found in map(_FOLDER.match, names) if found)

    def save(self, checkpoint: Checkpoint) -> None:
        """Snapshots the tensors and writes them behind the next steps; waits for the save before it.

        Raises:
            StoreError: this is the third save in a row that failed.
        """
        began = time.monotonic()
        self.wait()
        copies = {
            file: {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
            for file, tensors in checkpoint.tensors.items()
        }
        snapshot = Checkpoint(checkpoint.step, dict(checkpoint.facts), copies)
        report = SaveReport(checkpoint.step, blocked_seconds=time.monotonic() - began)
        self._writer = threading.Thread(target=self._write, args=(snapshot, report), name=f"checkpoint-{checkpoint.step}")
        self._writer.start()

    def wait(self, must_succeed: bool = False) -> None:
        """Waits until the last save is on the store.

        Raises:
            StoreError: it failed and has to succeed, or it was the third in a row to fail.
        """
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if len(self._failures) >= (1 if must_succeed else _FAILURES):
            raise StoreError(
                f"{self.store.describe()}: {len(self._failures)} checkpoints in a row could not be written, the last: {self._failures[-1]}"
            )

    def _write(self, checkpoint: Checkpoint, report: SaveReport) -> None:
        began = time.monotonic()
        try:
            report.bytes = write(self.store, checkpoint)
            self._damaged.discard(checkpoint.step)
            self._failures.clear()
            self.prune()
        except Exception as error:  # whatever a store raises must reach the run as a failed save, not end a thread unseen
            report.error = f"{type(error).__name__}: {error}"
            self._failures.append(report.error)
        report.seconds, report.finished = time.monotonic() - began, time.time()
        self.report(report)

    def prune(self) -> None:
        """Deletes what the rule does not keep."""
        for step in self.superfluous():
            self.store.delete(f"{folder_name(step)}/{COMMIT}")  # from here on it does not exist, whatever happens to the rest
            self.store.delete(folder_name(step))

    def superfluous(self) -> list[int]:
        """Steps that the rule does not keep. Damaged ones neither count among the last nor are named: a run that went back behind one must
        not lose what it went back to."""
        sound = [step for step in self.steps() if step not in self._damaged]
        return [step for step in sound[: -self.keep_last] if not self.keep_every or step % self.keep_every]

    def verify_newest(self, skipped: Callable[[str], None]) -> int:
        """Verifies from the newest on until as many are sound as the rule keeps; returns how many are.

        Args:
            skipped: told of each that is damaged.

        Raises:
            StoreError: the store did not answer.
        """
        sound = 0
        for step in reversed(self.steps()):
            if sound == self.keep_last:
                break
            try:
                verify(self.store, step)
                sound += 1
            except CheckpointInvalid as error:
                self._damaged.add(step)
                skipped(f"{error} It is left as it is.")
        return sound

    def sweep(self) -> None:
        """Removes what a killed save left: folders that were never committed. Called by the one writer, before it writes."""
        committed = {folder_name(step) for step in self.steps()}
        try:
            entries = self.store.entries()
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return  # a new run
            raise
        for entry in entries:
            folder = str(entry["name"]).rstrip("/").rpartition("/")[2]
            if _FOLDER.fullmatch(f"{folder}/") and folder not in committed:
                self.store.delete(folder)

    def newest(self, skipped: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint that verifies, None where none does.

        Args:
            skipped: told of each newer one that is damaged.

        Raises:
            StoreError: the store did not answer, which says nothing about the checkpoint: going back to an older one would lose steps.
        """
        for step in reversed(self.steps()):
            try:
                return read(self.store, step)
            except CheckpointInvalid as error:
                self._damaged.add(step)
                skipped(f"{error} It is skipped and left as it is.")
        return None


def write(store: Store, checkpoint: Checkpoint) -> int:
    """Writes one checkpoint, its commit file last; returns its bytes."""
    folder = folder_name(checkpoint.step)
    store.delete(f"{folder}/{COMMIT}")  # one that is written anew does not exist while that goes on
    files = {}
    for file, tensors in checkpoint.tensors.items():
        name = f"{file}.safetensors"
        with store.writing(f"{folder}/{name}") as target:
            files[name] = _write_tensors(tensors, target)
    facts = {"format": _FORMAT, "version": _VERSION, "step": checkpoint.step, **checkpoint.facts, "files": files}
    sealed = _seal(facts)
    store.write(f"{folder}/{COMMIT}", sealed)
    return sum(int(entry["size"]) for entry in files.values()) + len(sealed)


def describe(store: Store, step: int) -> dict[str, Any]:
    """The facts of a checkpoint from its commit file.

    Raises:
        CheckpointInvalid: there is none, or it is damaged.
    """
    name = f"{folder_name(step)}/{COMMIT}"
    shown = store.describe(name)
    if store.size(name) is None:
        raise CheckpointInvalid(f"{shown}: no such checkpoint.")
    try:
        data = store.read(name)
        if data != _closed(data[: data.rfind(_SEAL)]):
            raise CheckpointInvalid(f"{shown}: damaged (its sha256 differs).")
        facts: dict[str, Any] = json.loads(data)
        if facts["format"] != _FORMAT or facts["version"] != _VERSION or facts["step"] != step:
            raise CheckpointInvalid(
                f"{shown}: format {facts['format']!r} version {facts['version']!r} of step {facts['step']} is not known here."
            )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointInvalid(f"{shown}: damaged ({type(error).__name__}: {error}).") from error
    return facts


def read(store: Store, step: int) -> Checkpoint:
    """Reads a checkpoint, every byte of it verified.

    Raises:
        CheckpointInvalid: a file is missing, cut or damaged.
    """
    facts = describe(store, step)
    tensors = {}
    for name, data in _verified(store, step, facts):
        try:
            tensors[name.removesuffix(".safetensors")] = safetensors.torch.load(data)
        except Exception as error:  # the sha256 was right, so this was written by something else
            raise CheckpointInvalid(f"{store.describe(f'{folder_name(step)}/{name}')}: not a safetensors file ({error}).") from error
    return Checkpoint(step, facts, tensors)


def verify(store: Store, step: int) -> int:
    """Reads a checkpoint and compares every byte; returns how many there are.

    Raises:
        CheckpointInvalid: a file is missing, cut or damaged.
    """
    return sum(len(data) for _, data in _verified(store, step, describe(store, step)))


def _verified(store: Store, step: int, facts: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    for name, entry in facts["files"].items():
        path = f"{folder_name(step)}/{name}"
        size = store.size(path)
        if size != entry["size"]:
            found = "is missing" if size is None else f"has {size} bytes"
            raise CheckpointInvalid(f"{store.describe(path)}: {found}, the checkpoint says {entry['size']}.")
        data = store.read(path)
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise CheckpointInvalid(f"{store.describe(path)}: damaged (its sha256 differs).")
        yield name, data


def _seal(facts: Mapping[str, Any]) -> bytes:
    """JSON whose last field is the sha256 of every byte before it, so that no byte of the file can change unseen."""
    return _closed(json.dumps(facts, indent=1, sort_keys=True).encode().removesuffix(b"\n}") + b",\n")


def _closed(body: bytes) -> bytes:
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
        target.write(data)
        seen.update(data)
        size += len(data)
    return {"size": size, "sha256": seen.hexdigest()}


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b""
