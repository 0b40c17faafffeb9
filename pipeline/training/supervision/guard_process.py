"""The guard of a node's ranks: a small process that outlives them and their launcher. `guard` starts it.

It watches the processes that the launcher started. The first of them that dies of a signal, or ends with an exit code that no rank
explains, becomes the event `rank_died` of the run. When the launcher has ended, the guard prints the last line: what happened, what is
saved, and what to do. It prints nothing where the ranks have finished, or where their own words stand last already.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monitoring.run_files import death, last_saved_step, recorded_death
from pipeline.training.supervision.exit_status import exit_status
from pipeline.training.supervision.guard import LAUNCHER_LOG, Ending
from pipeline.training.supervision.interruption import LAUNCHERS

_STDIN, _STDOUT, _STDERR = 0, 1, 2
_LOOK_SECONDS = 1.0  # between two looks for ranks that the launcher has started
_LAUNCHER_SECONDS = 15.0  # longest wait for the launcher's end when the ranks have ended; a program that is no launcher may go on for days
_NOTICED_SECONDS = 2.0  # ranks that notice a death wait three seconds for its event; a rank that ends before this was the cause
_RESTARTS = "TORCHELASTIC_RESTART_COUNT"


@dataclass
class Told:
    """Words of the first rank of this node.

    Attributes:
        run: run folder; None before it is known to belong to this run.
        attempt: attempt of the run.
        ending: kind of the rank's end; empty before the end.
        line: sentence of the rank about its end.
        at: time when the rank first told this kind of end, on the monotonic clock, which all processes share.
    """

    run: Path | None = None
    attempt: int = 0
    ending: Ending | str = ""
    line: str = ""
    at: float = 0.0

    def add(self, facts: dict[str, Any]) -> None:
        """Adds the facts of one line."""
        if "run" in facts:
            self.run, self.attempt = Path(facts["run"]), int(facts["attempt"])
        if "ending" in facts:
            self.at = self.at if facts["ending"] == self.ending else facts["at"]
            self.ending, self.line = facts["ending"], facts["line"]


@dataclass
class Guarding:
    """The watch over the ranks of one start of a launcher.

    Args:
        launcher: process id of the launcher.
        untouched: sentence about a run that has no run folder yet.

    Attributes:
        told: words of the first rank.
        dead: facts of the first rank that died; None while there is none.
        died: time of that, on the monotonic clock.
    """

    launcher: int
    untouched: str = ""
    told: Told = field(default_factory=Told)
    dead: dict[str, Any] | None = None
    died: float = 0.0
    _recorded: bool = False
    _words: bytes = b""
    _ranks: dict[int, tuple[int, int]] = field(default_factory=dict)
    """pidfd -> process id and rank of a process that runs."""
    _seen: set[int] = field(default_factory=set)

    def run(self) -> None:
        """Watches until launcher and ranks have ended.

        Ends earlier where the launcher has started the ranks again, whose first rank has a guard of its own, or where it does not end.
        """
        pidfd = os.pidfd_open(self.launcher)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(_STDIN, select.POLLIN)
        launcher_ended, quiet, closed = 0.0, False, 0.0
        while not launcher_ended or self._ranks:
            again = not launcher_ended and not self._look(poll)
            if again or (closed and not self._ranks and time.monotonic() - closed > _LAUNCHER_SECONDS):
                self._record(final=True)
                return
            for number, _ in poll.poll(1000 * _LOOK_SECONDS):
                if number == _STDIN:
                    if not self._hear():
                        closed = time.monotonic()
                        poll.unregister(_STDIN)
                        if self.told.ending == "finished":
                            _leave_console()  # nothing is left to print, and a program that goes on may wait for the end of its pipes
                elif number == pidfd:
                    launcher_ended = time.monotonic()
                    status = exit_status(pidfd, self.launcher)
                    quiet = status is not None and status <= 0  # a launcher that a signal ends prints nothing
                    poll.unregister(pidfd)
                else:
                    poll.unregister(number)
                    self._died(number)
            self._record(final=False)
        while not closed and select.select([_STDIN], [], [], 0)[0] and self._hear():
            pass  # words that came just before the end of a rank
        self._record(final=True)
        if not quiet or not self.told.ending:
            self._print(self._last_line(launcher_ended))

    def _hear(self) -> bool:
        """Reads words of the first rank; returns False at their end."""
        data = os.read(_STDIN, 1 << 16)
        *lines, self._words = (self._words + data).split(b"\n")
        for line in lines:
            self.told.add(json.loads(line))
        return bool(data)

    def _look(self, poll: select.poll) -> bool:
        """Finds ranks that the launcher has started; returns False where it has started them again."""
        with suppress(OSError):
            for process in map(int, Path(f"/proc/{self.launcher}/task/{self.launcher}/children").read_text().split()):
                if process in self._seen:
                    continue
                with suppress(OSError):  # it has ended, or is another user's
                    data = Path(f"/proc/{process}/environ").read_bytes().decode(errors="replace")
                    environment = dict(pair.partition("=")[::2] for pair in data.split("\0"))
                    if not any(name in environment for name in LAUNCHERS):
                        continue  # not yet the program that the launcher starts
                    if environment.get(_RESTARTS) != os.environ.get(_RESTARTS):
                        return False
                    self._seen.add(process)
                    pidfd = os.pidfd_open(process)
                    self._ranks[pidfd] = process, int(environment.get("RANK", "0"))
                    poll.register(pidfd, select.POLLIN)
        return True

    def _died(self, pidfd: int) -> None:
        process, rank = self._ranks.pop(pidfd)
        status = exit_status(pidfd, process)
        os.close(pidfd)
        if self.dead is None and status != 0:
            self.dead, self.died = {"rank": rank, "node": os.uname().nodename}, time.monotonic()
            if status is not None:
                self.dead |= {"exit_code": status} if status > 0 else {"signal": signal.Signals(-status).name}

    def _record(self, final: bool) -> None:
        """Writes the event of the first death. One by an exit code waits for the words of the first rank, because an error that this rank
        explains ends the others, too, and perhaps earlier.

        Args:
            final: whether the ranks have ended, so that no more words come.
        """
        if self.dead is None or self._recorded or self.told.run is None:
            return
        by_code = "exit_code" in self.dead or "signal" not in self.dead
        if by_code and not (self.told.ending == "noticed" or (final and not self.told.ending)):
            return
        if self.told.ending == "noticed" and self.dead.get("exit_code") == 1 and self.died - self.told.at > _NOTICED_SECONDS:
            return  # it noticed, too, and the rank that died is of a node that is lost
        self._recorded = True
        # imported here, because it takes ten times as long as everything else and few runs need it
        from pipeline.training.supervision.watchdog import append_event  # noqa: PLC0415

        with suppress(OSError):
            if self._recorded_death() is None:
                append_event(self.told.run, "rank_died", attempt=self.told.attempt, **self.dead)

    def _last_line(self, launcher_ended: float) -> str:
        """Makes the last line; empty where none is needed."""
        told, log = self.told, os.environ.get(LAUNCHER_LOG, "")
        kept = bool(log) and Path(log).exists()
        if told.ending == "stopped" and log and not kept:
            return ""  # the launcher printed nothing, and kept nothing
        where = f" (the launcher's own text: {log})" if kept else ""
        if told.ending in ("finished", "stopped", "failed") and launcher_ended < told.at:
            return ""  # the words of the rank came after all that the launcher printed
        if told.ending == "stopped":
            return f"{told.line}{where}"
        if told.ending in ("finished", "silent") or (self.dead is None and not told.line):
            return ""
        dead: Mapping[str, Any] | None = None if told.ending == "failed" else self.dead
        if told.ending == "noticed":  # what ended here is no cause, and the guard of another node may know it
            dead = self._recorded_death() or (None if told.line else dead)
        what = told.line if dead is None else death(dead) + _hint(dead)
        saved, again = self._saved()
        sentences = filter(None, (f"the run has failed: {what.rstrip('.')}", saved, "" if told.ending == "failed" else again))
        return ". ".join(sentences).replace("?. ", "? ") + where

    def _recorded_death(self) -> Mapping[str, Any] | None:
        """Returns the event of the first death in this attempt, which the guard of any node wrote."""
        return recorded_death(self.told.run, self.told.attempt) if self.told.run else None

    def _saved(self) -> tuple[str, str]:
        """Makes the sentences about what is saved, and about what the same command does."""
        if self.told.run is None:
            return self.untouched, "Give the same command again"
        saved = None
        with suppress(OSError):
            saved = last_saved_step(self.told.run)
        if saved is None:
            return "Nothing is saved", "The same command begins the run again"
        return f"Step {saved} of {self.told.run} is saved", "The same command continues the run"

    @staticmethod
    def _print(line: str) -> None:
        if line:
            with suppress(OSError):  # the terminal is gone
                os.write(_STDERR, " ".join(line.split()).encode() + b"\n")


def _leave_console() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (_STDOUT, _STDERR):
        os.dup2(null, descriptor)
    os.close(null)


def _hint(dead: Mapping[str, Any]) -> str:
    """Returns where to look for the reason of a death."""
    if "exit_code" in dead:
        return " (its own message is above)"
    return " (the kernel does that for lack of memory: see dmesg)" if dead.get("signal") == "SIGKILL" else ""


def main() -> None:
    """Guards the ranks of a launcher. The arguments are those of `Guarding`."""
    with suppress(ProcessLookupError):  # the launcher has ended
        Guarding(int(sys.argv[1]), sys.argv[2]).run()
