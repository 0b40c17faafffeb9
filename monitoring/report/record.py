"""Everything that a run folder holds, read once, in memory that does not grow with the run.

`monitoring.run_files` has the names of the files. Everything that is missing or damaged is named in `problems` and left out; a run that
goes on is read as far as it has come.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from monitoring.report import evaluations, history, inpainting
from monitoring.report.attempts import Attempt, Attempts
from monitoring.report.curves import Curves
from monitoring.report.evaluations import Evaluations
from monitoring.report.inpainting import Inpainting
from monitoring.report.lines import Lines, integer, number
from monitoring.run_files import (
    BATCH_ATTEMPTS,
    CHECKPOINTS,
    COMMIT,
    EVALUATION,
    EVENTS,
    HISTORY,
    PICTURES,
    QUARANTINE,
    SETTINGS,
    STACKS,
    step_of_name,
)
from shards.counting import counted

__all__ = ["EVENTS", "HISTORY", "SETTINGS", "Record", "kind_of", "read"]
NEWEST_EVENTS, NEWEST_CHECKPOINTS, NEWEST_BAD_SAMPLES = 1000, 100, 20
"""Events, checkpoints and bad samples that are kept to be shown; the others are only counted."""
STATES = {"starving": "starving_over", "collapse": "collapse_over", "nonfinite": "nonfinite_over"}
"""Event that begins a bad state -> event that ends it. Each attempt reports these states anew."""
LEARNING = ("not_learning", "learning_again")
"""Events that begin and end a problem of learning, which a later attempt takes over from the step that it continues from."""
_MOST_STATES = 50
_LARGEST_SETTINGS, _LARGEST_FACTS = 1 << 18, 1 << 24  # bytes
_SILENT_SECONDS = 600.0  # a run that has written nothing for longer does not count as running; saves and slow stores take minutes, too


@dataclass
class Record:
    """A run as its folder shows it.

    Attributes:
        folder: the run folder.
        name: name of the run folder.
        read_at: time of reading, seconds since 1970.
        attempts: attempts in order; which steps count is decided.
        curves: curves of the history, see `monitoring.report.history`.
        evaluations: evaluations on held-back pictures.
        events: newest events, the oldest of them first.
        event_counts: number of all events, by kind.
        states: events that began a bad state which has not ended, by the kind of the event, and by its player or its problem.
        checkpoints: newest events of checkpoints.
        settings: settings of the newest attempt; empty where there are none.
        checkpoint_facts: commit file of the newest checkpoint in the folder; empty where there is none.
        bad_samples: number of bad samples, by cause.
        bad_sample_rows: newest bad samples.
        pictures: picture grids as (step, file), by step.
        inpainting: newest table of inpainting; None where there is none.
        stacks: names of the files with stacks of ranks, which a hang or SIGUSR2 wrote.
        problems: everything that is missing or damaged, one sentence each.
        written_at: time of the last change of events or history; NaN where there is neither.
    """

    folder: Path
    name: str
    read_at: float
    attempts: list[Attempt] = field(default_factory=list)
    curves: Curves = field(default_factory=Curves)
    evaluations: Evaluations = field(default_factory=Evaluations)
    events: deque[Mapping[str, Any]] = field(default_factory=lambda: deque(maxlen=NEWEST_EVENTS))
    event_counts: Counter[str] = field(default_factory=Counter)
    states: dict[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    checkpoints: deque[Mapping[str, Any]] = field(default_factory=lambda: deque(maxlen=NEWEST_CHECKPOINTS))
    settings: Mapping[str, Any] = field(default_factory=dict)
    checkpoint_facts: Mapping[str, Any] = field(default_factory=dict)
    bad_samples: Counter[str] = field(default_factory=Counter)
    bad_sample_rows: deque[Mapping[str, Any]] = field(default_factory=lambda: deque(maxlen=NEWEST_BAD_SAMPLES))
    pictures: list[tuple[int, Path]] = field(default_factory=list)
    inpainting: Inpainting | None = None
    stacks: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    written_at: float = math.nan

    @property
    def last(self) -> Attempt | None:
        """The newest attempt."""
        return self.attempts[-1] if self.attempts else None

    @property
    def steps(self) -> int:
        """Steps of the run that are done: the step that its newest attempt has reached."""
        return max(self.last.start, self.last.last) if self.last else 0

    @property
    def planned(self) -> int:
        """Steps that the settings ask for; 0 where there are no settings."""
        training = self.settings.get("training")
        return (integer(training.get("steps")) or 0) if isinstance(training, Mapping) else 0

    @property
    def is_finished(self) -> bool:
        """True where the newest attempt ended with the reason `finished`."""
        return self.last is not None and self.last.reason == "finished"

    @property
    def is_running(self) -> bool:
        """True where the run goes on, as far as a folder can show it: it has written no end, and it has written something lately."""
        if self.last is None or self.last.reason or self.last.hung or self.last.died:
            return False
        return self.read_at - self.written_at < _SILENT_SECONDS


def kind_of(event: Mapping[str, Any]) -> str:
    """The kind of an event."""
    return str(event.get("event", "unknown"))[:40]


def read(folder: Path) -> Record:
    """Reads a run folder.

    Args:
        folder: a folder that exists; nothing in it has to.
    """
    attempts = Attempts()
    record = Record(folder, folder.resolve().name, time.time(), attempts.all)
    for path in (folder / EVENTS, folder / HISTORY):
        if (changed := _changed(path)) is not None:
            record.written_at = changed if math.isnan(record.written_at) else max(record.written_at, changed)
    _read_settings(record)
    _read_events(record, attempts)
    _read_history(record, attempts)
    _read_evaluations(record, attempts)
    _read_quarantine(record)
    _read_batch_system(record)
    if record.last is not None and not record.last.reason and math.isfinite(record.written_at):
        record.last.last_seen = record.written_at
    record.pictures = sorted(_numbered(folder / PICTURES, ".png"))
    record.inpainting = inpainting.read(folder, record.problems)
    record.stacks = sorted(path.name for path in _entries(folder / STACKS))
    _read_checkpoint(record)
    return record


def _read_events(record: Record, attempts: Attempts) -> None:
    lines, learning = Lines(record.folder / EVENTS), deque[Mapping[str, Any]](maxlen=NEWEST_EVENTS)
    for row in lines:
        kind = kind_of(row)
        attempts.add_event(row)
        record.events.append(row)
        record.event_counts[kind if kind in record.event_counts or len(record.event_counts) < 100 else "others"] += 1
        if kind == "checkpoint":
            record.checkpoints.append(row)
        elif kind in LEARNING:
            learning.append(row)
        elif kind == "start":
            step = integer(row.get("step")) or 0
            learning = deque((each for each in learning if (integer(each.get("step")) or 0) <= step), maxlen=NEWEST_EVENTS)
        _follow_state(record, kind, row)
    for event in learning:
        _set_state(record, LEARNING[0], str(event.get("problem", "")), event if kind_of(event) == LEARNING[0] else None)
    attempts.settle()
    _note_damage(record, lines, "attempts, checkpoints and the event log are not known")


def _follow_state(record: Record, kind: str, row: Mapping[str, Any]) -> None:
    who = str(row.get("player", ""))
    if kind == "start":
        record.states.clear()
    elif kind in STATES:
        _set_state(record, kind, who, row)
    else:
        for state, over in STATES.items():
            if kind == over:
                _set_state(record, state, who, None)


def _set_state(record: Record, kind: str, who: str, row: Mapping[str, Any] | None) -> None:
    """Sets a bad state, or ends it where there is no row."""
    if row is None:
        record.states.pop((kind, who[:80]), None)
    elif len(record.states) < _MOST_STATES:
        record.states[kind, who[:80]] = row


def _read_history(record: Record, attempts: Attempts) -> None:
    lines = Lines(record.folder / HISTORY)
    record.curves, inferred = history.read(lines, attempts)
    if inferred:
        record.problems.append(
            f"{EVENTS} has no start of {counted(inferred, 'attempt')} whose steps are in {HISTORY}: "
            "they are taken to begin at their first steps."
        )
    _note_damage(record, lines, "there are no curves")


def _read_evaluations(record: Record, attempts: Attempts) -> None:
    lines = Lines(record.folder / EVALUATION)
    record.evaluations = evaluations.read(lines, attempts)
    if not lines.missing:  # no evaluations, no file
        _note_damage(record, lines, "")


def _read_quarantine(record: Record) -> None:
    lines = Lines(record.folder / QUARANTINE)
    for row in lines:
        cause = str(row.get("cause", "unknown"))[:40]
        record.bad_samples[cause if cause in record.bad_samples or len(record.bad_samples) < 20 else "others"] += 1
        record.bad_sample_rows.append(row)
    if not lines.missing:  # no bad samples, no file
        _note_damage(record, lines, "")


def _read_batch_system(record: Record) -> None:
    """Adds the batch system's own record of attempts to the events."""
    lines = Lines(record.folder / BATCH_ATTEMPTS)
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
        _note_damage(record, lines, "")


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
    """Reads the newest commit file that is not damaged, for the versions of the software."""
    for _, path in sorted(_numbered(record.folder / CHECKPOINTS), reverse=True):
        try:
            with open(path / COMMIT, "rb") as file:
                facts = json.loads(file.read(_LARGEST_FACTS))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(facts, dict):
            record.checkpoint_facts = facts
            return


def _note_damage(record: Record, lines: Lines, without: str) -> None:
    name = lines.path.relative_to(record.folder)
    if lines.missing:
        record.problems.append(f"{name} is missing or can't be read: {without}.")
    if lines.damaged:
        record.problems.append(f"{name}: {counted(lines.damaged, 'damaged line was', 'damaged lines were')} left out.")
    if lines.cut_short and not record.is_running:
        record.problems.append(f"{name}: its last line is cut short and was left out.")


def _numbered(folder: Path, ending: str = "") -> Iterator[tuple[int, Path]]:
    for path in _entries(folder):
        if path.name.endswith(ending) and (step := step_of_name(path.name.removesuffix(ending))) is not None:
            yield step, path


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
