"""Verifies a data set against its manifest: every shard, every index, every sample. Repairs an index if its shard is sound.

A shard is read once, forward, through a bounded buffer and without a copy on disk. Its digest, its samples and its index are compared, and
all problems are reported, not only the first. An index is a function of its shard, so a lost or damaged one can be made again whenever the
shard is sound. A shard that was indexed without reading it whole has no digest to compare: only its size, version and structure are
checked, and `Findings.unproven` counts it.

Pictures that can't be read, by the rule of `shards.dataset.pixels`, are counted: those whose header shows it, or, if they are to be
decoded, all. They are problems of a data set that was built, which promises that every picture can be read; tars of other programs promise
nothing, and training replaces such pictures.
"""

from __future__ import annotations

import functools
import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.console import ProgressReport
from shards.counting import counted
from shards.dataset import index as shard_index
from shards.dataset.index import Look, ShardIndex
from shards.dataset.manifest import NAME, Manifest, ShardRecord, load, rules_of
from shards.dataset.pixels import MOST_PIXELS, PictureRejected, check_header, read_rgb
from shards.dataset.workplace import FOLDER, REJECTED, read_rejected
from shards.errors import ManifestMismatch, ShardCorrupt, ShardError, StoreError
from shards.store import Options, Store
from shards.tar.reader import TarReader
from shards.tar.samples import TarFile
from shards.tar.version import Tar, look_up
from shards.urls import split

_SHOWN_ROWS = 10
_SIZE_THREADS = 16


@dataclass(frozen=True, order=True)
class Problem:
    """One problem: the name of the object, what is wrong with it, and whether --repair-index mends it."""

    name: str
    what: str
    repairable: bool = False


@dataclass(frozen=True)
class Findings:
    """The result of a verification.

    Attributes:
        manifest: manifest of the data set.
        problems: problems, sorted by object; empty for a sound data set.
        repaired: names of the indexes that were made again.
        unproven: number of shards whose bytes can't be verified, because they were indexed without reading them.
        unreadable: number of pictures that can't be read.
        notes: shards of other programs that hold such pictures, with their keys and reasons.
    """

    manifest: Manifest
    problems: tuple[Problem, ...]
    repaired: tuple[str, ...]
    unproven: int = 0
    unreadable: int = 0
    notes: tuple[Problem, ...] = ()


def verify(
    url: str, options: Options | None = None, workers: int = 0, repair_index: bool = False, quiet: bool = False, decode: bool = False
) -> Findings:
    """Reads a whole data set and compares it with its manifest.

    Args:
        url: URL of the data set, or of its manifest.
        options: fsspec options of the store.
        workers: number of shards that are read at once; 0 takes one per core, at most 8.
        repair_index: write a missing or damaged index again if its shard is sound.
        quiet: show no progress on stderr.
        decode: decode every picture, which takes many times as long as reading it.

    Raises:
        ManifestMismatch: the manifest is missing or damaged.
        StoreError: the store can't be reached.
    """
    manifest = load(url, options)
    store = Store(split(url)[0] if url.endswith(".json") else url, options)
    tars = store if manifest.shards_url == manifest.url else Store(manifest.shards_url, options)
    sizes = dict(store.list())
    problems = _check_objects(manifest, store, sizes)
    sizes |= _tar_sizes(manifest, tars, sizes if tars is store else None)
    repaired: list[str] = []
    notes: list[Problem] = []
    unreadable = 0
    report = ProgressReport("samples", manifest.total_samples, quiet=quiet)
    pool = ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 8))  # reading, hashing and decoding all release the GIL
    check = functools.partial(_check_shard, manifest, store, tars, sizes, repair_index, decode)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata
            for record, findings in zip(manifest.records, pool.map(check, range(len(manifest.records))), strict=True):
                problems += findings.problems
                repaired += findings.repaired
                unreadable += len(findings.unreadable)
                if findings.unreadable:
                    (notes if manifest.indexed else problems).append(Problem(record.name, _named(findings.unreadable)))
                report.advance(record.count, record.size)
    finally:
        report.close()
        pool.shutdown(cancel_futures=True)
    unproven = sum(not record.sha256 for record in manifest.records)
    return Findings(manifest, tuple(sorted(problems)), tuple(repaired), unproven, unreadable, tuple(notes))


def _look(decode: bool, max_pixels: int, unreadable: list[tuple[str, str]], key: str, picture: bytes) -> None:
    """Adds key and reason of a picture to a list if it can't be read."""
    try:
        if decode:
            read_rgb(picture, max_pixels)
        else:
            check_header(picture, max_pixels)
    except PictureRejected as error:
        unreadable.append((key, str(error)))


def _named(unreadable: Sequence[tuple[str, str]]) -> str:
    """The sentence about a shard's pictures that can't be read, by key and reason."""
    shown = "; ".join(f"{key} {reason}" for key, reason in unreadable[:_SHOWN_ROWS])
    more = "; ..." if len(unreadable) > _SHOWN_ROWS else ""
    return f"{counted(len(unreadable), 'picture')} can't be read, which training replaces: {shown}{more}"


def _tar_sizes(manifest: Manifest, tars: Store, listed: Mapping[str, int] | None) -> dict[str, int]:
    """Returns the sizes of the shards that exist. `listed` holds the sizes if their folder was listed already."""
    names = [record.name for record in manifest.records]
    try:
        listed = dict(tars.list()) if listed is None else listed
        unsized = {name for name in names if not listed.get(name)}  # web servers list names without sizes, or nothing at all
    except StoreError:  # some stores let objects be read but not listed
        listed, unsized = {}, set(names)
    with ThreadPoolExecutor(_SIZE_THREADS) as pool:
        asked = {name: size for name, size in zip(unsized, pool.map(tars.size, unsized), strict=True) if size is not None}
    return {name: size for name, size in listed.items() if name not in unsized} | asked


def _check_objects(manifest: Manifest, store: Store, sizes: Mapping[str, int]) -> list[Problem]:
    """Finds objects that do not belong to the data set, and checks the list of rejected pictures."""
    known = {name for record in manifest.records for name in (record.name, record.index_name)} | {NAME}
    problems: list[Problem] = []
    if manifest.rejected:
        known.add(REJECTED)
        try:
            listed = len(read_rejected(store))
            if listed != manifest.rejected:
                problems.append(Problem(REJECTED, f"lists {counted(listed, 'picture')}, the manifest says {manifest.rejected}"))
        except ShardError as error:
            problems.append(Problem(REJECTED, str(error)))
    for name in sorted(sizes.keys() - known):
        ours = name.startswith(f"{FOLDER}/")
        if not ours and manifest.indexed:
            continue  # the folder belongs to another program
        what = "left by an interrupted build: run that build again to finish it" if ours else "not in the manifest"
        problems.append(Problem(name, what))
    return problems


@dataclass
class _ShardFindings:
    problems: list[Problem]
    repaired: list[str]
    unreadable: list[tuple[str, str]]


def _check_shard(
    manifest: Manifest, store: Store, tars: Store, sizes: Mapping[str, int], repair_index: bool, decode: bool, shard: int
) -> _ShardFindings:
    record, findings = manifest.records[shard], _ShardFindings([], [], [])
    stored, trouble = _stored_index(manifest, store, sizes, shard)
    actual, sound = _read_shard(manifest, record, tars, sizes.get(record.name), tars is not store, decode, findings)
    if not sound:
        findings.unreadable.clear()  # other bytes than those of the data set
    if actual is not None:
        findings.problems += _check_samples(manifest, record, actual, stored)
    if trouble is not None:
        rows = actual.encode() if actual is not None and sound else b""
        repairable = hashlib.sha256(rows).hexdigest() == record.index_sha256
        if repairable and repair_index:
            store.write(record.index_name, rows)
            findings.repaired.append(record.index_name)
        else:
            hint = " (the shard is sound: --repair-index makes it again)" if repairable else ""
            findings.problems.append(Problem(record.index_name, trouble + hint, repairable))
    return findings


def _read_shard(
    manifest: Manifest, record: ShardRecord, tars: Store, size: int | None, elsewhere: bool, decode: bool, findings: _ShardFindings
) -> tuple[ShardIndex | None, bool]:
    """Reads a shard, of a size or missing, which may lie elsewhere than the manifest. Returns the index that the shard should have, if it
    can be read to its end, and True if its bytes are those of the manifest."""
    actual: ShardIndex | None = None
    sound = False
    most = manifest.settings.get("max_pixels")  # of a build
    look = functools.partial(_look, decode, most if isinstance(most, int) else MOST_PIXELS, findings.unreadable)
    if size is None:
        findings.problems.append(Problem(record.name, _missing(tars, record.name, elsewhere)))
        return None, False
    try:
        if record.sha256:
            reader = TarReader(tars, record.name, size, whole=True)
            try:
                actual = _index_of(manifest, record, reader, look)
            finally:  # a damaged tar may end the reading early, but the digest is compared all the same
                sound = (size, reader.sha256()) == (record.size, record.sha256)
                if not sound:
                    findings.problems.append(Problem(record.name, _difference(record, size)))
        else:
            sound = look_up(tars, record.name) == Tar(record.name, record.size, record.version)
            if not sound:
                findings.problems.append(Problem(record.name, _replaced(record, size)))
            actual = _index_of(manifest, record, TarReader(tars, record.name, size, whole=False), look if decode else None)
    except (ShardCorrupt, StoreError) as error:
        findings.problems.append(Problem(record.name, str(error)))
    return actual, sound


def _stored_index(manifest: Manifest, store: Store, sizes: Mapping[str, int], shard: int) -> tuple[ShardIndex | None, str | None]:
    """Reads the index of a shard, or returns what is wrong with it."""
    if manifest.records[shard].index_name not in sizes:
        return None, "missing"
    try:
        return manifest.read_index(store, shard), None
    except ManifestMismatch as error:
        return None, str(error)


def _missing(tars: Store, name: str, elsewhere: bool) -> str:
    if tars.local is not None and Path(tars.path(name)).is_symlink():
        return "a link that leads nowhere"
    return f"missing in {tars.describe()}" if elsewhere else "missing"


def _difference(record: ShardRecord, size: int) -> str:
    if size != record.size:
        return f"has {counted(size, 'byte')}, the manifest says {record.size:,}"
    return "its sha256 is not the manifest's: bytes have changed"


def _replaced(record: ShardRecord, size: int) -> str:
    if size != record.size:
        return f"has {counted(size, 'byte')}, the manifest says {record.size:,}: replaced since it was indexed. Index it again"
    return "another object than the one that was indexed (its version differs). Index it again"


def _index_of(manifest: Manifest, record: ShardRecord, tar: TarFile, look: Look | None) -> ShardIndex:
    """Makes the index that the shard should have, by the rules of its manifest."""
    if not manifest.indexed:
        return shard_index.make(tar, record.name, look=look)
    return shard_index.index_of(tar, record.name, rules_of(manifest, record), lambda _key, _reason: None, look=look)


def _check_samples(manifest: Manifest, record: ShardRecord, actual: ShardIndex, stored: ShardIndex | None) -> list[Problem]:
    problems = []
    if len(actual) != record.count:
        problems.append(Problem(record.name, f"holds {counted(len(actual), 'sample')}, the manifest says {record.count}"))
    if manifest.classes and len(actual) and int(actual.rows["label"].max()) >= len(manifest.classes):
        problems.append(Problem(record.name, f"has a label past the {counted(len(manifest.classes), 'class')} of the manifest"))
    if stored is not None and len(stored) == len(actual):
        differing = np.flatnonzero(stored.rows != actual.rows)
        if differing.size:
            shown = ", ".join(str(row) for row in differing[:_SHOWN_ROWS]) + (", ..." if differing.size > _SHOWN_ROWS else "")
            problems.append(
                Problem(
                    record.name,
                    f"{counted(differing.size, 'sample is', 'samples are')} not what the index says (in the order of the shard: {shown})",
                )
            )
    return problems
