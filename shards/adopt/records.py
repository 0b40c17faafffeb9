"""State of an indexing run: the manifest of earlier runs, and the records of an interrupted one.

While tars are indexed, a folder `_build` beside the manifest holds the new index of each finished tar and a record of it, as during a
build. The indexes get their final names when all tars are done, so that an existing data set stays sound however the run ends. Records and
manifest hold the version of each tar, so that a tar that was replaced is read again. Any other file in the way belongs to another program
and is never touched.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.dataset import index as shard_index
from shards.dataset import manifest as manifests
from shards.dataset.index import Rules
from shards.dataset.manifest import Manifest, ShardRecord, settings_of
from shards.dataset.workplace import FOLDER, REJECTED, prove_deletable, sweep
from shards.errors import ManifestMismatch, ShardError, StoreError
from shards.local_files import LEFT_BEHIND
from shards.store import Store
from shards.tar.version import Tar
from shards.urls import redacted

_BEGUN = f"{FOLDER}/index.json"
_READ_THREADS = 16
_OURS = re.compile(r"index\.json|[0-9a-f]{32}\.(?:json|idx)")
_ELSEWHERE = "It is not removed: move it away, or name another folder with --to"


@dataclass(frozen=True)
class Done:
    """One indexed tar.

    Attributes:
        shard: the tar in the manifest.
        rejected: (key, reason) of the samples that were left out.
        new: True while the index is still in `_build`.
        hidden: number of hidden files, and of those in folders of tools; known for a new one alone.
        hidden_names: names of some of them.
        several: number of samples with several pictures; known for a new one alone.
        splits: places of splits in the keys, as `splits.split_places` finds them.
    """

    shard: ShardRecord
    rejected: tuple[tuple[str, str], ...]
    new: bool = False
    hidden: int = 0
    hidden_names: tuple[str, ...] = ()
    several: int = 0
    splits: tuple[str, ...] = ()

    @property
    def index_name(self) -> str:
        """Name of the object that holds the index at present."""
        return f"{self._work_name}.idx" if self.new else self.shard.index_name

    @property
    def _work_name(self) -> str:
        return f"{FOLDER}/{hashlib.sha256(self.shard.name.encode()).hexdigest()[:32]}"

    def answers(self, tar: Tar, rules: Rules, sizes: Mapping[str, int]) -> bool:
        """Returns whether indexing the tar again would give the same. `sizes` are the sizes of the objects in the destination."""
        shard = self.shard
        # without a version nothing shows that the tar was replaced
        same = bool(tar.version) and (shard.name, shard.size, shard.version) == (tar.name, tar.size, tar.version)
        enough = bool(shard.sha256) or not rules.digests
        return same and enough and sizes.get(self.index_name) == shard_index.file_size(shard.count)

    def sound(self, store: Store) -> bool:
        """Reads the stored index and returns whether it is the one that was written."""
        return hashlib.sha256(store.read(self.index_name)).hexdigest() == self.shard.index_sha256

    def write(self, store: Store, rules: Rules, rows: bytes) -> None:
        """Writes the index of a tar, then its record."""
        store.write(self.index_name, rows)
        remarks = {"several": self.several, "splits": self.splits}
        table = {"shard": astuple(self.shard), "rejected": self.rejected, **remarks, "rules": settings_of(rules)}
        table |= {"hidden": self.hidden, "hidden_names": self.hidden_names}
        store.write(f"{self._work_name}.json", json.dumps(table).encode())

    def install(self, store: Store) -> None:
        """Gives a new index its final name, which the manifest will use.

        Raises:
            ShardError: the index is damaged. Its record is removed, so that the next run reads the tar again.
        """
        rows = store.read(self.index_name)
        if hashlib.sha256(rows).hexdigest() != self.shard.index_sha256:
            store.remove([f"{self._work_name}.json"])
            raise ShardError(f"{store.describe(self.index_name)}: damaged since it was written. Run the same command again")
        store.write(self.shard.index_name, rows)


def find_finished(store: Store, tars_url: str, rules: Rules) -> tuple[Manifest | None, dict[str, Done]]:
    """Reads the manifest in the destination and its tars; no tars where the manifest was made by other rules.

    Raises:
        ShardError: the destination holds another data set.
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
    if tars_url not in (manifest.shards_url, manifest.moved_shards_url):
        raise ShardError(
            f"{shown}: holds the indexes of {redacted(manifest.shards_url)}, not of {redacted(tars_url)}. Choose another folder with --to, "
            "or name the same folder, glob or braces as before"
        )
    if any(manifest.settings.get(key) != value for key, value in settings_of(rules).items()):
        return manifest, {}
    rejected: dict[str, list[tuple[str, str]]] = {}
    if manifest.rejected:
        try:
            for row in map(json.loads, store.read(REJECTED).splitlines()):
                rejected.setdefault(row["tar"], []).append((row["key"], row["reason"]))
        except (ShardError, ValueError, KeyError, TypeError):
            return manifest, {}  # the list is part of the result, so without it the tars are read again
    if sum(len(rejected.get(record.name, ())) for record in manifest.records) < manifest.rejected:
        return manifest, {}
    return manifest, {record.name: Done(record, tuple(rejected.get(record.name, ()))) for record in manifest.records}


def find_begun(store: Store, sizes: Mapping[str, int]) -> bool:
    """Returns whether a run was interrupted in the destination, whose objects have these sizes.

    Raises:
        ShardError: the folder `_build` belongs to a build or to another program.
    """
    shown = store.describe(FOLDER)
    names = {name.removeprefix(f"{FOLDER}/") for name in sizes if name.startswith(f"{FOLDER}/")}
    if store.local is not None:
        folder = store.local / FOLDER
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise ShardError(f"{shown}: not a folder of an earlier run. {_ELSEWHERE}")
        names |= {path.name for path in folder.glob("*") if not LEFT_BEHIND.fullmatch(path.name)}
    if any(name.endswith("plan.json") for name in names):
        raise ShardError(
            f"{store.describe()}: holds an unfinished build. Finish it with the command that began it, or name another folder with --to"
        )
    foreign = next((name for name in sorted(names) if not _OURS.fullmatch(name)), None)
    if foreign is None and _BEGUN in sizes:
        try:
            foreign = None if "index_format" in json.loads(store.read(_BEGUN)) else _BEGUN
        except (ValueError, TypeError):
            foreign = _BEGUN
    if foreign is not None:
        raise ShardError(f"{shown}: holds {foreign}, which no earlier run wrote. {_ELSEWHERE}")
    return bool(names)


def refuse_foreign(store: Store, sizes: Mapping[str, int], rejected_is_ours: bool, indexes: Iterable[str]) -> None:
    """Raises ShardError if another program wrote the list of rejected samples or one of `indexes`, which this run would overwrite."""
    if REJECTED in sizes and not rejected_is_ours:
        raise ShardError(f"{store.describe(REJECTED)}: no earlier run wrote it. {_ELSEWHERE}")
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        there = [name for name in indexes if name in sizes]
        heads = pool.map(lambda name: store.head(name, len(shard_index.MAGIC)), there)
        foreign = [name for name, head in zip(there, heads, strict=True) if not shard_index.MAGIC.startswith(head)]
    if foreign:
        raise ShardError(
            f"{store.describe(foreign[0])}: an index that another program wrote ({len(foreign)} of them are there). {_ELSEWHERE}"
        )


def begin(store: Store, rules: Rules, sizes: Mapping[str, int], beside: bool) -> None:
    """Writes the first file of the run, so that a read-only destination fails before any tar is read.

    Raises:
        StoreError: the destination can't be written.
    """
    if store.local is not None:  # half-written files of a killed run; this process holds the lock
        for folder in {Path(store.path(name)).parent for name in sizes if name.endswith((".tar", shard_index.SUFFIX))}:
            with suppress(OSError):  # the folder of another user
                sweep(folder)
        sweep(store.local / FOLDER)
    try:
        prove_deletable(store)
        store.write(_BEGUN, json.dumps(settings_of(rules)).encode())
    except StoreError as error:
        if not beside:
            raise
        raise StoreError(
            f"{error}. Indexes go beside the tars by default; if that folder is read-only, name another one: --to FOLDER"
        ) from error


def find_interrupted(store: Store, rules: Rules, sizes: Mapping[str, int]) -> dict[str, Done]:
    """Reads the records of an interrupted run with these rules. The tar of a damaged record is read again."""

    def read(name: str) -> Done | None:
        try:
            table = json.loads(store.read(name))
            if table["rules"] != settings_of(rules):
                return None
            rejected = tuple((str(key), str(reason)) for key, reason in table["rejected"])
            hidden, hidden_names = int(table["hidden"]), tuple(map(str, table["hidden_names"]))
            return Done(
                ShardRecord(*table["shard"]),
                rejected,
                True,
                hidden,
                hidden_names,
                several=int(table["several"]),
                splits=tuple(map(str, table["splits"])),
            )
        except (ValueError, KeyError, TypeError):
            return None

    with ThreadPoolExecutor(_READ_THREADS) as pool:
        found = pool.map(read, [name for name in sizes if name.startswith(f"{FOLDER}/") and name.endswith(".json") and name != _BEGUN])
        return {done.shard.name: done for done in found if done is not None}


def choose(
    store: Store, tars: Sequence[Tar], rules: Rules, sizes: Mapping[str, int], candidates: Sequence[Mapping[str, Done]], doubtful: bool
) -> dict[str, Done]:
    """Chooses for each tar the first candidate that still holds; other tars must be read.

    Args:
        store: store of the destination.
        tars: tars to index.
        rules: rules by which samples become rows.
        sizes: sizes of the objects in the destination.
        candidates: records by the names of their tars, those to prefer first.
        doubtful: read the indexes that have their final names already, because a stopped run may have replaced some of them.
    """

    def look(tar: Tar) -> Done | None:
        known = (found[tar.name] for found in candidates if tar.name in found)
        return next((done for done in known if done.answers(tar, rules, sizes) and (done.new or not doubtful or done.sound(store))), None)

    with ThreadPoolExecutor(_READ_THREADS) as pool:
        return {tar.name: done for tar, done in zip(tars, pool.map(look, tars), strict=True) if done is not None}


def read_labels(store: Store, done: Sequence[Done]) -> list[NDArray[np.int32]]:
    """Reads the labels of all samples: int32 (samples,) for each tar, -1 where unknown.

    Raises:
        ManifestMismatch: an index is damaged.
    """

    def read(one: Done) -> NDArray[np.int32]:
        labels: NDArray[np.int32] = shard_index.decode(store.read(one.index_name), store.describe(one.index_name)).rows["label"]
        return labels.copy()  # else the whole index stays in memory

    with ThreadPoolExecutor(_READ_THREADS) as pool:
        return list(pool.map(read, done))


def install_all(store: Store, done: Sequence[Done]) -> None:
    """Gives all new indexes their final names.

    Raises:
        ShardError: an index is damaged.
    """
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        list(pool.map(lambda one: one.install(store), [one for one in done if one.new]))


def clear(store: Store) -> None:
    """Removes the records of the run; the file that marks its beginning goes last."""
    names = [name for name, _ in store.list(FOLDER, deep=False) if _OURS.fullmatch(name.removeprefix(f"{FOLDER}/"))]
    store.remove(name for name in names if name != _BEGUN)
    store.remove([_BEGUN])
    if store.local is not None:
        with suppress(OSError):  # the folder holds files of another program
            (store.local / FOLDER).rmdir()
