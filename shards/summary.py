"""What a data set is, for people and for programs: counts, sizes, classes, how it was built, and some of its samples."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from shards.errors import ManifestMismatch
from shards.index import NO_LABEL
from shards.manifest import Manifest, load
from shards.progress import megabytes, printable
from shards.store import Options, Store, redacted

_BLOCK = tarfile.BLOCKSIZE
_READ_THREADS = 16
_SHOWN_CLASSES = 3
_LONGEST_NOTE = 1 << 20  # bytes of a sample's json that are read


@dataclass(frozen=True)
class SampleSummary:
    """One sample: its key, the bytes of its picture, its label (a class name, a number where there are no names) and what its json says."""

    key: str
    bytes: int
    label: str | None
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Summary:
    """A data set in numbers. `class_counts` has one entry a class, in the manifest's order; `unlabelled` samples have none."""

    url: str
    shards: int
    samples: int
    bytes: int
    picture_bytes: int
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    unlabelled: int
    rejected: int
    settings: Mapping[str, Any]
    fingerprint: str


def summarise(manifest: Manifest, options: Options | None = None) -> Summary:
    """Counts a data set; reads all of its indexes and none of its pictures.

    Raises:
        ManifestMismatch: an index is missing or damaged.
        StoreError: the store can't be read.
    """
    store = Store(manifest.url, options)
    counts = np.zeros(len(manifest.classes), dtype=np.int64)
    picture_bytes = unlabelled = 0
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        for index in pool.map(lambda shard: manifest.read_index(store, shard), range(len(manifest.records))):
            labels = index.rows["label"].astype(np.int64)
            found = np.bincount(labels[labels != NO_LABEL])
            counts = np.pad(counts, (0, max(0, len(found) - len(counts))))
            counts[: len(found)] += found
            unlabelled += int((labels == NO_LABEL).sum())
            picture_bytes += int(index.rows["length"].sum(dtype=np.int64))
    return Summary(
        redacted(manifest.url),
        len(manifest.records),
        manifest.total_samples,
        manifest.total_bytes,
        picture_bytes,
        manifest.classes,
        tuple(int(count) for count in counts),
        unlabelled,
        manifest.rejected,
        manifest.settings,
        f"{manifest.fingerprint:016x}",
    )


def samples_of(manifest: Manifest, shard: int, count: int, options: Options | None = None) -> list[SampleSummary]:
    """The first samples of one shard.

    Raises:
        ManifestMismatch: there is no such shard, or its index is missing or damaged.
        StoreError: the store can't be read.
    """
    if not 0 <= shard < len(manifest.records):
        raise ManifestMismatch(f"there is no shard {shard}: the data set has {len(manifest.records)}, counted from 0")
    store, name = Store(manifest.url, options), manifest.records[shard].name
    found = []
    for row in manifest.read_index(store, shard).rows[:count]:
        offset, length, number = int(row["offset"]), int(row["length"]), int(row["label"])
        header = tarfile.TarInfo.frombuf(store.read_range(name, offset - _BLOCK, offset), "utf-8", "replace")
        key = header.name.rpartition("/")[0] + "/" + header.name.rpartition("/")[2].partition(".")[0]
        label = None if number == NO_LABEL else manifest.classes[number] if number < len(manifest.classes) else str(number)
        about = _about(store, name, key.lstrip("/"), offset + -(-length // _BLOCK) * _BLOCK)
        found.append(SampleSummary(key.lstrip("/"), length, label, about))
    return found


def _about(store: Store, name: str, key: str, place: int) -> Mapping[str, Any]:
    """The json that follows a picture in the tar, as `build` writes it; nothing where another program wrote the tar otherwise."""
    try:
        header = tarfile.TarInfo.frombuf(store.read_range(name, place, place + _BLOCK), "utf-8", "replace")
        if header.name != f"{key}.json" or not 0 < header.size <= _LONGEST_NOTE:
            return {}
        table = json.loads(store.read_range(name, place + _BLOCK, place + _BLOCK + header.size))
    except (tarfile.TarError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def inspect(url: str, options: Options | None = None, shard: int | None = None, count: int = 5) -> tuple[Summary, list[SampleSummary]]:
    """The summary of a data set and samples of one of its shards (by default the first).

    Raises:
        ManifestMismatch, StoreError: as `summarise` and `samples_of`.
    """
    manifest = load(url, options)
    return summarise(manifest, options), samples_of(manifest, shard or 0, count, options)


def as_json(summary: Summary, samples: list[SampleSummary]) -> str:
    """For programs."""
    return json.dumps({**asdict(summary), "first_samples": [asdict(sample) for sample in samples]}, indent=1)


def as_text(summary: Summary, samples: list[SampleSummary], shard: int = 0) -> str:
    """For people."""
    lines = [
        summary.url,
        f"  samples   {summary.samples:,} in {summary.shards:,} shards ({summary.samples / summary.shards:,.0f} a shard)",
        f"  bytes     {megabytes(summary.bytes)}; a picture takes {megabytes(summary.picture_bytes // summary.samples)} on average",
        f"  rejected  {summary.rejected:,}",
        f"  identity  {summary.fingerprint}",
    ]
    lines += _class_lines(summary)
    lines.append("  settings  " + ", ".join(f"{key}={_shown(value)}" for key, value in summary.settings.items()))
    lines.append(f"  first samples of shard {shard}:")
    for sample in samples:
        label = "no label" if sample.label is None else f"label {sample.label}"
        source = f"  {sample.about['source']}" if "source" in sample.about else ""
        lines.append(f"    {sample.key}  {sample.bytes:>9,} bytes  {label}{source}")
    return "\n".join(printable(line) for line in lines)


def _class_lines(summary: Summary) -> list[str]:
    if not any(summary.class_counts):
        return ["  classes   none: the samples have no labels"]
    named = [(count, _name(summary, label)) for label, count in enumerate(summary.class_counts)]
    most, least = sorted(named, key=lambda pair: (-pair[0], pair[1])), sorted(named)
    lines = [f"  classes   {len(named):,}" + (f"; {summary.unlabelled:,} samples have no label" if summary.unlabelled else "")]
    lines.append("            most:  " + ", ".join(f"{name} {count:,}" for count, name in most[:_SHOWN_CLASSES]))
    lines.append("            least: " + ", ".join(f"{name} {count:,}" for count, name in least[:_SHOWN_CLASSES]))
    return lines


def _name(summary: Summary, label: int) -> str:
    return summary.classes[label] if label < len(summary.classes) else str(label)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:16] + "..." if len(text) == 64 and text.isalnum() else text
