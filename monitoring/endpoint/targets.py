"""Target files, by which Prometheus finds the endpoints of a run: one small file each in a folder for its file_sd (`RUN/targets/*.json`).

There is no registry and no server, because ranks and Prometheus both see the run folder. A file is named after the first rank that its
endpoint serves. A process that was killed can't remove its file. So each endpoint removes the files of the other ranks that it serves,
whose names it knows; and rank 0 removes the files of ranks that the run no longer has and of dead processes on its own machine. Rank 0
alone lists the folder: if every rank did, the start of a thousand ranks would read a million files of a shared file system. The labels
equal those of the series, so scrape with `honor_labels: true`, else Prometheus keeps both sets.
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

from shards.local_files import whole_file

_HOST, _PROCESS = "__context_encoder_host__", "__context_encoder_process__"  # Prometheus drops labels that begin with two underscores
_FILE = re.compile(r"rank(\d+)\.json")

_log = logging.getLogger(__name__)


class TargetsFile:
    """The file `folder/rank<first>.json`, from here to `close`. A folder that can't be written is a warning, because the run goes on.

    Args:
        folder: folder that Prometheus watches; made when missing.
        target: `host:port` of the endpoint.
        labels: labels of all its series: run and node, and rank where the endpoint serves a single one.
        ranks: ranks that the endpoint serves; files of all but the first are left from an earlier attempt and are removed.
        world_size: number of ranks of the run; files of higher ranks are removed where rank 0 is among `ranks`.
        scheme: http or https.
    """

    def __init__(
        self, folder: Path, target: str, labels: Mapping[str, str], *, ranks: range, world_size: int, scheme: str = "http"
    ) -> None:
        self.path = folder / f"rank{ranks.start}.json"
        hidden = {_HOST: _host(), _PROCESS: _process(os.getpid()) or ""} | ({"__scheme__": scheme} if scheme != "http" else {})
        self._content = json.dumps([{"targets": [target], "labels": {**labels, **hidden}}]).encode()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for other in ranks[1:]:
                (folder / f"rank{other}.json").unlink(missing_ok=True)
            if ranks.start == 0:
                _sweep(folder, world_size)
            with whole_file(self.path, durable=False, one_writer=True) as file:  # Prometheus may read at any moment
                file.write(self._content)
        except OSError as error:
            _log.warning("%s: %s. Prometheus will not find %s by itself", self.path, error.strerror or error, target)

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
    """Removes the file of a dead process, but not a file that its rank may have written in the meantime."""
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
    """Tells whether a file was written on this machine by a process that has ended."""
    try:
        labels = json.loads(path.read_bytes())[0]["labels"]
        host, process = str(labels[_HOST]), str(labels[_PROCESS])
        return host == _host() and _process(int(process.partition("/")[0])) != process
    except (OSError, ValueError, LookupError, TypeError):
        return False  # not written by this module, or removed meanwhile


def _host() -> str:
    """Names the space of process ids that this process is in: containers that share a host name have their own."""
    try:
        return f"{socket.gethostname()}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def _process(pid: int) -> str | None:
    """Identifies a process by `pid/start time`, because ids are used again; None where there is no such process."""
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
