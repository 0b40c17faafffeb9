"""Everything that a run folder says, read once, in memory that does not grow with the run.

The names of the files are those of `pipeline/training/record/run_folder.py`. Whatever is missing or damaged is named in `problems` and left
out; a run that goes on is read as far as it has come.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from monitoring.report import history
from monitoring.report.attempts import Attempt, Attempts
from monitoring.report.curves import Curves
from monitoring.report.lines import Lines, number, whole

EVENTS, HISTORY, SETTINGS, QUARANTINE = "events.jsonl", "history.jsonl", "config.yaml", "quarantine.jsonl"
NEWEST_EVENTS, NEWEST_CHECKPOINTS, NEWEST_BAD_SAMPLES = 1000, 100, 20
"""Events, checkpoints and bad samples that are kept to be shown; of the others there is the number."""
STATES = {"starving": "starving_over", "collapse": "collapse_over", "nonfinite": "nonfinite_over"}
"""Event of a state that is not well -> event of its end."""
_LARGEST_SETTINGS, _LARGEST_FACTS = 1 << 18, 1 << 24  # bytes
_PICTURE = re.compile(r"step_(\d+)\.png")
_CHECKPOINT = re.compile(r"step_(\d+)")
_SILENT_SECONDS = 600.0  # a run that has written nothing for longer is not called running: saves and slow stores take minutes, too


@dataclass
class Record:
    """A run as its folder tells it.

    Attributes:
        folder: of the run.
        name: of the run.
        read_at: when it was read, seconds since 1970.
        attempts: in order; which steps count is settled.
        curves: see `monitoring.report.history`.
        events: the newest, the oldest of them first.
        event_counts: of all events, by kind.
        states: events of states that are not well and have not ended.
        checkpoints: the newest events of checkpoints.
        settings: of the newest attempt; empty where there are none.
        checkpoint_facts: of the newest checkpoint that lies in the folder; empty where there is none.
        bad_samples: by cause.
        bad_sample_rows: the newest of them.
        pictures: (step, file), by step.
        stacks: files with the stacks of ranks that hung, or were asked.
        problems: what is missing or damaged, a sentence each.
        written_at: when the run last wrote its events or its history; NaN where there is neither.
    """

    folder: Path
    name: str
    read_at: float
    attempts: list[Attempt] = field(default_factory=list)
    curves: Curves = field(default_factory=Curves)
    events: deque[Mapping[str, Any]] = field(default_factory=lambda: deque(maxlen=NEWEST_EVENTS))
    event_counts: Counter[str] = field(default_factory=Counter)
    states: dict[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    checkpoints: deque[Mapping[str, Any]] = field(default_factory=lambda: deque(maxlen=NEWEST_CHECKPOINTS))
    settings: Mapping[str, Any] = field(default_factory=dict)
    checkpoint_facts: Mapping[str, Any] = field(default_factory=dict)
    bad_samples: Counter[str] = field(default_factory=Counter)
    bad_sample_rows: deque[Mapping[str, Any]] = field(default_factory=lambda: deque(maxlen=NEWEST_BAD_SAMPLES))
    pictures: list[tuple[int, Path]] = field(default_factory=list)
    stacks: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    written_at: float = math.nan

    @property
    def last(self) -> Attempt | None:
        """The newest attempt."""
        return self.attempts[-1] if self.attempts else None

    @property
    def steps(self) -> int:
        """Steps of the run that are done: those behind which its newest attempt stands."""
        return max(self.last.start, self.last.last) if self.last else 0

    @property
    def planned(self) -> int:
        """Steps that the settings ask for; 0 where nobody says."""
        training = self.settings.get("training")
        return (whole(training.get("steps")) or 0) if isinstance(training, Mapping) else 0

    @property
    def is_finished(self) -> bool:
        """Whether the newest attempt says so."""
        return self.last is not None and self.last.reason == "finished"

    @property
    def is_running(self) -> bool:
        """Whether it goes on, as far as a folder can tell: it has not said that it ends, and has written something lately."""
        if self.last is None or self.last.reason or self.last.hung:
            return False
        return self.read_at - self.written_at < _SILENT_SECONDS


def kind_of(event: Mapping[str, Any]) -> str:
    """What an event calls itself."""
    return str(event.get("event", "unknown"))[:40]


def read(folder: Path) -> Record:
    """Reads a run folder.

    Args:
        folder: that exists. Nothing in it has to.
    """
    attempts = Attempts()
    record = Record(folder, folder.resolve().name, time.time(), attempts.all)
    for path in (folder / EVENTS, folder / HISTORY):
        if (changed := _changed(path)) is not None:
            record.written_at = changed if math.isnan(record.written_at) else max(record.written_at, changed)
    _read_settings(record)
    _read_events(record, attempts)
    _read_history(record, attempts)
    _read_quarantine(record)
    _read_batch_system(record)
    if record.last is not None and not record.last.reason and math.isfinite(record.written_at):
        record.last.last_seen = record.written_at
    record.pictures = sorted(_numbered(folder / "pictures", _PICTURE))
    record.stacks = sorted(path.name for path in _entries(folder / "stacks"))
    _read_checkpoint(record)
    return record


def _read_events(record: Record, attempts: Attempts) -> None:
    lines = Lines(record.folder / EVENTS)
    for row in lines:
        kind = kind_of(row)
        attempts.take(row)
        record.events.append(row)
        record.event_counts[kind if kind in record.event_counts or len(record.event_counts) < 100 else "others"] += 1
        if kind == "checkpoint":
            record.checkpoints.append(row)
        _follow_state(record, kind, row)
    attempts.settle()
    _tell(record, lines, "attempts, checkpoints and the event log are not known")


def _follow_state(record: Record, kind: str, row: Mapping[str, Any]) -> None:
    who = str(row.get("player", ""))[:80]
    if kind == "start":
        record.states.clear()  # each attempt says anew how it is
    elif kind in STATES:
        record.states[kind, who] = row
    else:
        for state, over in STATES.items():
            if kind == over:
                record.states.pop((state, who), None)


def _read_history(record: Record, attempts: Attempts) -> None:
    lines = Lines(record.folder / HISTORY)
    record.curves, inferred = history.read(lines, attempts)
    if inferred:
        record.problems.append(
            f"{EVENTS} does not tell of {inferred} attempts whose steps are in {HISTORY}: they are taken to begin at their first steps."
        )
    _tell(record, lines, "there are no curves")


def _read_quarantine(record: Record) -> None:
    lines = Lines(record.folder / QUARANTINE)
    for row in lines:
        cause = str(row.get("cause", "unknown"))[:40]
        record.bad_samples[cause if cause in record.bad_samples or len(record.bad_samples) < 20 else "others"] += 1
        record.bad_sample_rows.append(row)
    if not lines.missing:  # no bad samples, no file
        _tell(record, lines, "")


def _read_batch_system(record: Record) -> None:
    """What the batch system's own record of attempts says goes among the events."""
    lines = Lines(record.folder / "slurm" / "attempts.jsonl")
    newest: deque[Mapping[str, Any]] = deque(maxlen=NEWEST_EVENTS)
    for row in lines:
        kind = f"batch system: {row.get('event', 'unknown')}"[:40]
        record.event_counts[kind] += 1
        newest.append({**row, "event": kind})
    if newest:
        merged = sorted([*record.events, *newest], key=lambda row: number(row.get("time")) or 0.0)
        record.events.clear()
        record.events.extend(merged)
    if not lines.missing:
        _tell(record, lines, "")


def _read_settings(record: Record) -> None:
    path = record.folder / SETTINGS
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(_LARGEST_SETTINGS + 1)
        if len(text) > _LARGEST_SETTINGS:
            raise ValueError("it is larger than settings are")
        settings = yaml.safe_load(text)
        if not isinstance(settings, dict):
            raise ValueError("it holds no settings")
    except OSError as error:
        record.problems.append(f"{SETTINGS} can't be read ({error.strerror}): the settings and the number of steps to do are not known.")
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        record.problems.append(f"{SETTINGS} is damaged ({reason}): the settings and the number of steps to do are not known.")
    else:
        record.settings = {str(key): value for key, value in settings.items()}


def _read_checkpoint(record: Record) -> None:
    """The newest commit file that can be read, for what it says of the software."""
    for _, path in sorted(_numbered(record.folder / "checkpoints", _CHECKPOINT), reverse=True):
        try:
            with open(path / "checkpoint.json", "rb") as file:
                facts = json.loads(file.read(_LARGEST_FACTS))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(facts, dict):
            record.checkpoint_facts = facts
            return


def _tell(record: Record, lines: Lines, without: str) -> None:
    name = lines.path.relative_to(record.folder)
    if lines.missing:
        record.problems.append(f"{name} is missing or can't be read: {without}.")
    if lines.damaged:
        record.problems.append(f"{name}: {lines.damaged:,} damaged lines were left out.")
    if lines.cut_short and not record.is_running:
        record.problems.append(f"{name}: its last line is cut short and was left out.")


def _numbered(folder: Path, pattern: re.Pattern[str]) -> Iterator[tuple[int, Path]]:
    for path in _entries(folder):
        if match := pattern.fullmatch(path.name):
            yield int(match[1]), path


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _changed(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
