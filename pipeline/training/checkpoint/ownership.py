"""Which run writes the checkpoints below a URL, so that two never write there at once.

`owner.json` names the run, by the random name that its folder keeps, and the attempt of it that writes. The same run
may always take over, whatever became of its last attempt; another run is refused. An attempt looks before every
checkpoint whether the record is still its own: one that was cut off from its cluster and lives on beside its
successor stops instead of writing into the successor's checkpoints. No clock is compared.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

from pipeline.training.record.run_folder import RunFolderError, recorded_checkpoint
from shards.errors import StoreError
from shards.store import Store

OWNER = "owner.json"
_RUN_NAME = ".run-name"


class OwnershipLost(StoreError):
    """Another attempt or another run writes here now."""


class Ownership:
    """An attempt's right to write checkpoints.

    Args:
        store: of the checkpoints.
        run: the run folder.
    """

    def __init__(self, store: Store, run: Path) -> None:
        self._store = store
        self._run = run.absolute()
        self._attempt = uuid.uuid4().hex

    def claim(self, empty: bool) -> None:
        """Takes over from the run's last attempt, or takes what nobody has.

        Args:
            empty: there are no checkpoints.

        Raises:
            RunFolderError: another run has it, or the run's own checkpoints are not there any more.
            StoreError: the store does not answer, or can't be written.
        """
        where = self._store.describe()
        saved = recorded_checkpoint(self._run) if empty else None
        if saved is not None:
            raise RunFolderError(
                f"{where}: holds no checkpoint, but the run in {self._run} has saved step {saved} before. Is it the right place, is the "
                "disk mounted, the bucket complete? Bring the checkpoints back, or start anew with another --run"
            )
        own = self._own_name()
        owner = self._read()
        if owner is not None and not own and owner.get("run") == str(self._run):
            own = str(owner["name"])  # the run's folder was lost, with the machine that it was on, and its checkpoints were not
        if owner is not None and owner.get("name") != own:
            raise RunFolderError(
                f"{where}: these are the checkpoints of the run in {owner.get('run')} on {owner.get('host')}, and two runs would overwrite "
                "each other's. Choose another --checkpoint.url. If that run is over and this one is to go on from its checkpoints, free "
                f"them first: python launch/checkpoints.py release {where}"
            )
        own = own or uuid.uuid4().hex
        record = {"name": own, "run": str(self._run), "host": os.uname().nodename, "attempt": self._attempt, "claimed_at": time.time()}
        self._store.write(OWNER, json.dumps(record, indent=1).encode() + b"\n")
        self._keep_name(own)
        self.check()

    def check(self) -> None:
        """Looks whether the record is still this attempt's.

        Raises:
            OwnershipLost: it is not.
            StoreError: the store does not answer.
        """
        owner = self._read()
        if owner is None:
            raise OwnershipLost(
                f"{self._store.describe(OWNER)}: is gone, so that another run may have these checkpoints now. This one stops; the same "
                "command goes on from its last checkpoint unless another run has taken them"
            )
        if owner.get("attempt") != self._attempt:
            raise OwnershipLost(
                f"{self._store.describe(OWNER)}: the run in {owner.get('run')} on {owner.get('host')} has taken over these checkpoints. "
                "This one stops without writing more: nothing needs to be done where that is a later attempt of the same run"
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
            f"{self._store.describe(OWNER)}: can't be read, so nobody can say whose checkpoints these are. If no other run writes there: "
            f"python launch/checkpoints.py release {where}"
        )

    def _own_name(self) -> str:
        try:
            return (self._run / _RUN_NAME).read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return ""
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{self._run / _RUN_NAME}: can't be read ({error}). Restore it, or choose another --run") from error

    def _keep_name(self, name: str) -> None:
        if self._own_name() == name:
            return
        partial = self._run / f"{_RUN_NAME}.partial"
        try:
            self._run.mkdir(parents=True, exist_ok=True)
            with open(partial, "w", encoding="ascii") as file:
                file.write(name + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self._run / _RUN_NAME)
        except OSError as error:
            raise RunFolderError(f"{self._run}: the run folder can't be written ({error.strerror}). Choose another with --run") from error


def release(store: Store) -> bool:
    """Lets any run have the checkpoints; one that still writes there stops at its next. False where nobody had them.

    Raises:
        StoreError: the store does not answer.
    """
    if store.size(OWNER) is None:
        return False
    store.delete(OWNER)
    return True
