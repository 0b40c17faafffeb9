"""What is known of tars before they are indexed: the manifest that is there, and the records of a run that was interrupted.

While tars are indexed there is a folder `_build` beside their indexes, as while a data set is built, with one record a finished tar. Both
it and the manifest name the version of each tar, so that one that was replaced is read again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from shards import index as shard_index
from shards import manifest as manifests
from shards.destination import REJECTED
from shards.errors import ManifestMismatch, ShardError, StoreError
from shards.index import Rules
from shards.manifest import Manifest, ShardRecord
from shards.store import TEMPORARY_PREFIX, Store, redacted
from shards.tar_listing import Tar
from shards.task import FOLDER

_FORMAT = 1  # raise it when the same tar and rules would give other rows
_BEGUN = f"{FOLDER}/index.json"
_READ_THREADS = 16


@dataclass(frozen=True)
class Done:
    """A tar that is indexed, and (key, reason) of its samples that were left out."""

    shard: ShardRecord
    rejected: tuple[tuple[str, str], ...]

    def answers(self, tar: Tar, rules: Rules, sizes: Mapping[str, int]) -> bool:
        """Whether this is what indexing the tar now would give. `sizes` are those of the objects in the destination."""
        shard = self.shard
        same = (shard.name, shard.size, shard.version) == (tar.name, tar.size, tar.version)
        enough = bool(shard.sha256) or not rules.digests
        return same and enough and sizes.get(shard.index_name) == shard_index.file_size(shard.samples)

    def write(self, store: Store, rules: Rules) -> None:
        """Commits the record of a tar whose index is written."""
        table = {"shard": astuple(self.shard), "rejected": self.rejected, "rules": words(rules)}
        store.write(f"{FOLDER}/{hashlib.sha256(self.shard.name.encode()).hexdigest()[:32]}.json", json.dumps(table).encode())


def rules_of(manifest: Manifest, record: ShardRecord) -> Rules:
    """The rules by which a shard of a manifest was indexed. Built shards follow the rules that have no exceptions."""
    settings = manifest.settings if manifest.indexed else {}
    picture = settings.get("picture")
    return Rules(
        picture if isinstance(picture, str) else None,
        settings.get("labels") != "none",
        bool(record.sha256),
        settings.get("open_ended") is True,
    )


def find_finished(store: Store, tars_url: str, rules: Rules) -> tuple[Manifest | None, dict[str, Done]]:
    """The manifest that the destination holds and its tars, none of them where it was made by other rules.

    Raises:
        ShardError: it holds another data set.
    """
    if store.size(manifests.NAME) is None:
        return None, {}
    shown = store.describe()
    try:
        manifest = manifests.decode(store.read(manifests.NAME), store.describe(manifests.NAME), store.url)
    except ManifestMismatch as error:
        raise ShardError(f"{error}. To index the tars anew, remove it, or name another folder with --to") from error
    if not manifest.indexed:
        raise ShardError(f"{shown}: holds a data set that was built, with its indexes: there is nothing to index")
    if manifest.shards_url != tars_url:
        raise ShardError(
            f"{shown}: holds the indexes of {redacted(manifest.shards_url)}, not of {redacted(tars_url)}. Choose another folder with --to, "
            "or name the same folder, glob or braces as before"
        )
    if any(manifest.settings.get(key) != value for key, value in words(rules).items()):
        return manifest, {}
    rejected: dict[str, list[tuple[str, str]]] = {}
    if manifest.rejected:
        try:
            for row in map(json.loads, store.read(REJECTED).splitlines()):
                rejected.setdefault(row["tar"], []).append((row["key"], row["reason"]))
        except (ShardError, ValueError, KeyError, TypeError):
            return manifest, {}  # without the list, which is as much a part of the result, the tars are read again
    if sum(len(rejected.get(record.name, ())) for record in manifest.records) < manifest.rejected:
        return manifest, {}
    return manifest, {record.name: Done(record, tuple(rejected.get(record.name, ()))) for record in manifest.records}


def words(rules: Rules) -> dict[str, Any]:
    """What decides the rows of a tar, for the manifest's settings. Whether digests were read is told by each shard's sha256."""
    return {
        "index_format": _FORMAT,
        "picture": rules.picture,
        "labels": "cls" if rules.labels else "none",
        "open_ended": rules.open_ended,
    }


def begin(store: Store, rules: Rules, sizes: Mapping[str, int], beside: bool) -> None:
    """Makes sure that the destination can be written, before anything is read.

    Raises:
        StoreError: it can't.
        ShardError: a build was interrupted there.
    """
    if any(name.startswith(f"{FOLDER}/") and name.endswith("plan.json") for name in sizes):
        raise ShardError(
            f"{store.describe()}: holds an unfinished build. Finish it by the command that began it, or name a folder with --to"
        )
    if store.local is not None:  # half-written files of a run that was killed; nobody else writes here now
        for folder in {Path(store.path(name)).parent for name in sizes if name.endswith((".tar", shard_index.SUFFIX))}:
            for partial in folder.glob(f"{TEMPORARY_PREFIX}*"):
                with suppress(OSError):  # of somebody else
                    partial.unlink()
    try:
        store.write(_BEGUN, json.dumps(words(rules)).encode())
    except StoreError as error:
        if not beside:
            raise
        raise StoreError(
            f"{error}. Indexes go beside the tars by default; if that folder is read-only, name another: --to FOLDER"
        ) from error


def find_interrupted(store: Store, rules: Rules, sizes: Mapping[str, int]) -> dict[str, Done]:
    """What an interrupted run with these rules finished; a record that is damaged costs no more than reading its tar again."""

    def read(name: str) -> Done | None:
        try:
            table = json.loads(store.read(name))
            if table["rules"] != words(rules):
                return None
            return Done(ShardRecord(*table["shard"]), tuple((str(key), str(reason)) for key, reason in table["rejected"]))
        except (ValueError, KeyError, TypeError):
            return None

    with ThreadPoolExecutor(_READ_THREADS) as pool:
        found = pool.map(read, [name for name in sizes if name.startswith(f"{FOLDER}/") and name != _BEGUN])
        return {done.shard.name: done for done in found if done is not None}
