"""The attempts of a job that starts again and again, and the decision whether another one follows.

A batch system knows only how a job's processes ended. That is not enough: a run that a signal stopped ends with success, a finished run may
end with an error while it is taken down, and a lost node leaves no exit code at all. So the run's own record decides.
RUN/slurm/attempts.jsonl gets a line when an attempt begins and one when it ends, both from the batch script, and one from rank 0 where the
settings are refused.

    finished  the run's last event is an end with every step done: no further attempt
    refused   the settings can't be used, and another attempt would not change that: no further attempt
    requeue   anything else, such as a signal, a crash or a lost node
    give up   as many attempts in a row as are allowed left no newer checkpoint behind

An attempt that the batch system took away together with its batch script leaves no line of its end and is not counted, because it did not
fail.
"""

from __future__ import annotations

import os
import socket
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from monitoring.run_files import BATCH_ATTEMPTS, EVENTS, Lines
from pipeline.training.record.run_folder import RunFolderError, append_row, last_saved_step
from shards.counting import counted

RECORD_VARIABLE = "CONTEXT_ENCODER_ATTEMPTS"
"""Environment variable of the ranks with the path of the record of attempts."""
PORTS = range(20_000, 30_000)
"""Ports of the ranks' rendezvous: below those that Linux assigns by itself."""


class Verdict(IntEnum):
    """The consequence of an attempt. The values are exit codes, which the batch script reads."""

    FINISHED = 0
    GIVE_UP = 70
    REQUEUE = 75
    REFUSED = 78


@dataclass(frozen=True)
class Decision:
    """The decision after an attempt.

    Attributes:
        verdict: consequence of the attempt.
        reason: one line for the log of the job.
    """

    verdict: Verdict
    reason: str


def record_file(run: Path) -> Path:
    """The record of a run's attempts."""
    return run / BATCH_ATTEMPTS


def begin_attempt(run: Path, steps: int, environment: Mapping[str, str]) -> bool:
    """Records that an attempt begins; returns whether there are steps left to do.

    Args:
        run: the run folder; made when missing.
        steps: number of steps that the settings ask for.
        environment: environment of the batch script, with SLURM's variables.

    Raises:
        RunFolderError: the run folder can't be written.
    """
    facts = {"job": job_name(environment), "restarts": int(environment.get("SLURM_RESTART_COUNT", "0"))}
    facts |= {"nodes": environment.get("SLURM_JOB_NODELIST", ""), "steps": steps, "saved": last_saved_step(run) or 0}
    _append(run, {"event": "begin", **facts})
    return not is_finished(run, steps)


def end_attempt(run: Path, environment: Mapping[str, str], give_up_after: int, code: int, signal: str = "") -> Decision:
    """Decides what follows the newest attempt of this job, and records the decision.

    Args:
        run: the run folder.
        environment: environment of the batch script, with SLURM's variables.
        give_up_after: number of attempts in a row that may leave no newer checkpoint behind.
        code: exit code of the ranks' launchers; recorded, but without influence on the decision.
        signal: signal that the batch script received, if any; recorded, but without influence on the decision.

    Raises:
        RunFolderError: no attempt has begun, or the run folder can't be written.
    """
    job = job_name(environment)
    rows = [row for row in Lines(record_file(run)) if row.get("job") == job]  # because another job may have tried this run
    begins = [number for number, row in enumerate(rows) if row.get("event") == "begin"]
    if not begins:
        raise RunFolderError(f"{record_file(run)}: no attempt has begun. launch/slurm/attempt.py begin comes first")
    steps, later = int(rows[begins[-1]]["steps"]), rows[begins[-1] + 1 :]
    saved, ends = last_saved_step(run) or 0, [row for row in rows if row.get("event") == "end"]
    saved_before = ends[-1]["saved"] if ends else rows[begins[0]]["saved"]
    fruitless = 0 if saved > saved_before else (ends[-1]["fruitless"] if ends else 0) + 1
    refusals = [row["message"] for row in later if row.get("event") == "refused"]
    if is_finished(run, steps):
        decision = Decision(Verdict.FINISHED, f"finished: {counted(steps, 'step is', 'steps are')} done")
    elif refusals:
        decision = Decision(Verdict.REFUSED, f"the settings are refused: {refusals[-1]}")
    elif fruitless >= give_up_after:
        decision = Decision(
            Verdict.GIVE_UP,
            f"{counted(fruitless, 'attempt')} in a row left no checkpoint behind step {saved}: see the ranks' logs in "
            f"{record_file(run).parent}, then submit again to continue from there",
        )
    else:
        progress = f"saved up to step {saved}" if not fruitless else f"attempt {fruitless} of {give_up_after} without a newer checkpoint"
        decision = Decision(Verdict.REQUEUE, f"{signal or f'the launchers ended with {code}'}; {progress}")
    facts = {
        "code": code,
        "signal": signal,
        "saved": saved,
        "fruitless": fruitless,
        "verdict": decision.verdict.name.lower(),
        "why": decision.reason,
    }
    _append(run, {"event": "end", "job": job, **facts})
    return decision


def note_refusal(error: Exception) -> None:
    """Records that the settings are refused, where a batch script waits for it, because every further attempt would be refused, too."""
    if path := os.environ.get(RECORD_VARIABLE):
        with suppress(RunFolderError):  # the attempt then counts as a failed one, and these are limited, too
            _append(Path(path).parent.parent, {"event": "refused", "job": job_name(os.environ), "message": str(error)})


def is_finished(run: Path, steps: int) -> bool:
    """Returns whether the run's newest attempt has ended with every step done.

    Args:
        run: the run folder.
        steps: number of steps that the settings ask for.
    """
    last: Mapping[str, Any] = {}
    for row in Lines(run / EVENTS):
        if row.get("event") in ("start", "end"):
            last = row
    return last.get("reason") == "finished" and int(last["step"]) >= steps


def job_name(environment: Mapping[str, str]) -> str:
    """The name of this job in SLURM's commands. An element of an array is ARRAY_ELEMENT, because its last element has the array's own
    number."""
    if array := environment.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID", "")


def free_port(seed: str, ports: Sequence[int] = PORTS) -> int:
    """Finds a port that is free on this node. The search starts at a place that depends on the job, because two jobs that start on one node
    at the same moment would both find the same first free port.

    Args:
        seed: name of the job and number of the attempt.
        ports: ports to choose from.

    Raises:
        RunFolderError: all ports are taken.
    """
    first = zlib.crc32(seed.encode()) % len(ports)
    for distance in range(len(ports)):
        port = ports[(first + distance) % len(ports)]
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the rendezvous does: a port that was just closed is free
            try:
                listener.bind(("", port))
                listener.listen()
            except OSError:
                continue
            return port
    raise RunFolderError(f"no port from {ports[0]} to {ports[-1]} is free on this node")


def _append(run: Path, row: Mapping[str, Any]) -> None:
    path = record_file(run)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b", buffering=0) as file:  # one write a line, because batch script and rank 0 both append
            append_row(file, {"time": round(time.time(), 3), **row})
    except OSError as error:
        raise RunFolderError(f"{path}: can't be written ({error.strerror}). Is the run folder on a disk that every node sees?") from error
