"""The checkpoints of a run: saved behind the next steps, retained by rule, and found again.

A save takes a snapshot and writes it behind the next steps. What it has written is read back before an older checkpoint
is deleted. The newest checkpoint whose files verify is resumed; a damaged one is reported and skipped, never deleted.
What a checkpoint looks like is in `checkpoint_files`, who may write one in `ownership`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.training.checkpoint.files import (
    COMMIT,
    FOLDER,
    Checkpoint,
    CheckpointInvalid,
    describe,
    folder_name,
    read,
    step_of,
    verify,
    write,
)
from pipeline.training.checkpoint.ownership import Ownership, OwnershipLost
from pipeline.training.checkpoint.snapshot import Snapshot, SnapshotMemory
from shards.errors import StoreError
from shards.store import Store
from shards.whole_file import LEFT_BEHIND

__all__ = [
    "COMMIT",
    "Checkpoint",
    "CheckpointInvalid",
    "CheckpointStore",
    "SaveReport",
    "describe",
    "folder_name",
    "read",
    "step_of",
    "verify",
    "write",
]
_FAILURES = 3  # saves in a row that may fail before the run stops


@dataclass
class SaveReport:
    """What the last save cost, filled in when it is done.

    Attributes:
        step: of the checkpoint.
        blocked_seconds: for which training stood still: the wait for the save before this one, the snapshot, and what a GPU waited for it.
        waited_seconds: of these, the wait for the save before. More than 0 says that checkpoints come faster than the store takes them.
        seconds: that writing took, beside the training.
        bytes: of all files.
        verified: every byte was read back from the store and was right.
        error: why it failed; None: the checkpoint exists.
        warning: what went wrong behind a save that did not fail.
        finished: when, in seconds since 1970.
    """

    step: int
    blocked_seconds: float = 0.0
    waited_seconds: float = 0.0
    seconds: float = 0.0
    bytes: int = 0
    verified: bool = False
    error: str | None = None
    warning: str | None = None
    finished: float = 0.0


class CheckpointStore:
    """The checkpoints of one run below a URL. Only rank 0 writes.

    Args:
        store: a folder or an object store.
        keep_last: newest that are kept.
        keep_every: steps whose checkpoints are kept for good; 0 keeps none.
        read_back: whether every byte of a new checkpoint is read from the store and compared before an older one is deleted.
        report: called in the writing thread after every save.
        before_commit: called in the writing thread right before a checkpoint begins to exist; if it raises, the save fails.
    """

    def __init__(
        self,
        store: Store,
        keep_last: int = 3,
        keep_every: int = 0,
        read_back: bool = True,
        report: Callable[[SaveReport], None] | None = None,
        before_commit: Callable[[], None] = lambda: None,
    ) -> None:
        self.store = store
        self.keep_last = keep_last
        self.keep_every = keep_every
        self.read_back = read_back
        self.report = report or (lambda _: None)
        self.before_commit = before_commit
        self._memory = SnapshotMemory()
        self._ownership: Ownership | None = None
        self._writer: threading.Thread | None = None
        self._failures: list[str] = []
        self._lost: OwnershipLost | None = None
        self._report_error: BaseException | None = None
        self._damaged: set[int] = set()

    def claim(self, run: Path) -> None:
        """Makes the run in a folder the one that writes here, and removes what its killed saves left. Called by rank 0, once, before it
        reads or writes.

        Raises:
            RunFolderError: another run writes here, or the checkpoints that this run saved are gone.
            StoreError: the store does not answer, or can't be written.
        """
        steps = self.steps()
        ownership = Ownership(self.store, run)
        ownership.claim(empty=not steps)
        self._ownership = ownership
        self.sweep()

    def steps(self) -> list[int]:
        """Steps of the checkpoints that were committed, oldest first; none of them is verified here."""
        return sorted(_committed(self._files()))

    def save(self, checkpoint: Checkpoint, began: float | None = None) -> None:
        """Snapshots the tensors and writes them behind the next steps; waits for the save before it.

        Args:
            checkpoint: its tensors may be changed once this returns.
            began: `time.monotonic()` when the training stopped for this save; now when None.

        Raises:
            StoreError: the last three saves failed, or somebody else writes here now.
        """
        began = time.monotonic() if began is None else began
        called = time.monotonic()
        self.wait()
        waited = time.monotonic() - called
        snapshot = self._memory.take(checkpoint.tensors)
        report = SaveReport(checkpoint.step, blocked_seconds=time.monotonic() - began, waited_seconds=waited)
        arguments = (checkpoint.step, dict(checkpoint.facts), snapshot, report)
        self._writer = threading.Thread(target=self._write, args=arguments, name=f"checkpoint-{checkpoint.step}")
        self._writer.start()

    def wait(self, must_succeed: bool = False) -> None:
        """Waits until the last save is on the store.

        Raises:
            StoreError: it failed and has to succeed, it was the third in a row to fail, or somebody else writes here.
        """
        self.close()
        if self._report_error is not None:
            error, self._report_error = self._report_error, None
            raise error
        if self._lost is not None:
            raise self._lost
        if len(self._failures) >= (1 if must_succeed else _FAILURES):
            raise StoreError(
                f"{self.store.describe()}: {len(self._failures)} checkpoints in a row could not be written, "
                f"the last: {self._failures[-1]}. When the store takes them again, the same command continues from the newest that is there"
            )

    def close(self) -> None:
        """Waits until nothing is being written, however that ends."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def _write(self, step: int, facts: dict[str, object], snapshot: Snapshot, report: SaveReport) -> None:
        began = time.monotonic()
        try:
            report.blocked_seconds += snapshot.wait()
            self._check_owner()
            report.bytes = write(self.store, Checkpoint(step, facts, snapshot.tensors), self._before_commit)
            report.seconds = time.monotonic() - began
            self._damaged.discard(step)
            report.warning = self._read_back(step, report) or self._tidy(step)
            self._failures.clear()
        except Exception as error:  # whatever a store raises must reach the run as a failed save, not end a thread unseen
            self._lost = error if isinstance(error, OwnershipLost) else None
            report.error = f"{type(error).__name__}: {error}"
            self._failures.append(report.error)
            report.seconds = time.monotonic() - began
        report.finished = time.time()
        try:
            self.report(report)
        except Exception as error:  # a run whose record can't be written must not go on: the next `wait` says so
            self._report_error = error

    def _read_back(self, step: int, report: SaveReport) -> str | None:
        """Reads what was just written. A store that does not answer is a warning: the checkpoint is there, and so are those before it.

        Raises:
            CheckpointInvalid: what the store holds is not what was written.
        """
        if not self.read_back:
            return None
        try:
            verify(self.store, step)
        except StoreError as error:
            return f"the checkpoint could not be read back, so older ones are kept until the next: {error}"
        except CheckpointInvalid as error:
            self._damaged.add(step)
            raise CheckpointInvalid(
                f"read back right after it was written: {error} It is left as it is, and older ones are kept."
            ) from error
        report.verified = True
        return None

    def _before_commit(self) -> None:
        self.before_commit()
        self._check_owner()

    def _check_owner(self) -> None:
        if self._ownership is not None:
            self._ownership.check()

    def _tidy(self, saved: int) -> str | None:
        """Retention behind the save of a step, and what an upload of a killed attempt brought since the sweep. What could not be deleted is
        a warning: the checkpoint is there. An attempt that was replaced meanwhile deletes nothing: all is its successor's by now."""
        try:
            self._check_owner()
            self.prune()
            if self._ownership is not None:
                files = self._files()
                folders = {int(found[1]) for found in map(FOLDER.match, files) if found}
                self._check_owner()
                for step in folders - _committed(files):
                    if step < saved:  # a successor that took over in this moment writes a later one
                        self.store.delete(folder_name(step))
        except OwnershipLost as error:
            self._lost = error
        except Exception as error:
            return f"older checkpoints could not be deleted: {error}"
        return None

    def prune(self) -> None:
        """Deletes what the rule does not keep."""
        for step in self.superfluous():
            self.store.delete(f"{folder_name(step)}/{COMMIT}")  # from here on it does not exist, whatever happens to the rest
            self.store.delete(folder_name(step))

    def superfluous(self) -> list[int]:
        """Steps that the rule does not keep. Damaged ones neither count among the last nor are named: a run that went back behind one must
        not lose what it went back to."""
        sound = [step for step in self.steps() if step not in self._damaged]
        return [step for step in sound[: -self.keep_last] if not self.keep_every or step % self.keep_every]

    def verify_newest(self, skipped: Callable[[str], None]) -> int:
        """Verifies from the newest on until as many are sound as the rule keeps; returns how many are.

        Args:
            skipped: told of each that is damaged.

        Raises:
            StoreError: the store did not answer.
        """
        sound = 0
        for step in reversed(self.steps()):
            if sound == self.keep_last:
                break
            try:
                verify(self.store, step)
                sound += 1
            except CheckpointInvalid as error:
                self._damaged.add(step)
                skipped(f"{error} It is left as it is.")
        return sound

    def sweep(self) -> None:
        """Removes what a killed save left: folders that were never committed, temporary files, uploads that were never completed. Called by
        the one writer, before it writes."""
        committed = {folder_name(step) for step in self.steps()}
        with suppress(StoreError):  # not every store knows this or allows it; one that does not answer at all says so right below
            self.store.abort_uploads(FOLDER.match)
        try:
            entries = self.store.entries()
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return  # a new run
            raise
        for entry in entries:
            name = str(entry["name"]).rstrip("/").rpartition("/")[2]
            if (FOLDER.fullmatch(f"{name}/") and name not in committed) or LEFT_BEHIND.fullmatch(name):
                self.store.delete(name)

    def newest(self, skipped: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint that verifies, None where none does.

        Args:
            skipped: told of each newer one that is damaged.

        Raises:
            StoreError: the store did not answer, which says nothing about the checkpoint: going back to an older one would lose steps.
        """
        for step in reversed(self.steps()):
            try:
                return read(self.store, step)
            except CheckpointInvalid as error:
                self._damaged.add(step)
                skipped(f"{error} It is skipped and left as it is.")
        return None

    def _files(self) -> list[str]:
        return [name for name, _ in self.store.list(strict=True)]


def _committed(files: list[str]) -> set[int]:
    found = (FOLDER.match(name) for name in files if name.endswith(f"/{COMMIT}"))
    return {int(each[1]) for each in found if each}
