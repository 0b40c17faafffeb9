"""The manifest: the table of a data set's shards. It is written last, and without it the data set does not exist.

`manifest.json` lies beside the indexes and names each shard with its size, its sha256, its number of samples and the sha256 of its index.
The shards lie beside it, or in the folder that it names, because tars of other programs stay where they are. A sample's id is its position
in the shards laid end to end in the manifest's order; the id never changes while the manifest stays the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shards.counting import counted
from shards.dataset import index as shard_index
from shards.dataset.index import Rules
from shards.dataset.location import find_shards, place_from, relative_place
from shards.dataset.lookalike import kind_of
from shards.dataset.missing import no_manifest, not_indexed
from shards.errors import ManifestMismatch, StoreError
from shards.store import Options, Store
from shards.tar.places import index_command
from shards.urls import redacted, refuse_query, split

NAME = "manifest.json"
_FORMAT = "context-encoder-shards"
_VERSION = 1
INDEXED = "indexed"
"""Setting of manifests of tars that another program wrote: the URLs that were indexed."""
LABELLED = "labelled"
"""Setting of such manifests: the number of samples that have a label. Older manifests lack it."""
_LAST_DOT = "last-dot"
_HEX = re.compile(r"[0-9a-f]*")  # a digest may become the name of a file


@dataclass(frozen=True)
class ShardRecord:
    """One shard in the manifest.

    Attributes:
        name: name below the folder of the shards.
        size: size of the shard in bytes.
        sha256: digest of the shard, hexadecimal; empty where the shard was indexed without reading it whole.
        count: number of samples in the shard's index.
        index_sha256: digest of the index, hexadecimal.
        version: version of the object in its store when it was indexed (ETag without quotes, else size and time); empty for shards that
            were built here.
    """

    name: str
    size: int
    sha256: str
    count: int
    index_sha256: str
    version: str = ""

    @property
    def identity(self) -> str:
        """64 hexadecimal digits that differ between shards whose bytes are known to differ; the cache names its copies by them."""
        return self.sha256 or hashlib.sha256(f"{self.name}\0{self.size}\0{self.version}".encode()).hexdigest()

    @property
    def index_name(self) -> str:
        """Name of the object that holds the shard's index."""
        return self.name + shard_index.SUFFIX


@dataclass(frozen=True)
class Manifest:
    """The table of a data set's shards.

    Attributes:
        records: shards in the order that gives samples their ids.
        url: folder that holds the manifest and the indexes.
        classes: class names; a label is an index into this list. Empty where the samples have no labels, or labels without names.
        settings: settings that the shards were built or indexed with, for people and for resuming.
        rejected: number of pictures or samples that were left out because they could not be used.
        shards_url: folder that holds the shards; `url` by default.
        moved_shards_url: folder that holds the shards if they were moved together with the manifest; empty if it was not moved.
    """

    records: Sequence[ShardRecord]
    url: str = ""
    classes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    rejected: int = 0
    shards_url: str = ""
    moved_shards_url: str = ""

    def __post_init__(self) -> None:
        if not self.shards_url:
            object.__setattr__(self, "shards_url", self.url)

    @property
    def indexed(self) -> bool:
        """True where another program wrote the shards, so that nothing here may change or remove them."""
        return INDEXED in self.settings

    @property
    def labelled(self) -> bool:
        """True where samples have labels, with or without names; also for indexed tars of which it is unknown, since an older index
        did not count its labels."""
        return bool(self.classes) or (self.indexed and self.settings.get("labels") != "none" and self.settings.get(LABELLED) != 0)

    @property
    def stored_side(self) -> int | None:
        """Shorter side in pixels that larger pictures were reduced to; None where they were stored at their own scale, or by others."""
        side = None if self.indexed else self.settings.get("resize")
        return side if isinstance(side, int) else None

    @cached_property
    def sample_counts(self) -> NDArray[np.int64]:
        """Number of samples of each shard, int64 (shards,)."""
        return np.fromiter((record.count for record in self.records), dtype=np.int64, count=len(self.records))

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Id of the first sample of each shard, and the number of samples at the end: int64 (shards + 1,)."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.sample_counts)])

    @property
    def total_samples(self) -> int:
        """Number of samples in the data set."""
        return int(self.starts[-1])

    @property
    def total_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(record.size for record in self.records)

    def locate(self, sample_ids: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the shard of each sample and the sample's row in that shard's index.

        Args:
            sample_ids: int64 (n,), ids in [0, total_samples).

        Returns:
            shard int64 (n,), row int64 (n,).
        """
        ids = np.asarray(sample_ids, dtype=np.int64)
        shard = np.searchsorted(self.starts, ids, side="right") - 1
        return shard, ids - self.starts[shard]

    @cached_property
    def fingerprint(self) -> int:
        """63 bits that differ between data sets whose samples or their order differ."""
        table = hashlib.sha256()
        for record in self.records:
            # the index counts too where one of several pictures of a sample was chosen, because the shard does not say which
            chosen = f"\0{record.index_sha256}" if record.version or not record.sha256 else ""
            table.update(f"{record.name}\0{record.identity}\0{record.count}{chosen}\n".encode())
        return int.from_bytes(table.digest()[:8], "little") >> 1

    def encode(self) -> bytes:
        """Returns the bytes of `manifest.json`, with one line per shard so that it can be read and compared by line."""
        elsewhere = {} if self.shards_url == self.url else {"shards_url": self.shards_url}
        if elsewhere and (place := relative_place(self.shards_url, self.url)):
            elsewhere["shards_place"] = place
        head = {
            "format": _FORMAT,
            "version": _VERSION,
            **elsewhere,
            "samples": self.total_samples,
            "bytes": self.total_bytes,
            "rejected": self.rejected,
            "classes": list(self.classes),
            "settings": dict(self.settings),
        }
        names = ["name", "bytes", "sha256", "samples", "index_sha256", "version"][: None if any(r.version for r in self.records) else -1]
        rows = ",\n".join(json.dumps([r.name, r.size, r.sha256, r.count, r.index_sha256, r.version][: len(names)]) for r in self.records)
        columns = f'"columns": {json.dumps(names)}'
        return f'{json.dumps(head, indent=1)[:-2]},\n {columns},\n "shards": [\n{rows}\n]}}\n'.encode()

    def read_index(self, store: Store, shard: int) -> shard_index.ShardIndex:
        """Reads and checks the index of one shard.

        Raises:
            ManifestMismatch: the index is missing, damaged, or of another shard.
        """
        record = self.records[shard]
        name = store.describe(record.index_name)
        try:
            data = store.read(record.index_name)
        except StoreError as error:
            raise ManifestMismatch(f"the shard {record.name} has no readable index. {error}") from error
        return self.decode_index(data, shard, name)

    def decode_index(self, data: bytes, shard: int, name: str) -> shard_index.ShardIndex:
        """Checks the bytes of a shard's index against the manifest. `name` is the name of the index in errors.

        Raises:
            ManifestMismatch: the index is damaged, or of another shard.
        """
        record = self.records[shard]
        if hashlib.sha256(data).hexdigest() != record.index_sha256:
            raise ManifestMismatch(
                f"{name}: not the index that the manifest names (its sha256 differs). Make it again with: "
                f"python -m shards verify --repair-index {shlex.quote(redacted(self.url))}"
            )
        index = shard_index.decode(data, name)
        if len(index) != record.count or index.shard_bytes != record.size:
            raise ManifestMismatch(
                f"{name}: describes {counted(len(index), 'sample')} in {counted(index.shard_bytes, 'byte')}, "
                f"the manifest {record.count:,} in {record.size:,}"
            )
        return index


def rules_of(manifest: Manifest, record: ShardRecord) -> Rules:
    """Returns the rules by which a shard was indexed. Built shards follow the default rules."""
    settings = manifest.settings if manifest.indexed else {}
    picture = settings.get("picture")
    return Rules(
        picture if isinstance(picture, str) else None,
        settings.get("labels") != "none",
        bool(record.sha256),
        settings.get("open_ended") is True,
        settings.get("key_ends") == _LAST_DOT,
        1 if settings.get("index_format") == 1 else shard_index.FORMAT,
    )


def settings_of(rules: Rules) -> dict[str, Any]:
    """Returns the settings of a manifest that decide the rows of a tar. Digests are no part: each shard's sha256 says if they were read."""
    return {
        "index_format": rules.format,
        "picture": rules.picture,
        "labels": "cls" if rules.labels else "none",
        "open_ended": rules.open_ended,
        "key_ends": _LAST_DOT if rules.last_dot else "first-dot",
    }


class ObjectReader(Protocol):
    """Reads whole objects of one store."""

    store: Store

    def whole(self, name: str) -> bytes | None:
        """Reads all bytes of an object; None where there is no such object."""
        ...


def split_manifest_url(url: str) -> tuple[str, str]:
    """Splits the URL of a data set, or of its manifest, into the folder and the name of the manifest.

    Raises:
        ManifestMismatch: the URL names several tars as `a.tar::b.tar`.
        StoreError: the URL has a query.
    """
    if "::" in url and index_command(url):
        raise not_indexed(url, NAME)
    refuse_query(url)
    return split(url) if url.endswith(".json") else (url, NAME)


def load(url: str, options: Options | None = None, reader: ObjectReader | None = None) -> Manifest:
    """Reads the manifest of a data set.

    Args:
        url: URL of the folder of the manifest, or of the manifest itself.
        options: fsspec options of the store (endpoint_url, profile, ...).
        reader: reader of the folder that `split_manifest_url` returns; by default the store itself, without retries.

    Raises:
        StoreError: the store can't be read.
        ManifestMismatch: the manifest is missing or damaged, or was moved without its shards, which are not where it names them either.
    """
    folder, name = split_manifest_url(url)
    store = reader.store if reader is not None else Store(folder, options)
    shown = store.describe(name)
    tars = bool(index_command(url))
    if tars and store.local is not None and not os.path.isdir(store.local):  # noqa: PTH112 - Path.is_dir raises for a long list in braces
        raise not_indexed(url, NAME)
    try:
        data = store.whole(name) if reader is None else reader.whole(name)
    except StoreError as error:
        if not tars or not isinstance(error.__cause__, PermissionError):  # some stores do not tell that there is no such object
            raise
        data = None
    if data is None and tars:
        raise not_indexed(url, NAME, store.options)
    if data is None:
        raise no_manifest(store, name)
    manifest = decode(data, shown, folder)
    if not manifest.moved_shards_url:
        return manifest
    shards = [(record.name, record.size) for record in manifest.records]
    place = find_shards(folder, manifest.shards_url, manifest.moved_shards_url, shards, store.options)
    return replace(manifest, shards_url=place, moved_shards_url="")


def decode(data: bytes, name: str, url: str) -> Manifest:
    """Reads the bytes of a manifest. `name` is its name in errors, `url` the folder that it lies in.

    Raises:
        ManifestMismatch: the manifest is damaged, of another format, or holds impossible values.
    """
    if kind := kind_of(data):
        raise ManifestMismatch(f"{name}: {kind}")
    try:
        table = json.loads(data)
        if table["format"] != _FORMAT or table["version"] != _VERSION:
            raise ManifestMismatch(f"{name}: format {table['format']!r} version {table['version']!r} is not known here")
        records = tuple(_record(row) for row in table["shards"])
        classes, settings = table["classes"], table["settings"]
        if not isinstance(settings, dict) or not isinstance(classes, list) or not all(isinstance(entry, str) for entry in classes):
            raise ValueError("classes or settings are not what they should be")
        shards_url = table.get("shards_url", url)
        place = table.get("shards_place", "")
        if not isinstance(shards_url, str) or not shards_url or not isinstance(place, str):
            raise ValueError("shards_url is no URL")
        moved = place_from(url, place) if place else shards_url
        moved = "" if moved == shards_url else moved
        manifest = Manifest(records, url, tuple(classes), settings, _count(table["rejected"]), shards_url, moved)
        if sum(record.count for record in records) != _count(table["samples"]) or manifest.total_bytes != table["bytes"]:
            raise ValueError("the rows don't add up to the samples and bytes it names")
        if len({record.name for record in records}) != len(records):
            raise ValueError("it names a shard twice")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ManifestMismatch(f"{name}: not a whole manifest ({why[:200]}). Build or copy the data set again") from error
    if not manifest.total_samples:
        raise ManifestMismatch(f"{name}: the data set is empty. Build it from a folder that holds pictures")
    return manifest


def _record(row: Sequence[Any]) -> ShardRecord:
    name, size, sha256, samples, index_sha256, *more = row
    (version,) = more or [""]
    if not all(isinstance(text, str) for text in (name, sha256, index_sha256, version)):
        raise TypeError(f"impossible row {row!r}")
    if not _HEX.fullmatch(sha256):
        raise ValueError(f"impossible sha256 {sha256!r}")
    if not name or not name.isprintable() or name.startswith("/") or {"..", "."} & set(name.split("/")):
        raise ValueError(f"impossible shard name {name!r}")
    return ShardRecord(name, _count(size), sha256, _count(samples), index_sha256, version)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise ValueError(f"{value!r} is not a count")
    return value
