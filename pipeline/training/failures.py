"""Ends a run that can't go on: one line that names the problem and the next thing to do, exit code 1, no traceback unless it is a bug.

The end is bounded in time, because a thread that does not end would otherwise hold the process for ever.
"""

from __future__ import annotations

import faulthandler
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from monitoring.run_files import death, recorded_death
from pipeline.mapping import ConfigError
from pipeline.stream.order import OrderError
from pipeline.training.labels import LabelUnknown
from pipeline.training.ranks.inherited import InheritedError
from pipeline.training.ranks.world import LaunchError
from pipeline.training.slurm.attempts import note_refusal
from pipeline.training.step import NonFiniteError
from pipeline.training.supervision import guard
from shards.errors import ExplainedError

_REFUSED = (ConfigError, OrderError)  # another attempt would be refused for the same reason
_RAISED_BY_ALL = (*_REFUSED, LaunchError, NonFiniteError)  # every rank raises these, so rank 0 alone prints them
_REFUSED_BY_ONE = (InheritedError, LabelUnknown)  # as _REFUSED, by any rank: there may be no rank 0, or another one has the label
_LOST_PEER = re.compile("Connection (closed|reset) by peer|Connection refused|Broken pipe|NCCL|gloo", re.IGNORECASE)
_TIMED_OUT = re.compile("timed out|timeout", re.IGNORECASE)
_ENDING_SECONDS = 300.0  # longest time from the last line to the end of all threads
_DEATH_SECONDS = 3.0  # longest wait for the guard of the dead rank's node, which writes within milliseconds
_REFUSED_ARGUMENTS = 2  # exit code of argparse, which prints its own message


class RankLost(ExplainedError):
    """Another rank has died; the message names this rank, and its signal or exit code where they are known."""


def cause_of(error: BaseException, run: Path, attempt: int) -> BaseException:
    """Returns the error to record for an error that ended the loop: RankLost where the loss of another rank raised it, else the same error.

    Args:
        error: error that ended the loop.
        run: run folder, in which the guard of the lost rank's node writes down how the rank ended.
        attempt: attempt of the run.
    """
    if not _noticed(error):
        return error
    guard.note_end("noticed")
    end = time.monotonic() + (_DEATH_SECONDS if guard.watches() else 0.0)
    while True:
        if (row := recorded_death(run, attempt)) is not None:
            return RankLost(death(row))
        if time.monotonic() > end:
            return RankLost(_why(error))
        time.sleep(0.05)  # the event comes from another process, perhaps of another node


@contextmanager
def exit_with_message() -> Iterator[None]:
    """Turns an explained error, or the loss of another rank, into one line on stderr and exit code 1. The guard learns of every failure."""
    rank, several = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1") != "1"  # RANK may be no number, which is refused
    try:
        yield
    except RankLost as error:
        _say_lost(rank, str(error))
        raise SystemExit(1) from None
    except ExplainedError as error:
        raised_by_all = isinstance(error, _RAISED_BY_ALL)
        if isinstance(error, _REFUSED_BY_ONE) or (rank == "0" and isinstance(error, _REFUSED)):
            note_refusal(error)
        guard.note_end("failed", str(error))
        if rank == "0" or not raised_by_all:
            print(f"error{f' (rank {rank})' if several and not raised_by_all else ''}: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    except SystemExit as error:
        if error.code == _REFUSED_ARGUMENTS:
            guard.note_end("failed", "the arguments are refused, the message is above")
        elif error.code:
            guard.note_end("silent")
        raise
    except BaseException as error:
        if not several or not _noticed(error):
            guard.note_end("failed", f"{type(error).__name__}: {error}")
            raise
        _say_lost(rank, _why(error))
        raise SystemExit(1) from None
    finally:
        faulthandler.dump_traceback_later(_ENDING_SECONDS, exit=True)


def _say_lost(rank: str, why: str) -> None:
    guard.note_end("noticed", why)
    print(f"rank {rank}: {why}", file=sys.stderr, flush=True)


def _noticed(error: BaseException) -> bool:
    """Returns whether the loss of another rank raised an error."""
    return isinstance(error, RuntimeError) and _LOST_PEER.search(str(error)) is not None


def _why(error: BaseException) -> str:
    silent = _TIMED_OUT.search(str(error))
    return f"another rank {'did not answer in time, look for its message' if silent else 'has ended, its own message says why'}"
