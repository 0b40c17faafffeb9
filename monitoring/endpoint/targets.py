"""Where Prometheus finds the endpoints of a run: one small file each in a folder that its file_sd reads (`RUN/targets/*.json`).

No registry, no server: the run folder is what ranks and Prometheus both see. A file is named after the first rank that its endpoint serves.
A process that was killed can't remove its file. So each endpoint removes those of the other ranks that it serves, which it knows by their
names; and that of rank 0 those of ranks that the run no longer has and those of dead processes on its own machine. Nobody else looks into
the folder: were it every rank, a start of a thousand would read a million files of a shared file system. The labels equal those on the
series: scrape with `honor_labels: true`, else Prometheus keeps both sets.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_HOST, _PROCESS = "__context_encoder_host__", "__context_encoder_process__"  # Prometheus drops labels that begin with two underscores
_FILE = re.compile(r"rank(\d+)\.json")

_log = logging.getLogger(__name__)


class TargetsFile:
    """`folder/rank<first>.json`, there until it is closed. A folder that can't be written is a warning: the run goes on without.

    Args:
        folder: made when missing; what Prometheus watches.
        target: `host:port` of the endpoint.
        labels: of all its series: run and node, and rank where it serves a single one.
        ranks: that it serves; the files of the others among them are of an earlier attempt and are removed.
        world_size: ranks of the run; files of ranks from there on likewise, where rank 0 is among `ranks`.
        scheme: http or https.
    """

    def __init__(
        self, folder: Path, target: str, labels: Mapping[str, str], *, ranks: range, world_size: int, scheme: str = "http"
    ) -> None:
        self.path = folder / f"rank{ranks.start}.json"
        hidden = {_HOST: _host(), _PROCESS: _process(os.getpid()) or ""} | ({"__scheme__": scheme} if scheme != "http" else {})
        self._content = json.dumps([{"targets": [target], "labels": {**labels, **hidden}}]).encode()
        partial = folder / f".rank{ranks.start}.partial"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for other in ranks[1:]:
                (folder / f"rank{other}.json").unlink(missing_ok=True)
            if ranks.start == 0:
                _sweep(folder, world_size)
            partial.write_bytes(self._content)
            os.replace(partial, self.path)
        except OSError as error:
            _log.warning("%s: %s. Prometheus will not find %s by itself", self.path, error.strerror or error, target)
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
        if match and int(match[1]) >= world_size:
            path.unlink(missing_ok=True)
        elif match and _is_dead(path):
            _remove_dead(path)


def _remove_dead(path: Path) -> None:
    """Removes the file of a dead process, and not the one that its rank may have written in its place just now."""
    aside = path.with_suffix(".swept")  # which Prometheus does not read
    try:
        os.replace(path, aside)
    except FileNotFoundError:
        return
    if _is_dead(aside):
        aside.unlink(missing_ok=True)
    else:
        os.replace(aside, path)


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
