"""The list of samples that could not be used: each named once, for a person to act on, and not more than allowed."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO

from pipeline.stream.counters import Counters
from pipeline.stream.read.samples import BadSample
from shards.counting import counted
from shards.errors import ShardError
from shards.local_files import wait_for_lock


class QuarantineFull(ShardError):
    """More samples are unreadable than `data.max_bad_fraction` allows. The message names the first ones and the file of all."""


class Quarantine:
    """Bad samples of a stream, over every rank and every attempt that write the same list.

    Args:
        path: JSON lines (sample_id, name, shard, cause, reason), shared by all ranks; None keeps the list in memory.
        total_samples: samples of the stream.
        max_bad_fraction: largest fraction of the samples that may be unreadable.
        counters: gets bad_samples_digest, bad_samples_undecodable.
    """

    def __init__(self, path: Path | None, total_samples: int, max_bad_fraction: float, counters: Counters) -> None:
        self.path = path
        self.limit = max_bad_fraction * total_samples
        self.total_samples = total_samples
        self.max_bad_fraction = max_bad_fraction
        self._counters = counters
        self._lock = threading.Lock()
        self._found: dict[int, tuple[int, str, str, str, str]] = {}  # plain facts, because a kept exception would keep its batch in memory
        self._named: set[int] = set()
        self._read = 0
        if path is not None and path.exists():
            with open(path, "rb") as file:
                self._catch_up(file)

    def find(self, sample_id: int) -> BadSample | None:
        """The error that this rank quarantined a sample with, or None."""
        facts = self._found.get(sample_id)
        return BadSample(*facts) if facts is not None else None

    def __len__(self) -> int:
        return len(self._named)

    def add(self, error: BadSample) -> None:
        """Counts and names a sample, once over all ranks.

        Raises:
            QuarantineFull: the sample is one more than allowed.
        """
        with self._lock:
            if error.sample_id in self._found:
                return
            self._found[error.sample_id] = (error.sample_id, error.name, error.shard, error.cause, error.reason)
            self._counters.add(**{f"bad_samples_{error.cause}": 1})
            if self.path is None:
                self._named.add(error.sample_id)
            else:
                self._append(self.path, error)
            if len(self._named) > self.limit:
                raise QuarantineFull(self._message())

    def _append(self, path: Path, error: BadSample) -> None:
        """Reads the lines that other ranks added meanwhile, then adds one, under a lock."""
        row = {"sample_id": error.sample_id, "name": error.name, "shard": error.shard, "cause": error.cause, "reason": error.reason}
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b") as file:
            with suppress(OSError):  # where the file system has no locks, two ranks at the same moment may both name a sample
                wait_for_lock(file.fileno())
            self._catch_up(file)
            if error.sample_id not in self._named:
                file.write(json.dumps(row).encode() + b"\n")
                file.flush()
                self._catch_up(file)

    def _catch_up(self, file: IO[bytes]) -> None:
        """Takes in the lines that were added since the last read; a line that a crash cut short is ended and left out."""
        file.seek(self._read)
        data = file.read()
        if data and not data.endswith(b"\n"):
            if file.writable():
                file.write(b"\n")
                data += b"\n"
            else:
                data = data[: data.rfind(b"\n") + 1]
        self._read += len(data)
        for line in data.splitlines():
            with suppress(ValueError, KeyError, TypeError):
                self._named.add(int(json.loads(line)["sample_id"]))

    def _message(self) -> str:
        first = "; ".join(str(BadSample(*facts)) for facts in list(self._found.values())[:5])
        where = f" The whole list is in {self.path}." if self.path is not None else ""
        return (
            f"{len(self._named)} of {counted(self.total_samples, 'sample is', 'samples are')} unreadable, "
            f"data.max_bad_fraction allows {self.max_bad_fraction:g} of them: {first}.{where} "
            "Run python -m shards verify on the data set and build it again, or allow more"
        )
