"""The checkpoints of a run: saved while the next steps are taken, read back, and found again.

A save takes a snapshot, and a thread writes it while the next steps are taken. Every byte is read back before an older
checkpoint is deleted. The newest checkpoint that verifies is resumed; a damaged one is reported and skipped, never deleted.
`files` has the format of a checkpoint, `ownership` the right to write one, `retention` the rule by which they stay.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.training.checkpoint.files import (
    COMMIT,
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
from pipeline.training.checkpoint.retention import Retention
from pipeline.training.checkpoint.snapshot import Snapshot, SnapshotMemory
from shards.counting import counted
from shards.errors import StoreError
from shards.store import Store

__all__ = [
    "COMMIT",
    "Checkpoint",
    "CheckpointInvalid",
    "CheckpointStore",
    "SaveOutcome",
    "describe",
    "folder_name",
    "read",
    "step_of",
    "verify",
    "write",
]
_FAILURES = 3  # saves in a row that may fail before the run stops


@dataclass
class SaveOutcome:
    """The result and the cost of one save, filled in while the save goes on.

    Attributes:
        step: step of the checkpoint.
        blocked_seconds: time that training stood still: waiting for the save before, gathering the state, taking the snapshot, and waiting
            for the snapshot on a GPU.
        waited_seconds: part of `blocked_seconds` that was the wait for the save before. Above 0, checkpoints come faster than the store
            takes them.
        seconds: time that writing took, beside the training.
        bytes: size of all files.
        verified: whether every byte was read back from the store and was right.
        error: reason of the failure; None where the checkpoint exists.
        warning: problem after the checkpoint was committed, which is no failure of the save.
        finished: time of the end, in seconds since 1970.
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
        store: folder or object store of the checkpoints.
        keep_last: number of newest sound checkpoints that stay.
        keep_every: a checkpoint whose step this divides stays for good; 0 keeps none.
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
        report: Callable[[SaveOutcome], None] | None = None,
        before_commit: Callable[[], None] = lambda: None,
    ) -> None:
        self.store = store
        self.retention = Retention(store, keep_last, keep_every)
        self.read_back = read_back
        self.report = report or (lambda _: None)
        self.before_commit = before_commit
        self._memory = SnapshotMemory()
        self._ownership: Ownership | None = None
        self._writer: threading.Thread | None = None
        self._failures: list[str] = []
        self._lost: OwnershipLost | None = None
        self._report_error: BaseException | None = None

    def claim(self, run: Path) -> None:
        """Makes the run the one that writes here, and deletes the remains of its killed saves. Called by rank 0, once, before it reads or
        writes.

        Args:
            run: the run folder.

        Raises:
            RunFolderError: another run writes here, or the checkpoints that this run saved are gone.
            StoreError: the store does not answer, or can't be written.
        """
        steps = self.steps()
        ownership = Ownership(self.store, run)
        ownership.claim(empty=not steps)
        self._ownership = ownership
        self.retention.sweep()

    def steps(self) -> list[int]:
        """Steps of the checkpoints that were committed, oldest first; none of them is verified here."""
        return self.retention.steps()

    def save(self, checkpoint: Checkpoint, began: float | None = None) -> None:
        """Takes a snapshot of the tensors and starts to write it; waits for the save before.

        Args:
            checkpoint: the checkpoint; its tensors may be changed once this returns.
            began: `time.monotonic()` of the moment when the training stopped for this save; now when None.

        Raises:
            StoreError: the last three saves failed, or another run or attempt writes here now.
        """
        began = time.monotonic() if began is None else began
        called = time.monotonic()
        self.wait()
        waited = time.monotonic() - called
        snapshot = self._memory.snapshot(checkpoint.tensors)
        outcome = SaveOutcome(checkpoint.step, blocked_seconds=time.monotonic() - began, waited_seconds=waited)
        arguments = (checkpoint.step, dict(checkpoint.facts), snapshot, outcome)
        self._writer = threading.Thread(target=self._write, args=arguments, name=f"checkpoint-{checkpoint.step}")
        self._writer.start()

    def wait(self, must_succeed: bool = False) -> None:
        """Waits until the last save is on the store.

        Args:
            must_succeed: whether a single failed save is an error; else the third in a row is.

        Raises:
            StoreError: too many saves failed, or another run or attempt writes here now.
        """
        self.close()
        if self._report_error is not None:
            error, self._report_error = self._report_error, None
            raise error
        if self._lost is not None:
            raise self._lost
        if len(self._failures) >= (1 if must_succeed else _FAILURES):
            raise StoreError(
                f"{self.store.describe()}: {counted(len(self._failures), 'checkpoint')} in a row could not be written, "
                f"the last: {self._failures[-1]}. Once the store takes them again, the same command continues from the newest that is there"
            )

    def close(self) -> None:
        """Waits for the end of the save that is being written, whether it succeeds or fails."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def _write(self, step: int, facts: dict[str, object], snapshot: Snapshot, outcome: SaveOutcome) -> None:
        began = time.monotonic()
        try:
            outcome.blocked_seconds += snapshot.wait()
            self._check_owner()
            outcome.bytes = write(self.store, Checkpoint(step, facts, snapshot.tensors), self._before_commit)
            outcome.seconds = time.monotonic() - began
            self.retention.damaged.discard(step)
            outcome.warning = self._read_back(outcome) or self._retire(step)
            self._failures.clear()
        except Exception as error:  # any error of a store must reach the run as a failed save, not end a thread unseen
            self._lost = error if isinstance(error, OwnershipLost) else None
            outcome.error = f"{type(error).__name__}: {error}"
            self._failures.append(outcome.error)
            outcome.seconds = time.monotonic() - began
        outcome.finished = time.time()
        try:
            self.report(outcome)
        except Exception as error:  # a run whose record can't be written must not go on: the next `wait` raises this
            self._report_error = error

    def _read_back(self, outcome: SaveOutcome) -> str | None:
        """Reads the new checkpoint. A store that does not answer is a warning, because the checkpoint exists and so do those before it.

        Raises:
            CheckpointInvalid: the store holds other bytes than were written.
        """
        if not self.read_back:
            return None
        try:
            verify(self.store, outcome.step)
        except StoreError as error:
            return f"the checkpoint could not be read back, so older ones are kept until the next: {error}"
        except CheckpointInvalid as error:
            self.retention.damaged.add(outcome.step)
            raise CheckpointInvalid(
                f"read back right after it was written: {error} It is left as it is, and older ones are kept."
            ) from error
        outcome.verified = True
        return None

    def _before_commit(self) -> None:
        self.before_commit()
        self._check_owner()

    def _check_owner(self) -> None:
        if self._ownership is not None:
            self._ownership.check()

    def _retire(self, saved: int) -> str | None:
        """Deletes older checkpoints by the rule after the save of a step, and files that an upload of a killed attempt brought since the
        sweep. A failure to delete is a warning, because the new checkpoint exists. An attempt that was replaced meanwhile deletes nothing,
        because everything belongs to its successor."""
        try:
            self._check_owner()
            self.retention.prune()
            if self._ownership is not None:
                self.retention.delete_uncommitted(saved, self._check_owner)
        except OwnershipLost as error:
            self._lost = error
        except Exception as error:
            return f"older checkpoints could not be deleted: {error}"
        return None

    def newest(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """Reads the newest checkpoint that verifies; None where none does.

        Args:
            warn: called with a sentence for each newer checkpoint that is damaged.

        Raises:
            StoreError: the store did not answer. That is no damage: going back to an older checkpoint would lose steps.
        """
        for step in reversed(self.steps()):
            try:
                return read(self.store, step)
            except CheckpointInvalid as error:
                self.retention.damaged.add(step)
                warn(f"{error} It is skipped and left as it is.")
        return None
