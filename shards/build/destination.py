"""The destination of a build: whether a build may begin there, what an earlier one left, and what may be removed.

An unfinished build has a folder `_build` with the plan and a record of each finished shard, and no manifest. Only files that a build made
are ever removed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from shards.build.plan import Plan
from shards.build.task import TaskRecord
from shards.counting import counted
from shards.dataset import index as shard_index
from shards.dataset import manifest as manifests
from shards.dataset.manifest import Manifest
from shards.dataset.workplace import FOLDER, REJECTED, prove_deletable
from shards.errors import ManifestMismatch, ShardError
from shards.store import Store

_PLAN = f"{FOLDER}/plan.json"
_READ_THREADS = 16
_FREE = frozenset({"plan", "source", "encoder"})  # settings that may differ between two builds of one plan
Settings = Mapping[str, Any]


def refuse_overlap(source: Store, destination: Store) -> None:
    """Raises ShardError if one lies in the other, because the shards of this build would be listed as the source of the next."""
    if type(source.fs) is not type(destination.fs):
        return
    inner, outer = _path(destination), _path(source)
    if inner == outer or inner.startswith(outer.rstrip("/") + "/") or outer.startswith(inner.rstrip("/") + "/"):
        raise ShardError(
            f"{destination.describe()} and the source {source.describe()} lie in one another. Choose folders that do not contain each other"
        )


def _path(store: Store) -> str:
    return str(store.local.resolve()) if store.local else store.root


def find_finished(store: Store, settings: Settings) -> Manifest | None:
    """Returns the manifest in the destination if it is of the plan that `settings` describes and its shards are there; None without one.

    Raises:
        ShardError: the destination holds a data set of another plan, or one of this plan with parts missing.
    """
    if store.size(manifests.NAME) is None:
        return None
    try:
        manifest = manifests.decode(store.read(manifests.NAME), store.describe(manifests.NAME), store.url)
    except ManifestMismatch as error:
        raise ShardError(f"{error}, or into another folder, or with --overwrite") from error
    if manifest.settings.get("plan") != settings["plan"]:
        raise _other_plan(store, "a finished data set", manifest.settings, settings)
    sizes = dict(store.list(deep=False))
    missing = [r.name for r in manifest.records if sizes.get(r.name) != r.size or r.index_name not in sizes]
    if missing:
        raise ShardError(
            f"{store.describe()}: holds this data set already, but {counted(len(missing), 'shard is', 'shards are')} missing or cut short "
            f"({missing[0]}, ...). Build it anew with --overwrite"
        )
    return manifest


def find_records(store: Store, plan: Plan, settings: Settings) -> dict[int, TaskRecord]:
    """Returns the records of the tasks that an interrupted build of this plan finished, by index; begins a build where there was none.

    Raises:
        ShardError: the destination holds an unfinished build of another plan, or other shards.
        StoreError: the destination can't be written.
    """
    if store.size(_PLAN) is None:
        foreign = [name for name, _ in store.list(deep=False) if name.endswith((".tar", shard_index.SUFFIX)) or name == REJECTED]
        if foreign:
            raise ShardError(
                f"{store.describe()}: holds {counted(len(foreign), 'file')} of a data set, but no manifest and no build "
                f"({foreign[0]}, ...). "
                "Build into an empty folder, or remove them"
            )
        prove_deletable(store)
        store.write(_PLAN, json.dumps(dict(settings)).encode())
        return {}
    begun = _read_plan(store)
    if begun.get("plan") != settings["plan"]:
        raise _other_plan(store, "an unfinished build", begun, settings)
    sizes = dict(store.list(deep=False))
    names = [name for name, _ in store.list(FOLDER) if name != _PLAN]
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        records = [TaskRecord.decode(data) for data in pool.map(store.read, names)]
    return {record.index: record for record in records if record and _holds(record, plan, sizes)}


def make_way(store: Store, plan: Plan, settings: Settings) -> None:
    """Removes what earlier builds made, except an unfinished build of the same plan, which this build finishes.

    The manifest goes first, so that a half-removed data set is never taken for a whole one.
    """
    if store.size(manifests.NAME) is None and _read_plan(store).get("plan") == settings["plan"]:
        return
    names, prefixes = {REJECTED}, {plan.settings.prefix}
    if store.size(manifests.NAME) is not None:
        with suppress(ManifestMismatch):
            manifest = manifests.decode(store.read(manifests.NAME), manifests.NAME, store.url)
            if manifest.indexed:
                raise ShardError(
                    f"{store.describe()}: holds tars that were indexed, not built: they are not removed. Build into another folder"
                )
            names |= {name for record in manifest.records for name in (record.name, record.index_name)}
        store.delete(manifests.NAME)
    prefixes.add(str(_read_plan(store).get("prefix", plan.settings.prefix)))
    ours = re.compile(rf"(?:{'|'.join(map(re.escape, sorted(prefixes)))})-\d{{6,}}\.tar(?:{re.escape(shard_index.SUFFIX)})?")
    present = [name for name, _ in store.list(deep=False)]
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        list(pool.map(store.delete, [name for name in present if name in names or ours.fullmatch(name)]))
    store.delete(FOLDER)


def _holds(record: TaskRecord, plan: Plan, sizes: Mapping[str, int]) -> bool:
    if not 0 <= record.index < len(plan) or record.digest != plan.task(record.index).digest:
        return False
    shard = record.shard
    return shard is None or (sizes.get(shard.name) == shard.size and sizes.get(shard.index_name) == record.index_size)


def _read_plan(store: Store) -> dict[str, Any]:
    if store.size(_PLAN) is None:
        return {}
    with suppress(ValueError):
        table = json.loads(store.read(_PLAN))
        if isinstance(table, dict):
            return table
    return {}


def _other_plan(store: Store, what: str, theirs: Settings, ours: Settings) -> ShardError:
    differing = [
        f"{key} was {theirs[key]}, now {ours[key]}" for key in ours if key in theirs and theirs[key] != ours[key] and key not in _FREE
    ]
    why = "; ".join(differing) or "the pictures differ"
    return ShardError(
        f"{store.describe()}: holds {what} from other settings or pictures ({why}). Choose another folder, or replace it with --overwrite"
    )
