"""The right of one run to write the checkpoints below a URL, so that two runs never write there at once.

`owner.json` names the run, by the random name that its folder keeps, and the attempt that writes. The same run may always
take over, whatever became of its last attempt; another run is refused. An attempt reads the record before every checkpoint
and stops where the record names another attempt: one that was cut off from its cluster and lives on beside its successor
does not write into the successor's checkpoints. No clocks are compared.
"""

from __future__ import annotations

import json
import os
import shlex
import time
import uuid
from pathlib import Path
from typing import Any

from pipeline.training.record.run_folder import RunFolderError, last_saved_step
from pipeline.training.record.traces import OWNER, RUN_NAME
from shards.errors import StoreError
from shards.local_files import whole_file
from shards.store import Store


class OwnershipLost(StoreError):
    """Another attempt or another run writes here now."""


class Ownership:
    """An attempt's right to write checkpoints.

    Args:
        store: store of the checkpoints.
        run: the run folder.
    """

    def __init__(self, store: Store, run: Path) -> None:
        self._store = store
        self._run = run.absolute()
        self._attempt = uuid.uuid4().hex

    def claim(self, empty: bool) -> None:
        """Takes over from the run's last attempt, or takes checkpoints that have no owner.

        Args:
            empty: whether the store holds no checkpoints.

        Raises:
            RunFolderError: another run owns the checkpoints, or those that this run saved are gone.
            StoreError: the store does not answer, or can't be written.
        """
        where = self._store.describe()
        saved = last_saved_step(self._run) if empty else None
        if saved is not None:
            raise RunFolderError(
                f"{where}: holds no checkpoint, but the run in {self._run} has saved step {saved} before. Is it the right place, is the "
                "disk mounted, the bucket complete? Bring the checkpoints back, or start anew with another --run"
            )
        name = self._own_name()
        owner = self._read()
        if owner is not None and not name and owner.get("run") == str(self._run):
            name = str(owner["name"])  # the run's folder was lost with its machine, and its checkpoints were not
        if owner is not None and owner.get("name") != name:
            raise RunFolderError(
                f"{where}: these are the checkpoints of the run in {owner.get('run')} on {owner.get('host')}, and two runs would overwrite "
                "each other's. Choose another --checkpoint.url. If that run is over and this one is to continue from its checkpoints, "
                f"release them first: python launch/checkpoints.py release {shlex.quote(where)}"
            )
        name = name or uuid.uuid4().hex
        record = {"name": name, "run": str(self._run), "host": os.uname().nodename, "attempt": self._attempt, "claimed_at": time.time()}
        self._store.write(OWNER, json.dumps(record, indent=1).encode() + b"\n")
        self._keep_name(name)
        self.check()

    def check(self) -> None:
        """Verifies that the record still names this attempt.

        Raises:
            OwnershipLost: the record is gone, or names another attempt.
            StoreError: the store does not answer.
        """
        owner = self._read()
        if owner is None:
            raise OwnershipLost(
                f"{self._store.describe(OWNER)}: is gone, so another run may have these checkpoints now. This run stops; the same command "
                "continues from its last checkpoint unless another run has taken them"
            )
        if owner.get("attempt") != self._attempt:
            raise OwnershipLost(
                f"{self._store.describe(OWNER)}: the run in {owner.get('run')} on {owner.get('host')} has taken over these checkpoints. "
                "This attempt stops without writing more. There is nothing to do if the other is a later attempt of the same run"
            )

    def _read(self) -> dict[str, Any] | None:
        data = self._store.whole(OWNER)
        if data is None:
            return None
        try:
            owner = json.loads(data)
            if isinstance(owner, dict) and {"name", "attempt"} <= owner.keys():
                return owner
        except ValueError:
            pass
        where = self._store.describe()
        raise RunFolderError(
            f"{self._store.describe(OWNER)}: can't be read, so the owner of these checkpoints is unknown. If no other run writes there: "
            f"python launch/checkpoints.py release {shlex.quote(where)}"
        )

    def _own_name(self) -> str:
        try:
            return (self._run / RUN_NAME).read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return ""
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{self._run / RUN_NAME}: can't be read ({error}). Restore it, or choose another --run") from error

    def _keep_name(self, name: str) -> None:
        if self._own_name() == name:
            return
        try:
            self._run.mkdir(parents=True, exist_ok=True)
            with whole_file(self._run / RUN_NAME, one_writer=True) as file:
                file.write(f"{name}\n".encode("ascii"))
        except OSError as error:
            raise RunFolderError(f"{self._run}: the run folder can't be written ({error.strerror}). Choose another with --run") from error


def release(store: Store) -> bool:
    """Removes the record, so that any run may have the checkpoints; a run that still writes there stops at its next save.

    Returns:
        False where the checkpoints had no owner.

    Raises:
        StoreError: the store does not answer.
    """
    if store.size(OWNER) is None:
        return False
    store.delete(OWNER)
    return True
