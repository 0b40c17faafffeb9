"""Ends a run that can't go on: one line that names the problem and the next thing to do, exit code 1, no traceback unless it is a bug.

The end is bounded in time, because a thread that does not end would otherwise hold the process for ever.
"""

from __future__ import annotations

import faulthandler
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.mapping import ConfigError
from pipeline.stream.order import OrderError
from pipeline.training.ranks.world import LaunchError
from pipeline.training.slurm.attempts import note_refusal
from pipeline.training.step import NonFiniteError
from shards.errors import ExplainedError

_REFUSED = (ConfigError, OrderError)  # another attempt would be refused for the same reason
_RAISED_BY_ALL = (*_REFUSED, LaunchError, NonFiniteError)  # every rank raises these, so rank 0 alone prints them
_LOST_PEER = re.compile("Connection (closed|reset) by peer|Connection refused|Broken pipe|NCCL|gloo", re.IGNORECASE)
_TIMED_OUT = re.compile("timed out|timeout", re.IGNORECASE)
_ENDING_SECONDS = 300.0  # longest time from the last line to the end of all threads


@contextmanager
def exit_with_message() -> Iterator[None]:
    """Turns an explained error, or the loss of another rank, into one line on stderr and exit code 1."""
    rank, several = int(os.environ.get("RANK", "0")), os.environ.get("WORLD_SIZE", "1") != "1"
    try:
        yield
    except ExplainedError as error:
        raised_by_all = isinstance(error, _RAISED_BY_ALL)
        if rank == 0 and isinstance(error, _REFUSED):
            note_refusal(error)
        if rank == 0 or not raised_by_all:
            print(f"error{f' (rank {rank})' if several and not raised_by_all else ''}: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    except RuntimeError as error:
        if not several or not _LOST_PEER.search(str(error)):
            raise
        why = "did not answer in time, look for its message" if _TIMED_OUT.search(str(error)) else "has ended, its own message says why"
        print(f"rank {rank}: another rank {why}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    finally:
        faulthandler.dump_traceback_later(_ENDING_SECONDS, exit=True)
