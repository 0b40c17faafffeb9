"""The committed checkpoints of a store: which there are, which of them stay, and what killed saves left among them.

A checkpoint that is known to be damaged is never deleted and never counts among those that stay: a run that went back
behind it must not lose what it went back to.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from pipeline.training.checkpoint.files import COMMIT, FOLDER, CheckpointInvalid, folder_name, verify
from shards.errors import StoreError
from shards.local_files import LEFT_BEHIND
from shards.store import Store


class Retention:
    """The rule by which checkpoints of a store stay or are deleted.

    Args:
        store: folder or object store of the checkpoints.
        keep_last: number of newest sound checkpoints that stay.
        keep_every: a checkpoint whose step this divides stays for good; 0 keeps none.

    Attributes:
        damaged: steps of the checkpoints that are known to be damaged.
    """

    def __init__(self, store: Store, keep_last: int = 3, keep_every: int = 0) -> None:
        self.store, self.keep_last, self.keep_every = store, keep_last, keep_every
        self.damaged: set[int] = set()

    def steps(self) -> list[int]:
        """Steps of the checkpoints that were committed, oldest first; none of them is verified here."""
        return sorted(_committed(self._files()))

    def superfluous(self) -> list[int]:
        """Steps of the checkpoints that the rule does not keep, oldest first."""
        sound = [step for step in self.steps() if step not in self.damaged]
        return [step for step in sound[: -self.keep_last] if not self.keep_every or step % self.keep_every]

    def prune(self) -> None:
        """Deletes the checkpoints that the rule does not keep."""
        for step in self.superfluous():
            self.store.delete(f"{folder_name(step)}/{COMMIT}")  # from here on it does not exist, whatever happens to the rest
            self.store.delete(folder_name(step))

    def verify_newest(self, warn: Callable[[str], None]) -> int:
        """Verifies from the newest on until as many are sound as the rule keeps; returns how many are.

        Args:
            warn: called with a sentence for each damaged checkpoint.

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
                self.damaged.add(step)
                warn(f"{error} It is left as it is.")
        return sound

    def sweep(self) -> None:
        """Deletes the remains of killed saves: folders that were never committed, temporary files, uploads that were never completed.
        Called by the one writer, before it writes.

        Raises:
            StoreError: the store did not answer.
        """
        committed = {folder_name(step) for step in self.steps()}
        with suppress(StoreError):  # not every store supports or allows it; one that does not answer at all raises right below
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

    def delete_uncommitted(self, below: int, check: Callable[[], None]) -> None:
        """Deletes folders of lower steps that were never committed: files that an upload of a killed attempt brought after `sweep`.

        Args:
            below: step that bounds the folders, because a successor that takes over in this moment writes a later one.
            check: called between listing and deleting; nothing is deleted where it raises.

        Raises:
            StoreError: the store did not answer, or does not delete.
        """
        files = self._files()
        folders = {int(match[1]) for match in map(FOLDER.match, files) if match}
        check()
        for step in folders - _committed(files):
            if step < below:
                self.store.delete(folder_name(step))

    def _files(self) -> list[str]:
        return [name for name, _ in self.store.list(strict=True)]


def _committed(files: list[str]) -> set[int]:
    matches = (FOLDER.match(name) for name in files if name.endswith(f"/{COMMIT}"))
    return {int(match[1]) for match in matches if match}
