"""The attempts of a job that starts again and again, and whether there is to be another one.

A batch system knows how a job's processes ended, which says little: a run that was stopped by a signal ends well, one that is finished may
end badly while it is taken down, and after the loss of a node nobody knows. So the run's own record decides. RUN/slurm/attempts.jsonl gets
a line when an attempt begins and one when it ends, written by the batch script, and one by rank 0 where the settings are refused.

    finished  the run's last event says that every step was done: never again
    refused   the settings can't be used, which another attempt would not change: never again
    requeue   anything else: a signal, a crash, a lost node
    give up   as many attempts in a row as are allowed left no newer checkpoint behind

An attempt that the batch system took away together with its batch script leaves no line of its end and is not counted: it did not fail.
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

from pipeline.training.record.run_folder import RunFolderError, append_row, read_lines, last_saved_step

VARIABLE = "CONTEXT_ENCODER_ATTEMPTS"
"""Environment variable that tells the ranks where the record of attempts is."""
PORTS = range(20_000, 30_000)
"""Where the ranks' rendezvous is looked for: below the ports that Linux hands out by itself."""


class Verdict(IntEnum):
    """What comes after an attempt. The values are exit codes, which the batch script reads."""

    FINISHED = 0
    GIVE_UP = 70
    REQUEUE = 75
    REFUSED = 78


@dataclass(frozen=True)
class End:
    """How an attempt ended.

    Attributes:
        verdict: what comes next.
        why: one line for the log of the job.
    """

    verdict: Verdict
    why: str


def record(run: Path) -> Path:
    """The record of a run's attempts."""
    return run / "slurm" / "attempts.jsonl"


def begin(run: Path, steps: int, environment: Mapping[str, str]) -> bool:
    """Notes that an attempt begins; returns whether anything is left to do.

    Args:
        run: the run folder; made when missing.
        steps: that the settings ask for.
        environment: of the batch script, with SLURM's variables.

    Raises:
        RunFolderError: the run folder can't be written.
    """
    facts = {"job": job_name(environment), "restarts": int(environment.get("SLURM_RESTART_COUNT", "0"))}
    facts |= {"nodes": environment.get("SLURM_JOB_NODELIST", ""), "steps": steps, "saved": last_saved_step(run) or 0}
    _append(run, {"event": "begin", **facts})
    return not is_finished(run, steps)


def end(run: Path, environment: Mapping[str, str], give_up_after: int, code: int, signal: str = "") -> End:
    """Decides what comes after the attempt of this job that began last, and notes it.

    Args:
        run: the run folder.
        environment: of the batch script, with SLURM's variables.
        give_up_after: attempts in a row that may leave no newer checkpoint behind.
        code: that the ranks' launchers ended with. Only noted: it decides nothing.
        signal: that the batch script got, if it got one. Only noted, too.
    Raises:
        RunFolderError: no attempt has begun, or the run folder can't be written.
    """
    job = job_name(environment)
    rows = [row for row in read_lines(record(run)) if row.get("job") == job]  # another job may have been tried on this run
    begins = [number for number, row in enumerate(rows) if row.get("event") == "begin"]
    if not begins:
        raise RunFolderError(f"{record(run)}: no attempt has begun. launch/slurm/attempt.py begin comes first")
    begun, rest = rows[begins[-1]], rows[begins[-1] + 1 :]
    saved = last_saved_step(run) or 0
    ends = [row for row in rows if row.get("event") == "end"]
    before = ends[-1]["saved"] if ends else rows[begins[0]]["saved"]
    fruitless = 0 if saved > before else (ends[-1]["fruitless"] if ends else 0) + 1
    refusals = [row["message"] for row in rest if row.get("event") == "refused"]
    if is_finished(run, int(begun["steps"])):
        found = End(Verdict.FINISHED, f"finished: {begun['steps']} steps are done")
    elif refusals:
        found = End(Verdict.REFUSED, f"the settings are refused: {refusals[-1]}")
    elif fruitless >= give_up_after:
        found = End(
            Verdict.GIVE_UP,
            f"{fruitless} attempts in a row left no checkpoint behind step {saved}: see what the ranks say in {record(run).parent}, "
            "then submit again to go on from there",
        )
    else:
        progress = f"saved up to step {saved}" if not fruitless else f"attempt {fruitless} of {give_up_after} without a newer checkpoint"
        found = End(Verdict.REQUEUE, f"{signal or f'the launchers ended with {code}'}; {progress}")
    facts = {
        "code": code,
        "signal": signal,
        "saved": saved,
        "fruitless": fruitless,
        "verdict": found.verdict.name.lower(),
        "why": found.why,
    }
    _append(run, {"event": "end", "job": job, **facts})
    return found


def note_refusal(error: Exception) -> None:
    """Tells the batch script, where there is one, that another attempt would be refused as this one was."""
    if path := os.environ.get(VARIABLE):
        with suppress(RunFolderError):  # then it counts as a failure, of which there is an end, too
            _append(Path(path).parent.parent, {"event": "refused", "job": job_name(os.environ), "message": str(error)})


def is_finished(run: Path, steps: int) -> bool:
    """Whether the run's last attempt did every step that the settings ask for."""
    events = [row for row in read_lines(run / "events.jsonl") if row.get("event") in ("start", "end")]
    return bool(events) and events[-1].get("reason") == "finished" and int(events[-1]["step"]) >= steps


def job_name(environment: Mapping[str, str]) -> str:
    """How SLURM's commands name this job: an element of an array is ARRAY_ELEMENT, since its last element has the array's own number."""
    if array := environment.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID", "")


def free_port(seed: str, ports: Sequence[int] = PORTS) -> int:
    """A port that nobody listens on here, begun to look for at a place that differs from job to job: two jobs that start on one node at the
    same moment would both find the same first free port.

    Args:
        seed: name of the job and number of the attempt.
        ports: to choose from.

    Raises:
        RunFolderError: all are taken.
    """
    first = zlib.crc32(seed.encode()) % len(ports)
    for distance in range(len(ports)):
        port = ports[(first + distance) % len(ports)]
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what the rendezvous does, too: a closed one does not linger
            try:
                listener.bind(("", port))
                listener.listen()
            except OSError:
                continue
            return port
    raise RunFolderError(f"no port from {ports[0]} to {ports[-1]} is free on this node")


def _append(run: Path, row: Mapping[str, Any]) -> None:
    path = record(run)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b", buffering=0) as file:  # one write a line: batch script and rank 0 both append
            append_row(file, {"time": round(time.time(), 3), **row})
    except OSError as error:
        raise RunFolderError(f"{path}: can't be written ({error.strerror}). Is the run folder on a disk that every node sees?") from error
