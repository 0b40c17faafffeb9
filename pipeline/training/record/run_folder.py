"""What a run leaves behind: settings, events, the history of every step, pictures, the quarantine list.

`events.jsonl` has one line an attempt's start, checkpoint and end: which ranks trained which steps from which
position. `history.jsonl` has one line a step. Both are only ever appended to; where attempts overlap, the later line
of a step is the one that counts.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from shards.errors import ExplainedError
from shards.keyed import mix_array
from shards.store import Options, Store

_DYING_SECONDS = 60.0
_LOST_SECONDS = 900.0


class RunFolderError(ExplainedError):
    """The run folder can't be used. Says why and what to do."""


class RunFolder:
    """One run's folder. Rank 0 holds it, so that two runs never write into one.

    Args:
        path: made when missing.
        writes: whether this process is the one that writes (rank 0).

    Raises:
        RunFolderError: not writable, or held by another run.
    """

    def __init__(self, path: Path, writes: bool) -> None:
        self.path = path
        self.writes = writes
        self._lock: IO[str] | None = None
        self._files: dict[str, IO[bytes]] = {}
        self._writing = threading.Lock()  # checkpoints are reported by the thread that writes them
        if not writes:
            return
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = open(path / ".lock", "w")  # noqa: SIM115 (held until close)
        except OSError as error:
            raise RunFolderError(f"{path}: the run folder can't be written ({error.strerror}). Choose another with --run") from error
        try:
            _take(self._lock)
        except BlockingIOError:
            self._lock.close()
            raise RunFolderError(f"{path}: another run is writing here. Wait for its end, or choose another folder with --run") from None

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go when nothing else is said."""
        return self.path / "checkpoints"

    @property
    def quarantine(self) -> Path:
        """The list of unreadable samples."""
        return self.path / "quarantine.jsonl"

    @property
    def targets(self) -> Path:
        """Where Prometheus finds the endpoints of the ranks."""
        return self.path / "targets"

    def picture(self, step: int) -> Path:
        """The PNG grid of a step."""
        return self.path / "pictures" / f"step_{step:09d}.png"

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Keeps the settings of the newest attempt as `config.yaml`."""
        if self.writes:
            partial = self.path / ".config.yaml.partial"
            partial.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
            os.replace(partial, self.path / "config.yaml")

    def event(self, kind: str, **facts: Any) -> None:
        """Appends one line to `events.jsonl`, on the disk when this returns.

        Raises:
            RunFolderError: the disk does not take it.
        """
        if self.writes:
            self._append("events.jsonl", [{"time": time.time(), "event": kind, **facts}], durable=True)

    def history(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends lines to `history.jsonl`.

        Raises:
            RunFolderError: the disk does not take them. The run must end then: nobody could say what it trained on.
        """
        if self.writes:
            self._append("history.jsonl", rows, durable=False)

    def sync(self) -> None:
        """Waits until the lines of the history are on the disk: the steps that a checkpoint holds are never taken again."""
        with self._writing, self._reported("history.jsonl"):
            if file := self._files.get("history.jsonl"):
                os.fsync(file.fileno())

    def attempts(self) -> int:
        """Attempts that were started before."""
        return sum(row.get("event") == "start" for row in read_lines(self.path / "events.jsonl"))

    def close(self) -> None:
        """Lets another run have the folder."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        if self._lock is not None:
            self._lock.close()

    def _append(self, name: str, rows: Iterable[Mapping[str, Any]], durable: bool) -> None:
        data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        with self._writing, self._reported(name):
            file = self._files.get(name)
            if file is None:
                _end_last_line(self.path / name)
                file = self._files[name] = open(self.path / name, "ab", buffering=0)  # noqa: SIM115
            size = os.fstat(file.fileno()).st_size
            try:
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
            except OSError:
                os.ftruncate(file.fileno(), size)  # a full disk may have taken a part
                raise
            if durable:
                os.fsync(file.fileno())

    @contextmanager
    def _reported(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunFolderError(
                f"{self.path / name}: can't be written ({error.strerror}). Make room or mount it again; the same command then continues "
                "from the last checkpoint"
            ) from error


def _take(lock: IO[str]) -> None:
    """Takes the lock. After a restart it waits for it: by the launcher, since the rank that had it was just killed and may still be dying;
    by SLURM, since it may live on for as long as its watchdog lets it, on a node that the cluster has given up."""
    restarts = {"TORCHELASTIC_RESTART_COUNT": _DYING_SECONDS, "SLURM_RESTART_COUNT": _LOST_SECONDS}
    end = time.monotonic() + max((seconds for name, seconds in restarts.items() if os.environ.get(name, "0") != "0"), default=0.0)
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise
        time.sleep(0.05)


def checkpoint_store(run: str, options: Options | None = None) -> Store:
    """The store of a run's checkpoints.

    Args:
        run: the run folder, or the folder or URL of the checkpoints themselves.
        options: of the store.

    Raises:
        RunFolderError: the settings that the run keeps can't be read.
    """
    inside, settings = Path(run) / "checkpoints", Path(run) / "config.yaml"
    if "://" not in run and settings.is_file():
        try:
            url = yaml.safe_load(settings.read_text(encoding="utf-8"))["checkpoint"]["url"]
        except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:
            text = " ".join(str(error).split())
            raise RunFolderError(f"{settings}: not the settings of a run ({text}). Name the folder or URL of its checkpoints") from error
        if url:
            return Store(url, options)
    return Store(str(inside) if inside.is_dir() else run, options)


def recorded_checkpoint(run: Path) -> int | None:
    """The step that a run says it saved last, which is a lower one after it had to go back; None where it saved none."""
    rows = read_lines(run / "events.jsonl")
    return next((int(row["step"]) for row in reversed(rows) if row.get("event") == "checkpoint" and "step" in row), None)


def samples_digest(sample_ids: NDArray[np.int64]) -> int:
    """A signed 64-bit number that, summed over the ranks, is the same for the same samples of a step; the history keeps it.

    Args:
        sample_ids: int64 (n,), of one rank.
    """
    digests = mix_array(sample_ids.astype(np.uint64))
    return int(digests.view(np.int64).sum())  # wraps around, as the sum over the ranks does


def samples_text(digest: int) -> str:
    """How the history writes a digest of samples: 16 hexadecimal digits."""
    return f"{digest & (2**64 - 1):016x}"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON lines file; one that a crash cut short is left out."""
    rows: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                rows.append(row)
    return rows


def append_row(file: FileIO, row: Mapping[str, Any]) -> None:
    """Appends one line of JSON in a single write, on the disk when this returns, for a file to which several processes append.

    Args:
        file: opened with mode "a+b" and no buffer.
        row: of the line.

    Raises:
        OSError: it can't be written.
    """
    line = json.dumps(row).encode() + b"\n"
    if file.seek(0, os.SEEK_END):
        file.seek(-1, os.SEEK_END)
        line = line if file.read(1) == b"\n" else b"\n" + line  # a crash cut the last line short
    file.write(line)
    os.fsync(file.fileno())


def _end_last_line(path: Path) -> None:
    """So that what follows a line that a crash cut short starts on its own."""
    if path.exists() and path.stat().st_size:
        with open(path, "rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
