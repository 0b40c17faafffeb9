"""The proof of what a run trained on: its record replayed against the order of the data.

A run folder holds a line an attempt (`events.jsonl`: where it started, with which batch) and a line a step
(`history.jsonl`: a digest of the samples of all ranks). Where attempts overlap, because one was killed behind its last
checkpoint, the later line of a step counts: what the earlier one did was undone. The order is arithmetic, so anybody
can say afterwards which samples each counted step had to see, compare the digests, and count every sample of every
epoch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from pipeline.config import DataConfig
from pipeline.mapping import ConfigError, from_mapping
from pipeline.stream.order import SampleOrder
from pipeline.stream.source import Position, named_sources, source_seed
from pipeline.training.record.run_folder import RunFolderError, read_lines, samples_digest, samples_text
from shards.dataset import manifest as manifests
from shards.dataset.manifest import Manifest
from shards.store import Options, redacted

_MOST_COUNTED = 1 << 28  # samples of an epoch that are counted one by one; past that the digests and the arithmetic must do
_MOST_BAD = 8  # bad samples of one batch for which every combination is tried


@dataclass(frozen=True)
class Epoch:
    """What the counted steps of one epoch of a data set saw.

    Attributes:
        source: name of the data set; empty where it is the only one.
        number: of the epoch, from 0.
        batches: of it that were trained on.
        complete: whether that is all of them.
        seen: different samples.
        repeated: samples that came more than once.
        left_out: samples that no batch of this epoch holds (data.tail), or whose batch is still to come.
    """

    source: str
    number: int
    batches: int
    complete: bool
    seen: int
    repeated: int
    left_out: int


@dataclass
class Account:
    """What a run trained on.

    Attributes:
        attempts: that were started.
        worlds: ranks of each attempt.
        before: steps that were done when the record begins, by another run or on a machine that was lost: nothing is known of them.
        steps: that count.
        undone: steps that were taken and then taken again by a later attempt.
        skipped: counted steps whose update was left out for a gradient that was not finite.
        replaced: samples that were bad and gave their place to another.
        epochs: of each source, in order.
        problems: what is not as it should be; empty where every sample counted as it had to.
    """

    attempts: int = 0
    worlds: list[int] = field(default_factory=list)
    before: int = 0
    steps: int = 0
    undone: int = 0
    skipped: int = 0
    replaced: int = 0
    epochs: list[Epoch] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class _Source:
    """One data set's order while the record is walked, and how often each of its samples came in the epoch that it is in."""

    def __init__(self, number: int, name: str, manifest: Manifest, first_id: int) -> None:
        self.number, self.name, self.manifest, self.first_id = number, name, manifest, first_id
        self.position: Position = (0, 0)
        self.counts: NDArray[np.uint8] | None = None
        self.batches = 0

    def enter(self, start: Mapping[str, Any]) -> Position:
        """Takes the order of an attempt; returns the position that it began at."""
        state, prefix = start["position"], f"{self.name}." if self.name else ""
        if int(state[f"{prefix}data_set"]) != self.manifest.fingerprint:
            raise RunFolderError(f"attempt {start['attempt']} read another data set than {redacted(self.manifest.url)} holds now")
        self.order = SampleOrder(
            self.manifest,
            source_seed(int(state["seed"]), self.number),
            int(start["shares"][self.name]),
            int(state[f"{prefix}lanes"]),
            int(state["shuffle_block"]),
            "pad" if state["pad"] else "drop",
        )
        return self.order.settled((int(state[f"{prefix}epoch"]), int(state[f"{prefix}consumed"])))

    def take(self) -> NDArray[np.int64]:
        """The sample ids at the position, of the whole stream."""
        return self.order.take(*self.position, slice(0, self.order.global_batch_size)) + self.first_id

    def substitute(self, place: int, bad: frozenset[int]) -> int:
        """What replaces the sample at a place of the batch when exactly these samples are bad."""
        found = (sample + self.first_id for sample in self.order.substitutes(*self.position, place))
        return next((sample for sample in found if sample not in bad), -1)


def account(folder: Path, options: Options | None = None) -> Account:
    """Replays the record of a run.

    Args:
        folder: the run folder.
        options: of the stores of the data sets, which the run folder does not keep.

    Raises:
        RunFolderError: there is no record, one that can't be read, or one of another data set.
        ShardError: a data set can't be had.
    """
    starts = [row for row in read_lines(folder / "events.jsonl") if row.get("event") == "start"]
    if not starts:
        raise RunFolderError(f"{folder}: its events.jsonl names no attempt: is this a run folder?")
    data = _data(folder)
    sources: list[_Source] = []
    for number, (name, config) in enumerate(named_sources(data).items()):
        first_id = sources[-1].first_id + sources[-1].manifest.total_samples if sources else 0
        sources.append(_Source(number, name, manifests.load(config.shards, options), first_id))
    rows = read_lines(folder / "history.jsonl")
    counted = _counted(starts, rows)
    worlds, undone = [int(start["world_size"]) for start in starts], len(rows) - len(counted)
    found = Account(len(starts), worlds, int(starts[0]["step"]), len(counted), undone)
    found.skipped = sum(bool(row["skipped"]) for row in counted.values())
    try:
        _walk(found, sources, starts, counted, _bad_samples(folder))
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(f"{folder}: its record can't be read ({type(error).__name__}: {error})") from error
    return found


def _data(folder: Path) -> DataConfig:
    """Which data sets were read, from the settings that the run keeps."""
    path = folder / "config.yaml"
    try:
        kept = yaml.safe_load(path.read_text(encoding="utf-8"))["data"]
        return from_mapping(DataConfig, {"shards": kept["shards"], "sources": kept["sources"]}, "data")
    except OSError as error:
        raise RunFolderError(f"{path}: {error.strerror}. Is this a run folder?") from error
    except (yaml.YAMLError, ConfigError, KeyError, TypeError) as error:
        raise RunFolderError(f"{path}: not the settings of a run ({' '.join(str(error).split())})") from error


def _bad_samples(folder: Path) -> frozenset[int]:
    return frozenset(int(row["sample_id"]) for row in read_lines(folder / "quarantine.jsonl") if "sample_id" in row)


def _counted(starts: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """The lines of the history that count, by step: an attempt undoes whatever went on behind its start."""
    counted: dict[int, Mapping[str, Any]] = {}
    for start in starts:
        counted = {step: row for step, row in counted.items() if step <= int(start["step"])}
        counted |= {int(row["step"]): row for row in rows if row.get("attempt") == start["attempt"]}
    return counted


def _walk(
    found: Account,
    sources: Sequence[_Source],
    starts: Sequence[Mapping[str, Any]],
    counted: Mapping[int, Mapping[str, Any]],
    bad: frozenset[int],
) -> None:
    """Goes through the steps that count, from the first attempt's position on."""
    by_number = {start["attempt"]: start for start in starts}
    attempt = None
    first = int(starts[0]["step"]) + 1
    for step in range(first, max(counted, default=0) + 1):
        row = counted.get(step)
        if row is None:
            found.problems.append(f"step {step} is not in the history: nobody can say what it trained on")
            if attempt is None:
                return  # what follows has no place to start from
        elif row["attempt"] != attempt:
            attempt = row["attempt"]
            _enter(found, sources, by_number[attempt], step, continues=step > first)
        for source in sources:
            _settle(found, source)
        if row is not None:
            _compare(found, sources, row, bad)
        for source in sources:
            source.batches += 1
            source.position = (source.position[0], source.position[1] + source.order.global_batch_size)
    for source in sources:
        if source.batches:
            _end_epoch(found, source, complete=not source.order.has_batch(source.position[1]))


def _enter(found: Account, sources: Sequence[_Source], start: Mapping[str, Any], step: int, continues: bool) -> None:
    """Goes over to another attempt, which must have begun where the steps before it ended."""
    if int(start["step"]) != step - 1:
        found.problems.append(f"attempt {start['attempt']} began behind step {start['step']}, but its first line is of step {step}")
    for source in sources:
        reached = source.order.settled(source.position) if continues else None
        began = source.enter(start)
        if reached is not None and began != reached:
            where = f"{began} of {source.name}" if source.name else f"{began}"
            found.problems.append(f"attempt {start['attempt']} began at (epoch, consumed) {where}, the steps before it ended at {reached}")
        if began[0] != source.position[0] and source.batches:
            _end_epoch(found, source, complete=True)
        source.position = began


def _settle(found: Account, source: _Source) -> None:
    settled = source.order.settled(source.position)
    if settled != source.position:
        _end_epoch(found, source, complete=True)
        source.position = settled


def _compare(found: Account, sources: Sequence[_Source], row: Mapping[str, Any], bad: frozenset[int]) -> None:
    ids = [source.take() for source in sources]
    for chosen, replaced in _candidates(sources, ids, bad):
        if samples_text(samples_digest(np.concatenate(chosen))) == row["samples"]:
            found.replaced += replaced
            for source, own in zip(sources, chosen, strict=True):
                _count(source, own)
            return
    found.problems.append(f"step {row['step']} (attempt {row['attempt']}) saw other samples than the order has for it")


def _candidates(
    sources: Sequence[_Source], ids: Sequence[NDArray[np.int64]], bad: frozenset[int]
) -> Iterator[tuple[list[NDArray[np.int64]], int]]:
    """The batch as the order has it, then with its bad samples replaced: all of them first, then fewer, since whether a damaged picture
    decodes depends on the crop."""
    yield list(ids), 0
    places = [(number, place) for number, own in enumerate(ids) for place in np.flatnonzero(np.isin(own, sorted(bad))).tolist()]
    if not places:
        return
    for count in range(len(places), 0, -1) if len(places) <= _MOST_BAD else [len(places)]:
        for chosen in itertools.combinations(places, count):
            made = [own.copy() for own in ids]
            for number, place in chosen:
                made[number][place] = sources[number].substitute(place, bad)
            yield made, count


def _count(source: _Source, ids: NDArray[np.int64]) -> None:
    total = source.manifest.total_samples
    if total > _MOST_COUNTED:
        return
    if source.counts is None:
        source.counts = np.zeros(total, np.uint8)
    np.add.at(source.counts, ids - source.first_id, 1)


def _end_epoch(found: Account, source: _Source, complete: bool) -> None:
    counts, total = source.counts, source.manifest.total_samples
    if counts is None:
        seen, repeated = min(total, source.batches * source.order.global_batch_size), 0
    else:
        seen, repeated = int(np.count_nonzero(counts)), int(np.count_nonzero(counts > 1))
    found.epochs.append(Epoch(source.name, source.position[0], source.batches, complete, seen, repeated, total - seen))
    source.counts, source.batches = None, 0
