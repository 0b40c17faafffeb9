"""The samples that could not be used: each named once, in a list that a person can act on, and bounded."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

from pipeline.stream.counters import Counters
from pipeline.stream.samples import BadSample
from shards.errors import ShardError


class QuarantineFull(ShardError):
    """More samples are unreadable than `data.max_bad_fraction` allows. Names them and where the list is."""


class Quarantine:
    """Bad samples of a data set as one rank met them.

    Args:
        path: JSON lines (sample_id, name, shard, cause, reason), appended to by every rank; None keeps the list in memory.
        total_samples: of the data set.
        max_bad_fraction: of it that may be bad.
        counters: gets bad_samples_digest, bad_samples_undecodable.
    """

    def __init__(self, path: Path | None, total_samples: int, max_bad_fraction: float, counters: Counters) -> None:
        self.path = path
        self.limit = max_bad_fraction * total_samples
        self.total_samples = total_samples
        self.max_bad_fraction = max_bad_fraction
        self._counters = counters
        self._lock = threading.Lock()
        self._found: dict[int, BadSample] = {}
        self._named = set(_named(path)) if path is not None else set()

    def find(self, sample_id: int) -> BadSample | None:
        """Why a sample is here, None when it is not."""
        return self._found.get(sample_id)

    def __len__(self) -> int:
        return len(self._found)

    def add(self, error: BadSample) -> None:
        """Counts and names a sample, once.

        Raises:
            QuarantineFull: it is one too many.
        """
        with self._lock:
            if error.sample_id in self._found:
                return
            self._found[error.sample_id] = error
            self._counters.add(**{f"bad_samples_{error.cause}": 1})
            if self.path is not None and error.sample_id not in self._named:
                self._append(self.path, error)
            if len(self._found) > self.limit:
                raise QuarantineFull(self._message())

    def _append(self, path: Path, error: BadSample) -> None:
        row = {"sample_id": error.sample_id, "name": error.name, "shard": error.shard, "cause": error.cause, "reason": error.reason}
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, json.dumps(row).encode() + b"\n")  # one write, so that ranks don't mix their lines
        finally:
            os.close(handle)

    def _message(self) -> str:
        first = "; ".join(str(error) for error in list(self._found.values())[:5])
        where = f" The whole list is in {self.path}." if self.path is not None else ""
        return (
            f"{len(self._found)} of {self.total_samples} samples are unreadable, "
            f"data.max_bad_fraction allows {self.max_bad_fraction:g} of them: {first}.{where} "
            "Run python -m shards verify on the data set and build it again, or allow more"
        )


def _named(path: Path) -> list[int]:
    if not path.exists():
        return []
    rows = path.read_text(encoding="utf-8", errors="replace").splitlines()
    found = []
    for row in rows:
        try:
            found.append(int(json.loads(row)["sample_id"]))
        except (ValueError, KeyError, TypeError):
            continue  # a line cut by a crash; the sample is named again when it is met
    return found
