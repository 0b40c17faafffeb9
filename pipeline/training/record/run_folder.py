"""The folder that a run writes: settings, events, the history of every step, pictures, the quarantine list.

`events.jsonl` has one line for each start, checkpoint and end of an attempt: which ranks trained which steps from which position.
`history.jsonl` has one line a step, `evaluation.jsonl` one an evaluation; a figure that is not finite is null in them. All three are only
ever appended to; where attempts overlap, the later line of a step counts. Names and format of the files are in `monitoring.run_files`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import IO, Any

import yaml

from monitoring.run_files import (
    CHECKPOINTS,
    EVALUATION,
    EVENTS,
    HISTORY,
    PICTURES,
    QUARANTINE,
    SETTINGS,
    TARGETS,
    Lines,
    json_text,
    last_saved_step,
    read_lines,
    step_name,
)
from pipeline.mapping import expanded
from pipeline.training.record.traces import LOCK, make_folder, remove_traces
from shards.errors import ExplainedError
from shards.local_files import file_system, try_lock, whole_file
from shards.store import Options, Store

__all__ = ["Lines", "RunFolder", "RunFolderError", "absolute", "append_row", "checkpoint_store", "last_saved_step", "read_lines"]
_EXITING_SECONDS = 60.0  # how long a rank that the launcher killed may go on holding the lock
_LOST_SECONDS = 900.0  # how long a node that SLURM gave up may live on: until its watchdog fires


class RunFolderError(ExplainedError):
    """The run folder can't be used; the message says why and what to do."""


class RunFolder:
    """One run's folder. Rank 0 holds it, so that two runs never write into one.

    Args:
        path: path of the folder; made when missing.
        writes: whether this process is the one that writes (rank 0).

    Raises:
        RunFolderError: the folder is not writable, or another run holds it.
    """

    def __init__(self, path: Path, writes: bool) -> None:
        self.path = path
        self.writes = writes
        self._lock: IO[str] | None = None
        self._made: list[Path] = []
        self._files: dict[str, IO[bytes]] = {}
        self._writing = threading.Lock()  # because the thread that writes a checkpoint also reports it
        if writes:
            self._hold(path)

    def _hold(self, path: Path) -> None:
        """Makes the folder and takes its lock."""
        try:
            self._made = make_folder(path)
            self._lock = open(path / LOCK, "w")  # noqa: SIM115 (held until close)
        except OSError as error:
            raise RunFolderError(f"{path}: the run folder can't be written ({error.strerror}). Choose another with --run") from error
        try:
            locked = _lock_within(self._lock, _patience())
        except OSError as error:
            self._lock.close()
            raise RunFolderError(
                f"{path / '.lock'}: can't be locked ({error.strerror}), and without a lock two runs could write here. The "
                f"{file_system(path)} has no locks: choose another with --run, or have it mounted with them (Lustre: -o flock; NFS: with "
                "lockd)"
            ) from error
        if not locked:
            self._lock.close()
            raise RunFolderError(f"{path}: another run is writing here. Wait for its end, or choose another folder with --run")
        if os.fstat(self._lock.fileno()).st_nlink == 0:  # its last holder was refused and has removed it
            self._lock.close()
            self._hold(path)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints, unless `checkpoint.url` names another place."""
        return self.path / CHECKPOINTS

    @property
    def quarantine(self) -> Path:
        """File with the list of unreadable samples."""
        return self.path / QUARANTINE

    @property
    def targets(self) -> Path:
        """Folder of the target files, by which Prometheus finds the endpoints of the ranks."""
        return self.path / TARGETS

    def picture(self, step: int) -> Path:
        """File with the PNG grid of a step."""
        return self.path / PICTURES / f"{step_name(step)}.png"

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Keeps the settings of the newest attempt as `config.yaml`."""
        if self.writes:
            with whole_file(self.path / SETTINGS, durable=False, one_writer=True) as file:
                file.write(yaml.safe_dump(dict(config), sort_keys=False).encode())

    def event(self, kind: str, **facts: Any) -> None:
        """Appends one line to `events.jsonl`; the line is on the disk when this returns.

        Raises:
            RunFolderError: the disk does not take the line.
        """
        if self.writes:
            self._append(EVENTS, [{"time": time.time(), "event": kind, **facts}], durable=True)

    def history(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends lines to `history.jsonl`.

        Raises:
            RunFolderError: the disk does not take them. The run must end then, because nothing else proves what it trained on.
        """
        if self.writes:
            self._append(HISTORY, rows, durable=False)

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """Appends one line to `evaluation.jsonl`; the line is on the disk when this returns.

        Raises:
            RunFolderError: the disk does not take the line.
        """
        if self.writes:
            self._append(EVALUATION, [row], durable=True)

    def sync(self) -> None:
        """Waits until the lines of the history are on the disk. Called before every commit, because the steps in a checkpoint are never
        taken again."""
        with self._writing, self._reported(HISTORY):
            if file := self._files.get(HISTORY):
                os.fsync(file.fileno())

    def attempts(self) -> int:
        """Number of attempts that were started before."""
        return sum(row.get("event") == "start" for row in Lines(self.path / EVENTS))

    def close(self) -> None:
        """Closes the files and releases the lock. A folder in which no run has begun is left as it was found."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        if self._lock is not None and not self._lock.closed:
            remove_traces(self.path, self._made)
            self._lock.close()

    def _append(self, name: str, rows: Iterable[Mapping[str, Any]], durable: bool) -> None:
        data = b"".join(json_text(row).encode() + b"\n" for row in rows)
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


def _patience() -> float:
    """Seconds to wait for the lock of the folder: 0 for a first start; 60 after a launcher restart, because the killed rank may still be
    exiting; 15 minutes after a SLURM requeue, because the old node may be alive until its watchdog fires."""
    restarts = {"TORCHELASTIC_RESTART_COUNT": _EXITING_SECONDS, "SLURM_RESTART_COUNT": _LOST_SECONDS}
    return max((seconds for name, seconds in restarts.items() if os.environ.get(name, "0") != "0"), default=0.0)


def _lock_within(file: IO[str], seconds: float) -> bool:
    """Takes the lock of a file; returns False where another process holds the lock for all that time."""
    end = time.monotonic() + seconds
    while not try_lock(file.fileno()):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def absolute(run: str) -> Path:
    """The absolute path of a run folder without `.` and `..`, so that its last part names the run however it was typed. A link keeps its
    own name."""
    path = Path(run).absolute()
    return path.resolve() if ".." in path.parts else path


def checkpoint_store(run: str, options: Options | None = None) -> Store:
    """Opens the store of a run's checkpoints.

    Args:
        run: the run folder, or the folder or URL of the checkpoints themselves.
        options: options of the store, as in fsspec.

    Raises:
        RunFolderError: the settings that the run keeps can't be read.
    """
    inside, settings = Path(run) / CHECKPOINTS, Path(run) / SETTINGS
    if "://" not in run and settings.is_file():
        try:
            url = expanded(yaml.safe_load(settings.read_text(encoding="utf-8"))["checkpoint"]["url"], "checkpoint.url")
        except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:
            text = " ".join(str(error).split())
            raise RunFolderError(f"{settings}: not the settings of a run ({text}). Name the folder or URL of its checkpoints") from error
        if url:
            return Store(url, options)
    return Store(str(inside) if inside.is_dir() else run, options)


def append_row(file: FileIO, row: Mapping[str, Any]) -> None:
    """Appends one line of JSON in a single write, for a file to which several processes append; the line is on the disk when this returns.

    Args:
        file: file that was opened with mode "a+b" and no buffer.
        row: content of the line.

    Raises:
        OSError: the line can't be written.
    """
    line = json_text(row).encode() + b"\n"
    if file.seek(0, os.SEEK_END):
        file.seek(-1, os.SEEK_END)
        line = line if file.read(1) == b"\n" else b"\n" + line  # a crash cut the last line short
    file.write(line)
    os.fsync(file.fileno())


def _end_last_line(path: Path) -> None:
    """Ends a last line that a crash cut short, so that the next one does not continue it."""
    if path.exists() and path.stat().st_size:
        with open(path, "rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
