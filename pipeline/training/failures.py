"""How a run that can't go on says so: one line that names what and what to do, exit code 1, no traceback for what is no bug."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from monitoring.exporter import ExporterError
from pipeline.mapping import ConfigError
from pipeline.stream.order import OrderError
from pipeline.training.checkpoint import CheckpointInvalid
from pipeline.training.distributed import LaunchError
from pipeline.training.run_folder import RunFolderError
from pipeline.training.step import NonFiniteError
from shards.errors import ShardError

_EVERYWHERE = (ConfigError, OrderError, LaunchError, ExporterError)  # every rank meets them, one says so
_LOST_PEER = re.compile("Connection (closed|reset) by peer|Connection refused|Broken pipe|NCCL|gloo", re.IGNORECASE)
_ANYWHERE = (ShardError, CheckpointInvalid, RunFolderError, NonFiniteError)


@contextmanager
def reported() -> Iterator[None]:
    """Turns the errors that a run expects into a line on stderr and exit code 1."""
    rank, several = int(os.environ.get("RANK", "0")), os.environ.get("WORLD_SIZE", "1") != "1"
    try:
        yield
    except _EVERYWHERE as error:
        if rank == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    except _ANYWHERE as error:
        print(f"error{f' (rank {rank})' if several else ''}: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    except RuntimeError as error:
        if not several or not _LOST_PEER.search(str(error)):
            raise
        print(f"rank {rank}: another rank has ended, its own message says why", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
