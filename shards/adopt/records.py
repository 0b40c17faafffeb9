"""What is known of tars before they are indexed: the manifest that is there, and the records of a run that was interrupted.

While tars are indexed there is a folder `_build` beside the manifest, as while a data set is built, with the new index of each finished tar
and its record. They go to their places when all tars are done, so that a data set that is there stays sound however the work ends. Both the
records and the manifest name the version of each tar, so that one that was replaced is read again. What is in the way and was not written
by such a run belongs to somebody else and is never touched.
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

from shards.dataset import index as shard_index
from shards.dataset import manifest as manifests
from shards.dataset.index import Rules
from shards.dataset.manifest import Manifest, ShardRecord, settings_of
from shards.dataset.workplace import FOLDER, REJECTED, sweep
from shards.errors import ManifestMismatch, ShardError, StoreError
from shards.store import Store
from shards.tar.version import Tar
from shards.urls import redacted
from shards.whole_file import LEFT_BEHIND

_BEGUN = f"{FOLDER}/index.json"
_READ_THREADS = 16
_OURS = re.compile(r"index\.json|[0-9a-f]{32}\.(?:json|idx)")
_ELSEWHERE = "It is not removed: move it away, or name another folder with --to"


@dataclass(frozen=True)
class Done:
    """A tar that is indexed, and (key, reason) of its samples that were left out. A new one has its index in `_build`."""

    shard: ShardRecord
    rejected: tuple[tuple[str, str], ...]
    new: bool = False

    @property
    def index_name(self) -> str:
        """Where the index is now."""
        return f"{self._work_name}.idx" if self.new else self.shard.index_name

    @property
    def _work_name(self) -> str:
        return f"{FOLDER}/{hashlib.sha256(self.shard.name.encode()).hexdigest()[:32]}"

    def answers(self, tar: Tar, rules: Rules, sizes: Mapping[str, int]) -> bool:
        """Whether this is what indexing the tar now would give. `sizes` are those of the objects in the destination."""
        shard = self.shard
        # without a version nothing tells whether the tar was replaced
        same = bool(tar.version) and (shard.name, shard.size, shard.version) == (tar.name, tar.size, tar.version)
        enough = bool(shard.sha256) or not rules.digests
        return same and enough and sizes.get(self.index_name) == shard_index.file_size(shard.count)

    def sound(self, store: Store) -> bool:
        """Whether the index that is there is the one that was written, which takes reading it."""
        return hashlib.sha256(store.read(self.index_name)).hexdigest() == self.shard.index_sha256

    def write(self, store: Store, rules: Rules, rows: bytes) -> None:
        """Writes the index of a tar, then the record that it is there."""
        store.write(self.index_name, rows)
        table = {"shard": astuple(self.shard), "rejected": self.rejected, "rules": settings_of(rules)}
        store.write(f"{self._work_name}.json", json.dumps(table).encode())

    def place(self, store: Store) -> None:
        """Puts a new index where the manifest will name it.

        Raises:
            ShardError: it is damaged; the record is gone then, so that the next run reads the tar again.
        """
        rows = store.read(self.index_name)
        if hashlib.sha256(rows).hexdigest() != self.shard.index_sha256:
            store.remove([f"{self._work_name}.json"])
            raise ShardError(f"{store.describe(self.index_name)}: damaged since it was written. Run the same command again")
        store.write(self.shard.index_name, rows)


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
    if any(manifest.settings.get(key) != value for key, value in settings_of(rules).items()):
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


def find_begun(store: Store, sizes: Mapping[str, int]) -> bool:
    """Whether a run was interrupted in the destination, whose objects have these sizes.

    Raises:
        ShardError: its folder `_build` is not of such a run.
    """
    shown = store.describe(FOLDER)
    names = {name.removeprefix(f"{FOLDER}/") for name in sizes if name.startswith(f"{FOLDER}/")}
    if store.local is not None:
        folder = store.local / FOLDER
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise ShardError(f"{shown}: no folder of an earlier run. {_ELSEWHERE}")
        names |= {path.name for path in folder.glob("*") if not LEFT_BEHIND.fullmatch(path.name)}
    if any(name.endswith("plan.json") for name in names):
        raise ShardError(
            f"{store.describe()}: holds an unfinished build. Finish it by the command that began it, or name a folder with --to"
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
    """Raises ShardError where the list of rejected samples or one of `indexes`, all of which may be written, is there by another hand."""
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
    """Makes sure that the destination can be written, before anything is read.

    Raises:
        StoreError: it can't.
    """
    if store.local is not None:  # half-written files of a run that was killed; nobody else writes here now
        for folder in {Path(store.path(name)).parent for name in sizes if name.endswith((".tar", shard_index.SUFFIX))}:
            with suppress(OSError):  # of somebody else
                sweep(folder)
        sweep(store.local / FOLDER)
    try:
        store.write(_BEGUN, json.dumps(settings_of(rules)).encode())
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
            if table["rules"] != settings_of(rules):
                return None
            return Done(ShardRecord(*table["shard"]), tuple((str(key), str(reason)) for key, reason in table["rejected"]), new=True)
        except (ValueError, KeyError, TypeError):
            return None

    with ThreadPoolExecutor(_READ_THREADS) as pool:
        found = pool.map(read, [name for name in sizes if name.startswith(f"{FOLDER}/") and name.endswith(".json") and name != _BEGUN])
        return {done.shard.name: done for done in found if done is not None}


def choose(
    store: Store, tars: Sequence[Tar], rules: Rules, sizes: Mapping[str, int], candidates: Sequence[Mapping[str, Done]], doubtful: bool
) -> dict[str, Done]:
    """What needs no reading: the first candidate that answers each tar. `doubtful`: indexes in their places may be a stopped run's."""

    def look(tar: Tar) -> Done | None:
        known = (found[tar.name] for found in candidates if tar.name in found)
        return next((done for done in known if done.answers(tar, rules, sizes) and (done.new or not doubtful or done.sound(store))), None)

    with ThreadPoolExecutor(_READ_THREADS) as pool:
        return {tar.name: done for tar, done in zip(tars, pool.map(look, tars), strict=True) if done is not None}


def place_all(store: Store, done: Sequence[Done]) -> None:
    """Puts all new indexes in their places.

    Raises:
        ShardError: one is damaged.
    """
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        list(pool.map(lambda one: one.place(store), [one for one in done if one.new]))


def clear(store: Store) -> None:
    """Removes the traces of the work, that it began last."""
    names = [name for name, _ in store.list(FOLDER, deep=False) if _OURS.fullmatch(name.removeprefix(f"{FOLDER}/"))]
    store.remove(name for name in names if name != _BEGUN)
    store.remove([_BEGUN])
    if store.local is not None:
        with suppress(OSError):  # somebody put something there
            (store.local / FOLDER).rmdir()
