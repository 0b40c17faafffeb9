"""Tasks: each writes one shard and commits it, first the shard, then its index, then a record that both are complete.

A task depends on its arguments alone, and a task that is cut off leaves only a temporary file behind. It can therefore run in any process
on any machine, and more than once, with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import uuid
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from shards.build.picture import StoredPicture, prepare, too_long
from shards.build.plan import ShardTask
from shards.build.sources import Entry
from shards.build.sources.reading import read_pictures
from shards.counting import counted
from shards.dataset import index as shard_index
from shards.dataset.manifest import ShardRecord
from shards.dataset.pixels import PictureRejected
from shards.dataset.workplace import FOLDER
from shards.errors import ShardCorrupt, StoreError
from shards.local_files import TEMPORARY_PREFIX
from shards.store import Options, Store

Progress = Callable[[int, int], None]
_CHUNK = 1 << 20


@dataclass(frozen=True)
class TaskLocations:
    """The locations that a task reads and writes. `scratch` is a local folder for a growing shard, which may be the destination itself."""

    source_url: str
    source_options: Options
    destination_url: str
    destination_options: Options
    scratch: str


@dataclass(frozen=True)
class TaskRecord:
    """The result of a finished task.

    Attributes:
        index: index of the task in the plan.
        digest: digest of the task.
        shard: shard that the task wrote; None where every picture was rejected.
        index_size: size of the shard's index in bytes.
        rejected: (name, reason) of the pictures that were left out.
    """

    index: int
    digest: str
    shard: ShardRecord | None
    index_size: int
    rejected: tuple[tuple[str, str], ...]

    def encode(self) -> bytes:
        """Returns the bytes of the record's object."""
        shard = self.shard
        row = [shard.name, shard.size, shard.sha256, shard.count, shard.index_sha256] if shard else None
        return json.dumps(
            {"index": self.index, "digest": self.digest, "shard": row, "index_size": self.index_size, "rejected": self.rejected}
        ).encode()

    @staticmethod
    def decode(data: bytes) -> TaskRecord | None:
        """Reads a record; None for a damaged one, whose task is then done again."""
        try:
            table = json.loads(data)
            shard = ShardRecord(*table["shard"]) if table["shard"] else None
            rejected = tuple((str(name), str(reason)) for name, reason in table["rejected"])
            return TaskRecord(int(table["index"]), str(table["digest"]), shard, int(table["index_size"]), rejected)
        except (ValueError, KeyError, TypeError):
            return None


def record_name(index: int) -> str:
    """Returns the name of the object that holds the record of a task."""
    return f"{FOLDER}/{index:06d}.json"


def run_task(task: ShardTask, locations: TaskLocations, progress: Progress | None = None) -> TaskRecord:
    """Writes and commits one shard.

    Args:
        task: task to run.
        locations: locations of the source, the destination and the growing shard.
        progress: called with (pictures, bytes read) after each picture; may raise to stop the task.

    Raises:
        SourceError: a picture is gone or has changed since it was listed.
        StoreError: the source can't be read or the destination not written.
    """
    store = Store(locations.destination_url, locations.destination_options)
    partial = Path(locations.scratch) / f"{TEMPORARY_PREFIX}{task.shard}-{uuid.uuid4().hex}"
    try:
        try:
            with open(partial, "xb") as file:
                rejected = _write_shard(file, task, locations, progress)
        except OSError as error:
            raise StoreError(f"{locations.scratch}: {error.strerror or error} while writing {task.shard}") from error
        record = _commit(store, task, partial, rejected)
    finally:
        partial.unlink(missing_ok=True)
    store.write(record_name(task.index), record.encode())
    return record


def _write_shard(file: IO[bytes], task: ShardTask, locations: TaskLocations, progress: Progress | None) -> list[tuple[str, str]]:
    """Writes the tar and returns (name, reason) of the rejected pictures."""
    from webdataset import TarWriter  # noqa: PLC0415 - imports torch, which takes two seconds and only writing needs

    rejected: list[tuple[str, str]] = []
    pictures = read_pictures(locations.source_url, locations.source_options, task.entries, task.picture.max_bytes)
    # owner, mode and time are fixed, so that the same pictures give the same bytes
    with TarWriter(file, encoder=False, user="", group="", mode=0o444, mtime=0) as writer, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata
        for key, (entry, data) in zip(task.keys, pictures, strict=True):
            try:
                if data is None:
                    raise too_long(entry.length, task.picture)
                if isinstance(data, PictureRejected):
                    raise data
                writer.write(_sample(key, entry, prepare(data, task.picture)))
            except PictureRejected as error:
                rejected.append((entry.name, str(error)))
            if progress is not None:
                progress(1, entry.length)
    return rejected


def _sample(key: str, entry: Entry, picture: StoredPicture) -> dict[str, str | bytes]:
    about = {"source": entry.name} if entry.label is None else {"source": entry.name, "label": entry.label}
    sample: dict[str, str | bytes] = {"__key__": key, picture.extension: picture.data, "json": json.dumps(about).encode()}
    if entry.label is not None:
        sample["cls"] = str(entry.label_id).encode()
    return sample


def _commit(store: Store, task: ShardTask, partial: Path, rejected: list[tuple[str, str]]) -> TaskRecord:
    samples = len(task.entries) - len(rejected)
    if not samples:
        return TaskRecord(task.index, task.digest, None, 0, tuple(rejected))
    with open(partial, "rb") as tar:
        index = shard_index.make(tar, task.shard)
        tar.seek(0)
        sha256 = hashlib.sha256()
        while chunk := tar.read(_CHUNK):
            sha256.update(chunk)
    if len(index) != samples:
        raise ShardCorrupt(
            f"{task.shard}: holds {counted(len(index), 'sample')} where {samples} were written: is the disk of {partial.parent} sound?"
        )
    rows = index.encode()
    record = ShardRecord(task.shard, index.shard_bytes, sha256.hexdigest(), samples, hashlib.sha256(rows).hexdigest())
    store.adopt_file(partial, task.shard)
    store.write(record.index_name, rows)
    return TaskRecord(task.index, task.digest, record, len(rows), tuple(rejected))
