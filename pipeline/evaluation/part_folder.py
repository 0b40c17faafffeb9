"""The folder of an output's parts, and claims on the units whose part is not there.

Ranks need no word from each other: they share the folder. A rank claims a unit by a lock on a small file, which the kernel releases when
the rank ends, however it ends; then another rank takes the unit. Two ranks that compute a unit all the same, on a file system without
locks, write the same part.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipeline.evaluation.embedding.units import Unit
from shards.errors import ExplainedError
from shards.local_files import LEFT_BEHIND, try_lock, wait_for_lock, whole_file

_CLAIMS = "_claims"
_LOCK = "_lock"


class PartDamaged(ExplainedError):
    """A part file that can't be read, or lacks rows.

    Args:
        path: path of the part.
        reason: what is wrong with it.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path


def differences(found: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, str]:
    """Compares facts of a file with those of now: what differs in words, by the name of the fact; empty where all are equal."""
    return {name: f"{name} is {found.get(name)!r} there and {facts[name]!r} now" for name in facts if found.get(name) != facts[name]}


@dataclass(frozen=True)
class PartFormat:
    """The format of an output's parts.

    Attributes:
        suffix: end of the parts' names, such as `.parquet`.
        facts: name of the file that says what the parts are made from.
        check: looks into the part of a unit, given the facts that it has to be made from; raises PartDamaged for one that can't be read.
        refuse: compares the facts of a file with those of now, and raises an error where they differ.
        error: class of the errors about files that can't be written.
    """

    suffix: str
    facts: str
    check: Callable[[Path, Unit, Mapping[str, Any]], object]
    refuse: Callable[[Path, Mapping[str, Any], Mapping[str, Any]], None]
    error: type[ExplainedError]


class Claim:
    """A unit that this process computes, until `release`."""

    def __init__(self, unit: Unit, path: Path, handle: int) -> None:
        self.unit, self.handle, self._path = unit, handle, path

    def release(self, done: bool) -> None:
        """Lets go of the unit.

        Args:
            done: True where its part is there; the claim's file is then removed.
        """
        if done:
            self._path.unlink(missing_ok=True)
        os.close(self.handle)


class PartFolder:
    """Parts of an output.

    Args:
        folder: folder of the parts, which all ranks share.
        facts: all that the parts are made from.
        units: units of the output.
        kind: format of the parts.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], units: Sequence[Unit], kind: PartFormat) -> None:
        self.folder, self.facts, self.units, self._kind = folder, facts, units, kind

    def open(self) -> None:
        """Makes the folder, or checks that its parts are made from the same.

        Raises:
            ExplainedError: the parts are made from something else, or the file that says what they are made from is damaged.
            OSError: the folder can't be made.
        """
        (self.folder / _CLAIMS).mkdir(parents=True, exist_ok=True)
        path = self.folder / self._kind.facts
        with self.locked():
            if not path.exists() or len(self.missing()) == len(self.units):  # without parts there is nothing to mix
                with whole_file(path) as file:
                    file.write(json.dumps(self.facts, indent=1).encode())
            try:
                found = json.loads(path.read_bytes())
            except ValueError as error:
                raise self._kind.error(f"{path}: damaged. Remove {self.folder} to begin anew") from error
        self._kind.refuse(self.folder, found, self.facts)

    def part(self, unit: Unit) -> Path:
        """The path of a unit's part."""
        return self.folder / f"part-{unit.number:08d}{self._kind.suffix}"

    def remove_damaged(self, units: Iterable[Unit], warn: Callable[[str], None]) -> None:
        """Looks into parts that are there, and removes those that are damaged, so that they are made anew.

        Args:
            units: units whose parts are looked into.
            warn: called with a sentence for each damaged part.

        Raises:
            ExplainedError: a part is made from something else.
        """
        for unit in units:
            try:
                if self.part(unit).exists():
                    self._kind.check(self.part(unit), unit, self.facts)
            except PartDamaged as error:
                self.remove(error, warn)

    def remove(self, damage: PartDamaged, warn: Callable[[str], None]) -> None:
        """Removes a damaged part, and says so."""
        damage.path.unlink(missing_ok=True)
        warn(f"{damage}. It is made anew")

    def missing(self) -> list[Unit]:
        """Units whose part is not there; all of them once the folder is gone."""
        there: set[str] = set()
        with suppress(FileNotFoundError):
            there.update(path.name for path in self.folder.iterdir())
        return [unit for unit in self.units if self.part(unit).name not in there]

    def claim(self, unit: Unit) -> Claim | None:
        """Takes a unit for this process; None if its part is there, or another process computes it, or the folder is gone."""
        path = self.folder / _CLAIMS / str(unit.number)
        try:
            claim = Claim(unit, path, os.open(path, os.O_RDWR | os.O_CREAT, 0o666))
        except FileNotFoundError:
            return None
        free = _try_lock(claim.handle)
        if free and not self.part(unit).exists():
            return claim
        claim.release(done=free)
        return None

    @contextmanager
    def writing(self, unit: Unit) -> Iterator[IO[bytes]]:
        """Opens the part of a unit, which appears whole or not at all.

        Raises:
            ExplainedError: the part can't be written.
        """
        try:
            with whole_file(self.part(unit)) as file:
                yield file
        except OSError as error:
            reason = f"can't be written: {error.strerror or error}. The same command continues"
            raise self._kind.error(f"{self.part(unit)}: {reason}") from error

    @contextmanager
    def locked(self, wait: bool = True) -> Iterator[bool]:
        """Holds the folder's lock, which one process has at a time.

        Args:
            wait: whether to wait for the lock.

        Yields:
            Whether this process holds the lock.
        """
        handle = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if wait:
                with suppress(OSError):
                    wait_for_lock(handle)
            yield _try_lock(handle)
        finally:
            os.close(handle)

    def sweep(self) -> None:
        """Removes what only the work needed: claims, and files that a kill has cut short."""
        with suppress(OSError):
            for path in (self.folder / _CLAIMS).iterdir():
                path.unlink(missing_ok=True)
            (self.folder / _CLAIMS).rmdir()
            for path in self.folder.iterdir():
                if LEFT_BEHIND.fullmatch(path.name):
                    path.unlink(missing_ok=True)


def _try_lock(handle: int) -> bool:
    """Takes a lock without waiting. A file system without locks gives every process leave, since all write the same bytes."""
    try:
        return try_lock(handle)
    except OSError:
        return True
