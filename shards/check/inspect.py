"""Describes a data set, for people and for programs: counts, sizes, classes, how it was built, and some of its samples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from shards.console import megabytes, printable
from shards.counting import counted
from shards.dataset.index import NO_LABEL
from shards.dataset.manifest import Manifest, load, rules_of
from shards.errors import ManifestMismatch
from shards.store import Options, Store
from shards.tar.reader import TarReader
from shards.tar.samples import Sample, scan
from shards.urls import redacted

_READ_THREADS = 16
_SHOWN_CLASSES = 3
_MOST_CLASSES = 1 << 20
_LONGEST_NOTE = 1 << 20  # bytes of a sample's json that are read


@dataclass(frozen=True)
class SampleSummary:
    """One sample: its key, the bytes of its picture, its label (a class name, or a number without names) and the content of its json."""

    key: str
    bytes: int
    label: str | None
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Summary:
    """A data set in numbers.

    Attributes:
        classes: class names; where labels go into the millions, those of the labels that occur.
        class_counts: samples of each class, in the order of the names or of the numbers.
        unlabelled: number of samples without a label.
        unread: number of shards that were indexed without reading them whole, so that their samples have no digests.
    """

    url: str
    shards_url: str
    unread: int
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
    """Counts the samples of a data set from all of its indexes, without reading a picture.

    Raises:
        ManifestMismatch: an index is missing or damaged.
        StoreError: the store can't be read.
    """
    store = Store(manifest.url, options)
    counts: Counter[int] = Counter()
    picture_bytes = unlabelled = 0
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        for index in pool.map(lambda shard: manifest.read_index(store, shard), range(len(manifest.records))):
            labels = index.rows["label"].astype(np.int64)
            found, numbers = np.unique(labels[labels != NO_LABEL], return_counts=True)
            counts.update(dict(zip(found.tolist(), numbers.tolist(), strict=True)))
            unlabelled += int((labels == NO_LABEL).sum())
            picture_bytes += int(index.rows["length"].sum(dtype=np.int64))
    last = max(counts, default=-1)
    # labels may be ids with gaps of millions between them: then only those that occur are listed
    listed = range(max(last + 1, len(manifest.classes))) if last < _MOST_CLASSES else sorted(counts)
    return Summary(
        redacted(manifest.url),
        redacted(manifest.shards_url),
        sum(not record.sha256 for record in manifest.records),
        len(manifest.records),
        manifest.total_samples,
        manifest.total_bytes,
        picture_bytes,
        manifest.classes if last < _MOST_CLASSES else tuple(_class_name(manifest.classes, label) for label in listed),
        tuple(counts[label] for label in listed),
        unlabelled,
        manifest.rejected,
        manifest.settings,
        f"{manifest.fingerprint:016x}",
    )


def samples_of(manifest: Manifest, shard: int, count: int, options: Options | None = None) -> list[SampleSummary]:
    """Reads the first samples of one shard.

    Raises:
        ManifestMismatch: there is no such shard, or its index is missing or damaged.
        ShardCorrupt: the shard is damaged.
        StoreError: the store can't be read.
    """
    if not 0 <= shard < len(manifest.records):
        raise ManifestMismatch(f"there is no shard {shard}: the data set has {len(manifest.records)}, counted from 0")
    record, rows = manifest.records[shard], manifest.read_index(Store(manifest.url, options), shard).rows[:count]
    tars = Store(manifest.shards_url, options)
    tar = TarReader(tars, record.name, record.size, whole=False)
    rules = rules_of(manifest, record)
    samples = scan(
        tar,
        tars.describe(record.name),
        open_ended=rules.open_ended,
        last_dot=rules.last_dot,
        leaves_out=lambda name: bool(rules.hides(name)),
    )
    found = []
    for row in rows:
        offset, length, number = int(row["offset"]), int(row["length"]), int(row["label"])
        sample = next((sample for sample in samples if (offset, length) in sample.members.values()), None)  # skips rejected samples
        if sample is None:
            raise ManifestMismatch(f"{tars.describe(record.name)}: holds no sample at byte {offset}, where its index has one. Verify it")
        label = None if number == NO_LABEL else _class_name(manifest.classes, number)
        found.append(SampleSummary(sample.key, length, label, _about(tar, sample)))
    return found


def _about(tar: TarReader, sample: Sample) -> Mapping[str, Any]:
    """Reads the json of a sample; empty without one."""
    place, size = sample.members.get("json", (0, 0))
    if not 0 < size <= _LONGEST_NOTE:
        return {}
    tar.seek(place)
    try:
        table = json.loads(tar.read(size))
    except (ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}


def inspect(url: str, options: Options | None = None, shard: int | None = None, count: int = 5) -> tuple[Summary, list[SampleSummary]]:
    """Returns the summary of a data set and samples of one of its shards (by default the first).

    Raises:
        ManifestMismatch, StoreError: as `summarise` and `samples_of`.
    """
    manifest = load(url, options)
    return summarise(manifest, options), samples_of(manifest, shard or 0, count, options)


def as_json(summary: Summary, samples: list[SampleSummary]) -> str:
    """Returns the description as JSON, for programs."""
    return json.dumps({**asdict(summary), "first_samples": [asdict(sample) for sample in samples]}, indent=1)


def as_text(summary: Summary, samples: list[SampleSummary], shard: int = 0) -> str:
    """Returns the description as lines of text, for people."""
    lines = [
        summary.url,
        f"  samples   {summary.samples:,} in {counted(summary.shards, 'shard')} ({summary.samples / summary.shards:,.0f} a shard)",
        f"  bytes     {megabytes(summary.bytes)}; a picture takes {megabytes(summary.picture_bytes // summary.samples)} on average",
        f"  rejected  {summary.rejected:,}",
        f"  identity  {summary.fingerprint}",
    ]
    if summary.shards_url != summary.url:
        lines.insert(1, f"  tars      {summary.shards_url}")
    if summary.unread:
        lines.append(
            f"  digests   unknown in {counted(summary.unread, 'shard')}: damaged bytes there are noticed only if they don't decode"
        )
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
    named = [(count, _class_name(summary.classes, label)) for label, count in enumerate(summary.class_counts)]
    most, least = sorted(named, key=lambda pair: (-pair[0], pair[1])), sorted(named)
    lines = [
        f"  classes   {len(named):,}"
        + (f"; {counted(summary.unlabelled, 'sample has', 'samples have')} no label" if summary.unlabelled else "")
    ]
    lines.append("            most:  " + ", ".join(f"{name} {count:,}" for count, name in most[:_SHOWN_CLASSES]))
    lines.append("            least: " + ", ".join(f"{name} {count:,}" for count, name in least[:_SHOWN_CLASSES]))
    return lines


def _class_name(classes: Sequence[str], label: int) -> str:
    return classes[label] if label < len(classes) else str(label)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:16] + "..." if len(text) == 64 and text.isalnum() else text
