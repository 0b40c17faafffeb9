"""Where Prometheus finds the ranks of a run: one small file a rank in a folder that its file_sd reads (`RUN/targets/*.json`).

No registry, no server: the run folder is what ranks and Prometheus both see. A process that was killed can't remove its file, so the next
rank that starts removes the files of dead processes on its own machine and of ranks that the run no longer has. The labels equal those on
the series: scrape with `honor_labels: true`, else Prometheus keeps both sets.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import sys
from contextlib import suppress
from pathlib import Path

_HOST, _PROCESS = "__context_encoder_host__", "__context_encoder_process__"  # Prometheus drops labels that begin with two underscores
_FILE = re.compile(r"rank(\d+)\.json")

_log = logging.getLogger(__name__)


class TargetsFile:
    """`folder/rank<r>.json`, there until it is closed. A folder that can't be written is a warning: the run goes on without.

    Args:
        folder: made when missing; what Prometheus watches.
        target: `host:port` of this rank's exporter.
        run: name of the run.
        rank: of this process.
        world_size: ranks of the run; files of ranks from there on are of an earlier attempt and are removed.
        node: name of this machine.
    """

    def __init__(self, folder: Path, target: str, *, run: str, rank: int, world_size: int, node: str) -> None:
        self.path = folder / f"rank{rank}.json"
        labels = {"run": run, "rank": str(rank), "node": node, _HOST: _host(), _PROCESS: _process(os.getpid()) or ""}
        self._content = json.dumps([{"targets": [target], "labels": labels}]).encode()
        partial = folder / f".rank{rank}.partial"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _sweep(folder, world_size)
            partial.write_bytes(self._content)
            os.replace(partial, self.path)
        except OSError as error:
            _log.warning("%s: %s. Prometheus will not find rank %d by itself at %s", self.path, error.strerror or error, rank, target)
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def close(self) -> None:
        """Removes the file, unless another process has taken the rank over."""
        with suppress(OSError):
            if self.path.read_bytes() == self._content:
                self.path.unlink(missing_ok=True)

    def __enter__(self) -> TargetsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _sweep(folder: Path, world_size: int) -> None:
    for path in folder.iterdir():
        match = _FILE.fullmatch(path.name)
        if match and (int(match[1]) >= world_size or _is_dead(path)):
            path.unlink(missing_ok=True)


def _is_dead(path: Path) -> bool:
    """Whether a file was written on this machine by a process that is no more."""
    try:
        labels = json.loads(path.read_bytes())[0]["labels"]
        host, process = str(labels[_HOST]), str(labels[_PROCESS])
        return host == _host() and _process(int(process.partition("/")[0])) != process
    except (OSError, ValueError, LookupError, TypeError):
        return False  # not written by this module, or removed meanwhile


def _host() -> str:
    """This machine as far as process ids go: containers that share a host name have their own."""
    try:
        return f"{socket.gethostname()}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def _process(pid: int) -> str | None:
    """`pid/start time`, since ids are used again; None where there is no such process."""
    if sys.platform == "linux":
        try:
            state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        return None if state in "ZX" else f"{pid}/{fields[18]}"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return f"{pid}/0"
