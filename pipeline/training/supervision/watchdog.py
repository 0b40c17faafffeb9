"""Ends a rank that hangs, within a bounded time and with the stacks of its threads, so that whoever started it can start it again.

The loop says where it is by one assignment; a thread looks at the clock. Nothing here touches a device, a lock of another thread or the
network. A rank that is only slow is not one that hangs:

    start-up    until the first step is done: watchdog.startup_minutes in all, whatever is waited for
    data        waiting for a batch: watchdog.stall_minutes without a byte, a picture or a retry; retries have their own end (data.retries)
    step        watchdog.stall_minutes; after a checkpoint as long as one may take, since other ranks may still be at it
    checkpoint  training stands still for it: watchdog.checkpoint_minutes
    end         the same, from the end of the loop to the end of the process

The clock is monotonic, and time in which the whole process stood still (SIGSTOP, a frozen machine) does not count once it goes on. A thread
that never gives up the interpreter's lock stops this one too; then `faulthandler` does the same from C, later and with exit code 1.
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

from pipeline.config import Config
from pipeline.training.record.run_folder import RunFolder, append_row, read_lines
from pipeline.training.supervision.stacks import STDERR, Stacks

STALLED = 79
"""Exit code of a rank that the watchdog ended."""
Stage = Literal["start-up", "data", "step", "checkpoint", "end"]

_LONGEST_PAUSE = 20.0  # of the reader, between two attempts of a request
_LONGEST_TICK = 5.0
_OTHERS_SECONDS = 10.0  # at most, between the stacks and the end: the other ranks' clocks run out at about the same time
_SPARE_SECONDS = 30.0
_SAVING = "checkpoint-"  # beginning of the names of the threads that write checkpoints


class Counted(Protocol):
    """What says how far a loader is."""

    def totals(self) -> Mapping[str, float]:
        """Totals by name."""
        ...


@dataclass(frozen=True)
class Patience:
    """How long a rank may stay in a stage, in seconds.

    Attributes:
        startup: until the first step is done.
        step: in data and step.
        checkpoint: while training stands still for one.
        collective: that a collective waits for another rank: longer than all of them, so that it is the watchdog that says what is wrong.
    """

    startup: float
    step: float
    checkpoint: float
    collective: float


def patience(config: Config[Any]) -> Patience:
    """What the settings come to."""
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
    """Where the loop is: since when on the watchdog's clock, and what its stage waits for where more is known."""

    stage: Stage
    step: int
    since: float
    patient: bool = False
    detail: str = ""


class Watchdog:
    """Watches this process from `with` to its end. One for each process.

    Args:
        config: of the run.
        clock: monotonic seconds.

    Attributes:
        patience: how long a stage may last.
        attempt: of the run, from 1, as far as its folder tells.
    """

    def __init__(self, config: Config[Any], clock: Callable[[], float] = time.monotonic) -> None:
        self.patience = patience(config)
        self._enabled, self._grace, self._run, self._clock = config.watchdog.enabled, config.watchdog.grace_seconds, Path(config.run), clock
        self._rank = int(os.environ.get("RANK", "0"))
        self._tick = max(0.05, min(_LONGEST_TICK, min(self.patience.startup, self.patience.step) / 20))
        self.attempt = 1 + sum(row.get("event") == "start" for row in read_lines(self._run / "events.jsonl"))
        self._stacks = Stacks(self._run, self._rank, self.attempt)
        self._stood_still = 0.0
        self._began = self._now()
        self._first_step: int | None = None
        self._started = False
        self._beat = _Beat("start-up", 0, self._began)
        self._counted: Counted | None = None
        self._activity: tuple[float, float] = (0.0, self._began)  # what the loader has counted, and since when that is so
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def at(self, stage: Stage, step: int = 0, detail: str = "") -> None:
        """The loop is here now. Costs an assignment.

        Args:
            stage: that begins.
            step: that is being taken, or after which a checkpoint is saved.
            detail: what is waited for, where the stage alone does not say it.
        """
        before = self._beat
        # the other ranks wait in the next step's collectives while rank 0 still stands still for the checkpoint
        patient = before.stage == "checkpoint" or (before.patient and before.stage == "data")
        if not self._started and stage in ("data", "checkpoint", "end") and before.stage == "step":
            self._started = True
        self._beat = _Beat(stage, step, self._now(), patient, detail)

    def tell(self, detail: str) -> None:
        """What start-up waits for now."""
        self.at("start-up", detail=detail)

    def follow(self, counted: Counted) -> None:
        """Takes the loader's counters for signs of life while a batch is waited for."""
        self._counted = counted

    def opened(self, folder: RunFolder) -> None:
        """The run folder is this run's from here on: stacks go into it, and a restart by the launcher is one of its events."""
        self._stacks.open()
        if (restarts := restart_count()) > 0:
            folder.event("restart", restarts=restarts, attempt=self.attempt)

    def age(self) -> float:
        """Seconds since the loop last said where it is."""
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
            if now - looked > self._tick + _LONGEST_TICK and credited is not self._beat:  # once a beat, so that it has an end in any case
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
        """Since when a stage counts, and how long it may last."""
        if not self._started and beat.stage != "end":
            return self._began, self.patience.startup
        if beat.stage in ("checkpoint", "end"):
            return beat.since, self.patience.checkpoint
        limit = self.patience.checkpoint if beat.patient else self.patience.step
        if beat.stage == "data" and self._counted is not None:
            counted = sum(amount for name, amount in self._counted.totals().items() if name != "queue_depth")
            if counted != self._activity[0]:
                self._activity = (counted, self._now())
            return max(beat.since, self._activity[1]), limit
        return beat.since, limit

    def _end(self, beat: _Beat, waited: float) -> None:
        """Says what is wrong and ends the process. A timer in C ends it too, whatever blocks here: the disk may be what hangs."""
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
        }.get(beat.stage, "at the end of the run")


def restart_count() -> int:
    """How many times the launcher started this run's ranks again (`accelerate launch --max_restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def append_event(run: Path, kind: str, **facts: Any) -> None:
    """Appends a line to `events.jsonl` from any rank: one write under a lock that also holds on a network's file system.

    Raises:
        OSError: it can't be written.
    """
    with open(run / "events.jsonl", "a+b", buffering=0) as file:
        for _ in range(20):
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:  # held by another rank's watchdog, or there are no locks here
                time.sleep(0.05)
        append_row(file, {"time": time.time(), "event": kind, **facts})


def _saves() -> bool:
    """Whether a checkpoint is being written."""
    return any(thread.name.startswith(_SAVING) for thread in threading.enumerate())
