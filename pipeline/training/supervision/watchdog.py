"""Ends a rank that hangs, within a bounded time and with the stacks of its threads, so that a launcher or a person can start it again.

The loop notes its stage by one assignment; a thread compares the stage's age with the clock. Nothing here touches a device, a lock of
another thread or the network. A rank that is only slow does not hang:

    start-up    until the first step is done: watchdog.startup_minutes in all, however many waits that includes
    data        waiting for a batch: watchdog.stall_minutes without a byte, a picture or a retry; retries have their own end (data.retries)
    step        watchdog.stall_minutes; after a checkpoint as long as one may take, because other ranks may still be saving
    checkpoint  training stands still for it: watchdog.checkpoint_minutes
    evaluation  the same
    end         the same, from the end of the loop to the end of the process

The clock is monotonic, and time in which the whole process stood still (SIGSTOP, a frozen machine) does not count once it goes on. A thread
that never releases the GIL stops the watchdog's thread too; then `faulthandler` ends the process from C, later and with exit code 1.
"""

from __future__ import annotations

import faulthandler
import fcntl
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from monitoring.run_files import EVENTS
from pipeline.config import Config
from pipeline.training.record.run_folder import append_row, read_lines
from pipeline.training.supervision import guard
from pipeline.training.supervision.stacks import STDERR, Stacks

STALLED = 79
"""Exit code of a rank that the watchdog ended."""
Stage = Literal["start-up", "data", "step", "checkpoint", "evaluation", "end"]

_LONGEST_PAUSE = 20.0  # seconds between two attempts of a request
_LONGEST_TICK = 5.0
_OTHERS_SECONDS = 10.0  # longest wait between stacks and end, for the other ranks, whose clocks run out at about the same time
_SPARE_SECONDS = 30.0
_SAVING = "checkpoint-"  # prefix of the names of the threads that write checkpoints


class Counted(Protocol):
    """Counters of a loader, whose growth is its sign of life."""

    def totals(self) -> Mapping[str, float]:
        """Returns totals by name."""
        ...


@dataclass(frozen=True)
class Patience:
    """Limits of the stages, in seconds.

    Attributes:
        startup: longest time until the first step is done.
        step: longest time in the stages data and step.
        checkpoint: longest time that training stands still for a checkpoint.
        collective: timeout of collectives, longer than all of the others, so that the watchdog explains a hang before a collective fails.
    """

    startup: float
    step: float
    checkpoint: float
    collective: float


def patience(config: Config[Any]) -> Patience:
    """Derives the limits of the stages from the settings."""
    watchdog, data, timeout = config.watchdog, config.data, 60 * config.training.timeout_minutes
    if not watchdog.enabled:
        return Patience(timeout, timeout, timeout, timeout)
    step = 60 * watchdog.stall_minutes or 0.9 * timeout
    remote = "://" in data.shards or any("://" in source.shards for source in data.sources.values())
    if remote and not watchdog.stall_minutes:
        step = max(step, (data.retries + 1) * (data.stall_seconds + _LONGEST_PAUSE))
    startup, checkpoint = 60 * watchdog.startup_minutes, max(step, 60 * watchdog.checkpoint_minutes)
    return Patience(startup, step, checkpoint, max(timeout, 1.1 * max(startup, checkpoint) + 2 * _OTHERS_SECONDS))


@dataclass(frozen=True, slots=True)
class _Beat:
    """The stage of the loop, and its beginning on the watchdog's clock."""

    stage: Stage
    step: int
    since: float
    patient: bool = False
    detail: str = ""
    activity: Counted | None = None


class Watchdog:
    """Watches this process while `with` lasts. There is one for each process.

    Args:
        config: settings of the run.
        clock: clock of monotonic seconds.

    Attributes:
        patience: limits of the stages.
        attempt: attempt of the run, from 1, by the events in the run folder.
    """

    def __init__(self, config: Config[Any], clock: Callable[[], float] = time.monotonic) -> None:
        self.patience = patience(config)
        self._enabled, self._grace, self._run, self._clock = config.watchdog.enabled, config.watchdog.grace_seconds, Path(config.run), clock
        self._rank = int(os.environ.get("RANK", "0"))
        self._tick = max(0.05, min(_LONGEST_TICK, min(self.patience.startup, self.patience.step) / 20))
        self.attempt = 1 + sum(row.get("event") == "start" for row in read_lines(self._run / EVENTS))
        self._stacks = Stacks(self._run, self._rank, self.attempt)
        self._stood_still = 0.0
        self._began = self._now()
        self._first_step: int | None = None
        self._started = False
        self._beat = _Beat("start-up", 0, self._began)
        self._activity: tuple[float, float] = (0.0, self._began)  # sum of the loader's counters, and when it last changed
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def at(self, stage: Stage, step: int = 0, detail: str = "", activity: Counted | None = None) -> None:
        """Notes the stage of the loop. Costs one assignment.

        Args:
            stage: stage that begins.
            step: step that is being taken, or after which the run is evaluated or a checkpoint is saved.
            detail: subject of a wait, if the stage alone does not name it.
            activity: counters whose growth is a sign of life while a batch is waited for.
        """
        before = self._beat
        # the other ranks wait in the next step's collectives while rank 0 still stands still for the checkpoint
        patient = before.stage in ("checkpoint", "evaluation") or (before.patient and before.stage == "data")
        if not self._started and stage in ("data", "checkpoint", "evaluation", "end") and before.stage == "step":
            self._started = True
        self._beat = _Beat(stage, step, self._now(), patient, detail, activity)

    def note_startup(self, detail: str) -> None:
        """Notes the current subject of the start-up's wait."""
        self.at("start-up", detail=detail)

    def open_stacks(self) -> None:
        """Sends stacks to the run folder from now on. Called when the folder belongs to this run."""
        self._stacks.open()
        guard.note_run(self._run, self.attempt)

    def age(self) -> float:
        """Returns the seconds since the loop last noted its stage."""
        return max(0.0, self._now() - self._beat.since)

    def __enter__(self) -> Watchdog:
        if self._enabled:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if self._enabled:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()
        self._stacks.close()

    def _now(self) -> float:
        return self._clock() - self._stood_still

    def _watch(self) -> None:
        looked, credited = self._clock(), None
        while not self._closed.wait(self._tick):
            now = self._clock()
            if now - looked > self._tick + _LONGEST_TICK and credited is not self._beat:  # once a stage, so that each has an end
                credited = self._beat
                self._stood_still += now - looked - self._tick
            looked = now
            beat = self._beat
            since, limit = self._limit(beat)
            waited = self._now() - since
            if waited > limit and beat is self._beat:
                self._end(beat, waited)
            left = max(0.0, limit - waited)
            with suppress(RuntimeError, OSError):  # no more threads on this machine
                faulthandler.dump_traceback_later(left + limit + _SPARE_SECONDS, exit=True, file=self._stacks.descriptor)

    def _limit(self, beat: _Beat) -> tuple[float, float]:
        """Returns the beginning of a stage, or of its last sign of life, and the longest time from there."""
        if not self._started and beat.stage != "end":
            return self._began, self.patience.startup
        if beat.stage in ("checkpoint", "evaluation", "end"):
            return beat.since, self.patience.checkpoint
        limit = self.patience.checkpoint if beat.patient else self.patience.step
        if beat.stage == "data" and beat.activity is not None:
            counted = sum(amount for name, amount in beat.activity.totals().items() if name != "queue_depth")
            if counted != self._activity[0]:
                self._activity = (counted, self._now())
            return max(beat.since, self._activity[1]), limit
        return beat.since, limit

    def _end(self, beat: _Beat, waited: float) -> None:
        """Explains the hang and ends the process. A timer in C ends the process if this blocks, because the disk itself may hang."""
        faulthandler.dump_traceback_later(self._grace + _OTHERS_SECONDS + _SPARE_SECONDS, exit=True, file=STDERR)
        seconds, what = self._clock(), self._described(beat)
        self._stacks.open()
        now = time.strftime("%Y-%m-%d %H:%M:%S %z")
        self._stacks.write(f"{now} rank {self._rank}, process {os.getpid()} on {os.uname().nodename}: {what} for {waited:.0f} s")
        facts = {"rank": self._rank, "attempt": self.attempt, "stage": "start-up" if not self._started else beat.stage, "step": beat.step}
        with suppress(OSError):
            append_event(self._run, "stall", **facts, waiting=what, seconds=round(waited, 1), stacks=self._stacks.where)
        line = (
            f"error (rank {self._rank}): hangs, {what} for {waited:.0f} s. The stacks of its threads are in {self._stacks.where}. It ends "
            f"with code {STALLED}: the same command continues from the last checkpoint (docs/watchdogs.md)\n"
        )
        with suppress(OSError):
            os.write(STDERR, line.encode())  # not sys.stderr, whose lock a stuck thread may hold
        others = min(_OTHERS_SECONDS, self.patience.step / 5)
        while self._clock() - seconds < (max(others, self._grace) if _saves() else others):
            time.sleep(0.05)
        os._exit(STALLED)

    def _described(self, beat: _Beat) -> str:
        if not self._started:
            return {
                "start-up": f"start-up, {beat.detail or 'before the ranks join'}",
                "data": "start-up, waiting for data for the first batch",
                "step": "start-up, in the first step",
            }.get(beat.stage, f"start-up, in the stage {beat.stage}")
        return {
            "data": f"waiting for data for step {beat.step}",
            "step": f"in step {beat.step}, computing or waiting for another rank",
            "checkpoint": f"standing still for the checkpoint of step {beat.step}",
            "evaluation": f"evaluating step {beat.step} on held-back pictures",
        }.get(beat.stage, "at the end of the run")


def restart_count() -> int:
    """Returns how many times the launcher has restarted this run's ranks (`accelerate launch --max_restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def append_event(run: Path, kind: str, **facts: Any) -> None:
    """Appends a line to `events.jsonl` from any rank: one write, under a lock that also holds between nodes.

    The lock is POSIX's (lockf) and not flock, because a network file system may keep flock locks local to each node.

    Raises:
        OSError: the line can't be written.
    """
    with open(run / EVENTS, "a+b", buffering=0) as file:
        for _ in range(20):
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:  # held by another rank's watchdog, or the file system has no locks
                time.sleep(0.05)
        append_row(file, {"time": time.time(), "event": kind, **facts})


def _saves() -> bool:
    """Returns whether a checkpoint is being written."""
    return any(thread.name.startswith(_SAVING) for thread in threading.enumerate())
