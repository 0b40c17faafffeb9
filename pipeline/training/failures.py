"""How a run that can't go on says so: one line that names what and what to do, exit code 1, no traceback for what is no bug. And it ends:
a thread that does not can't hold the process for ever."""

from __future__ import annotations

import faulthandler
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from monitoring.settings import EndpointError
from pipeline.mapping import ConfigError
from pipeline.stream.order import OrderError
from pipeline.training.checkpoint.store import CheckpointInvalid
from pipeline.training.ranks.rendezvous import RanksMissing
from pipeline.training.ranks.world import LaunchError
from pipeline.training.record.run_folder import RunFolderError
from pipeline.training.slurm.attempts import note_refusal
from pipeline.training.step import NonFiniteError
from shards.errors import ShardError

_EVERYWHERE = (ConfigError, OrderError, LaunchError, NonFiniteError)  # every rank meets them, one says so
_LOST_PEER = re.compile("Connection (closed|reset) by peer|Connection refused|Broken pipe|NCCL|gloo", re.IGNORECASE)
_TIMED_OUT = re.compile("timed out|timeout", re.IGNORECASE)
_ANYWHERE = (ShardError, CheckpointInvalid, RunFolderError, RanksMissing, EndpointError)
_ENDING_SECONDS = 300.0  # for what goes on behind the last line: threads that have to end


@contextmanager
def reported() -> Iterator[None]:
    """Turns the errors that a run expects into a line on stderr and exit code 1."""
    rank, several = int(os.environ.get("RANK", "0")), os.environ.get("WORLD_SIZE", "1") != "1"
    try:
        yield
    except _EVERYWHERE as error:
        if rank == 0:
            if isinstance(error, (ConfigError, OrderError)):  # another attempt would meet the same
                note_refusal(error)
            print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    except _ANYWHERE as error:
        print(f"error{f' (rank {rank})' if several else ''}: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    except RuntimeError as error:
        if not several or not _LOST_PEER.search(str(error)):
            raise
        why = "did not answer in time, look for what it says" if _TIMED_OUT.search(str(error)) else "has ended, its own message says why"
        print(f"rank {rank}: another rank {why}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    finally:
        faulthandler.dump_traceback_later(_ENDING_SECONDS, exit=True)
