"""The proof of what a run trained on: its record replayed against the order of the data.

A run folder holds a line an attempt (`events.jsonl`: where it started, with which batch) and a line a step
(`history.jsonl`: a digest of the samples of all ranks). Where attempts overlap, because one was killed after its last
checkpoint, the later line of a step counts: the next attempt undid the earlier one. The order is arithmetic, so the
ledger computes which samples each counted step had to see, compares the digests, and counts every sample of every
epoch. The history is read line by line: memory grows with the data set and the attempts, not with the steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import yaml
from numpy.typing import NDArray

from monitoring.run_files import EVENTS, HISTORY, QUARANTINE, SETTINGS, Lines, last_counted_steps
from pipeline.config import DataConfig
from pipeline.mapping import ConfigError, from_mapping, with_places
from pipeline.stream.dataset import HELD_BACK
from pipeline.stream.mixture import Position, dataset_seed, named_sources
from pipeline.stream.order import SampleOrder
from pipeline.training.record.run_folder import RunFolderError, last_saved_step
from pipeline.training.record.samples_digest import samples_digest, samples_text
from shards.counting import counted
from shards.dataset import manifest as manifests
from shards.dataset.manifest import Manifest
from shards.store import Options
from shards.urls import redacted

_MOST_COUNTED = 1 << 28  # samples of an epoch that are counted one by one; beyond that the digests and the arithmetic are the proof
_MOST_BAD = 8  # bad samples of one batch for which every combination is tried


@dataclass(frozen=True)
class Epoch:
    """The samples that the counted steps of one epoch of a data set saw.

    Attributes:
        source: name of the data set; empty where it is the only one.
        number: number of the epoch, from 0.
        batches: batches of this epoch that were trained on.
        complete: whether these are all its batches.
        seen: number of different samples.
        repeated: number of samples that came more than once.
        left_out: number of samples that no batch of this epoch holds (data.tail), or whose batch is still to come.
        held_back: number of samples that are in no batch of the run (evaluation.held_back); not part of `left_out`.
    """

    source: str
    number: int
    batches: int
    complete: bool
    seen: int
    repeated: int
    left_out: int
    held_back: int = 0


@dataclass
class Account:
    """The samples that a run trained on.

    Attributes:
        attempts: number of attempts that were started.
        worlds: number of ranks of each attempt.
        before: steps that were done when the record begins, by another run or on a machine that was lost; there is no proof of them.
        steps: number of steps that count.
        undone: number of steps that were taken, and then taken again by a later attempt.
        skipped: number of counted steps without an update, because a gradient was not finite.
        replaced: number of bad samples that a substitute replaced.
        epochs: epochs of each source, in order.
        problems: everything that contradicts the order, one sentence each; empty where every sample counted as it had to.
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
    """The order of one data set during the replay, and how often each of its samples came in the current epoch."""

    def __init__(self, number: int, name: str, manifest: Manifest, first_id: int) -> None:
        self.number, self.name, self.manifest, self.first_id = number, name, manifest, first_id
        self.position: Position = (0, 0)
        self.counts: NDArray[np.uint8] | None = None
        self.batches = 0

    def start_attempt(self, start: Mapping[str, Any]) -> Position:
        """Makes the order that an attempt had; returns the position that the attempt began at."""
        state, prefix = start["position"], f"{self.name}." if self.name else ""
        if int(state[f"{prefix}data_set"]) != self.manifest.fingerprint:
            raise RunFolderError(f"attempt {start['attempt']} read another data set than {redacted(self.manifest.url)} holds now")
        self.order = SampleOrder(
            self.manifest,
            dataset_seed(int(state["seed"]), self.number),
            int(start["shares"][self.name]),
            int(state[f"{prefix}lanes"]),
            int(state["shuffle_block"]),
            "pad" if state["pad"] else "drop",
            int(state.get(f"{prefix}{HELD_BACK}", 0)),
        )
        return self.order.skip_finished_epoch((int(state[f"{prefix}epoch"]), int(state[f"{prefix}consumed"])))

    def batch_ids(self) -> NDArray[np.int64]:
        """The ids, in the whole stream, of the samples of the batch at the position."""
        return self.order.take(*self.position, slice(0, self.order.global_batch_size)) + self.first_id

    def substitute(self, place: int, bad: frozenset[int]) -> int:
        """The id of the sample that replaces the one at a place of the batch when exactly the samples in `bad` are unreadable."""
        candidates = (sample + self.first_id for sample in self.order.substitutes(*self.position, place))
        return next((sample for sample in candidates if sample not in bad), -1)

    def count(self, ids: NDArray[np.int64]) -> None:
        """Counts samples that the epoch saw."""
        total = self.manifest.total_samples
        if total > _MOST_COUNTED:
            return
        if self.counts is None:
            self.counts = np.zeros(total, np.uint8)
        np.add.at(self.counts, ids - self.first_id, 1)

    def count_trained_on(self, ids: NDArray[np.int64]) -> int:
        """The number of the given samples that the current epoch saw."""
        return 0 if self.counts is None else int(np.count_nonzero(self.counts[ids]))

    def end_epoch(self, complete: bool) -> Epoch:
        """Sums up the current epoch and begins to count anew."""
        total = self.manifest.total_samples
        if self.counts is None:
            seen, repeated = min(self.order.samples.total, self.batches * self.order.global_batch_size), 0
        else:
            seen, repeated = int(np.count_nonzero(self.counts)), int(np.count_nonzero(self.counts > 1))
        held_back = len(self.order.samples.held_back)
        epoch = Epoch(self.name, self.position[0], self.batches, complete, seen, repeated, total - held_back - seen, held_back)
        self.counts, self.batches = None, 0
        return epoch


def account(folder: Path, options: Options | None = None) -> Account:
    """Replays the record of a run.

    Args:
        folder: the run folder.
        options: options of the stores of the data sets, because the run folder does not keep them.

    Raises:
        RunFolderError: there is no record, or it can't be read, or it is one of another data set.
        ShardError: a data set can't be read.
    """
    starts = [row for row in Lines(folder / EVENTS) if row.get("event") == "start"]
    if not starts:
        raise RunFolderError(f"{folder}: its {EVENTS} names no attempt: is this a run folder?")
    data = _data(folder)
    sources: list[_Source] = []
    for number, (name, config) in enumerate(named_sources(data).items()):
        first_id = sources[-1].first_id + sources[-1].manifest.total_samples if sources else 0
        sources.append(_Source(number, name, manifests.load(config.shards, options), first_id))
    try:
        replay = _Replay(starts, sources, _bad_samples(folder))
        for row in Lines(folder / HISTORY):
            replay.add(row)
        return replay.end(last_saved_step(folder) or 0)
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(f"{folder}: its record can't be read ({type(error).__name__}: {error})") from error


def _data(folder: Path) -> DataConfig:
    """Reads which data sets the run used, from the settings that its folder keeps."""
    path = folder / SETTINGS
    try:
        kept = yaml.safe_load(path.read_text(encoding="utf-8"))["data"]
        data: DataConfig = from_mapping(DataConfig, {"shards": kept["shards"], "sources": kept["sources"]}, "data")
        return cast("DataConfig", with_places(data, ("data.shards", "data.sources.*.shards"), "data"))
    except OSError as error:
        raise RunFolderError(f"{path}: {error.strerror}. Is this a run folder?") from error
    except (yaml.YAMLError, ConfigError, KeyError, TypeError) as error:
        raise RunFolderError(f"{path}: not the settings of a run ({' '.join(str(error).split())})") from error


def _bad_samples(folder: Path) -> frozenset[int]:
    return frozenset(int(row["sample_id"]) for row in Lines(folder / QUARANTINE) if "sample_id" in row)


class _Replay:
    """The walk through the history, line by line, beside the order of the data.

    Args:
        starts: start events of all attempts, in their order.
        sources: data sets of the run.
        bad: ids of the samples that were unreadable at least once.
    """

    def __init__(self, starts: Sequence[Mapping[str, Any]], sources: Sequence[_Source], bad: frozenset[int]) -> None:
        steps = [int(start["step"]) for start in starts]
        self._account = Account(len(starts), [int(start["world_size"]) for start in starts], before=steps[0])
        self._starts = {start["attempt"]: start for start in starts}
        self._limits = dict(zip((start["attempt"] for start in starts), last_counted_steps(steps), strict=True))
        self._sources, self._bad = sources, bad
        self._first = self._next = steps[0] + 1  # step whose line comes next
        self._attempt: Any = None  # attempt whose lines are being read; None before the first
        self._position_is_known = True

    def add(self, row: Mapping[str, Any]) -> None:
        """Takes the next line of the history; lines that do not count are only counted."""
        account, attempt = self._account, row.get("attempt")
        if attempt not in self._limits or (step := int(row["step"])) > self._limits[attempt]:
            account.undone += 1
            return
        if step < self._next:
            account.problems.append(f"step {step} (attempt {attempt}) stands in the history behind step {self._next - 1}")
            return
        account.steps += 1
        account.skipped += bool(row["skipped"])
        while self._next < step and self._position_is_known:
            self._miss_step()
        if not self._position_is_known:
            return
        if attempt != self._attempt:
            self._attempt = attempt
            self._start_attempt(self._starts[attempt], step, continues=step > self._first)
        self._skip_finished_epochs()
        self._compare(row)
        self._advance()

    def end(self, saved: int) -> Account:
        """Ends the epochs that are under way; returns the account.

        Args:
            saved: step of the newest checkpoint, whose steps all have their lines before it is committed; 0 if there is none.
        """
        if self._next <= saved:
            self._account.problems.append(
                f"the history ends with step {self._next - 1}, but step {saved} was saved, so there is no proof of the steps between"
            )
        for source in self._sources:
            if source.batches:
                self._end_epoch(source, not source.order.has_batch(source.position[1]))
        return self._account

    def _miss_step(self) -> None:
        """Goes on behind a step that has no line, as if it had seen its batch."""
        self._account.problems.append(f"step {self._next} is not in the history, so there is no proof of what it trained on")
        if self._attempt is None:
            self._position_is_known = False  # the replay has no position to start from
            return
        self._skip_finished_epochs()
        self._advance()

    def _start_attempt(self, start: Mapping[str, Any], step: int, continues: bool) -> None:
        """Goes over to another attempt, which must have begun where the steps before it ended."""
        problems, number = self._account.problems, start["attempt"]
        if int(start["step"]) != step - 1:
            problems.append(f"attempt {number} began behind step {start['step']}, but its first line is of step {step}")
        for source in self._sources:
            reached = source.order.skip_finished_epoch(source.position) if continues else None
            began = source.start_attempt(start)
            if reached is not None and began != reached:
                where = f"{began} of {source.name}" if source.name else f"{began}"
                problems.append(f"attempt {number} began at (epoch, consumed) {where}, the steps before it ended at {reached}")
            if began[0] != source.position[0] and source.batches:
                self._end_epoch(source, True)
            source.position = began

    def _end_epoch(self, source: _Source, complete: bool) -> None:
        if trained := source.count_trained_on(source.order.samples.held_back):
            name = f"{source.name}, " if source.name else ""
            self._account.problems.append(
                f"{name}epoch {source.position[0]}: {counted(trained, 'sample')} that are held back were trained on"
            )
        self._account.epochs.append(source.end_epoch(complete))

    def _skip_finished_epochs(self) -> None:
        for source in self._sources:
            settled = source.order.skip_finished_epoch(source.position)
            if settled != source.position:
                self._end_epoch(source, True)
                source.position = settled

    def _compare(self, row: Mapping[str, Any]) -> None:
        """Looks for the batch that has the digest of a line, and counts the samples of that batch."""
        for batch, replaced in self._possible_batches():
            if samples_text(samples_digest(np.concatenate(batch))) == row["samples"]:
                self._account.replaced += replaced
                for source, ids in zip(self._sources, batch, strict=True):
                    source.count(ids)
                return
        self._account.problems.append(f"step {row['step']} (attempt {row['attempt']}) saw other samples than the order has for it")

    def _possible_batches(self) -> Iterator[tuple[list[NDArray[np.int64]], int]]:
        """The batch as the order has it, then with its bad samples replaced: first all of them, then fewer, because the crop decides
        whether a damaged picture decodes. Each comes with the number of its substitutes."""
        ids = [source.batch_ids() for source in self._sources]
        yield ids, 0
        places = [(number, place) for number, own in enumerate(ids) for place in np.flatnonzero(np.isin(own, sorted(self._bad))).tolist()]
        if not places:
            return
        for count in range(len(places), 0, -1) if len(places) <= _MOST_BAD else [len(places)]:
            for chosen in itertools.combinations(places, count):
                batch = [own.copy() for own in ids]
                for number, place in chosen:
                    batch[number][place] = self._sources[number].substitute(place, self._bad)
                yield batch, count

    def _advance(self) -> None:
        self._next += 1
        for source in self._sources:
            source.batches += 1
            source.position = (source.position[0], source.position[1] + source.order.global_batch_size)
