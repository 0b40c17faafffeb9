"""Folders that data sets grow in: the lock of one process, the traces of unfinished work, and the list of what was left out."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from shards.errors import ManifestMismatch, ShardError, StoreError
from shards.local_files import LEFT_BEHIND, TEMPORARY_PREFIX, try_lock
from shards.store import Store

FOLDER = "_build"
"""Folder of the records in the destination while a data set is unfinished."""
REJECTED = "rejected.jsonl"
"""List of the pictures or samples that were left out, one JSON object per line."""
_SCRATCH_PREFIX = "context-encoder-shards-"


@contextmanager
def scratch_folder(destination: Store) -> Iterator[str]:
    """Locks the destination and gives a local folder for growing shards: a local destination itself, else a temporary folder.

    A destination on a store can't be locked, but two equal builds into it write equal bytes.

    Raises:
        ShardError: another build is writing there.
        StoreError: the folder can't be made.
    """
    with ExitStack() as stack:
        if destination.local is not None:
            destination.make_folder()
            if not _lock(stack, destination.local):
                raise ShardError(f"{destination.describe()}: another build is writing there. Wait for it, or stop it, then run this again")
            stack.callback(sweep, destination.local)
            sweep(destination.local)
            yield str(destination.local)
            return
        for left in Path(tempfile.gettempdir()).glob(f"{_SCRATCH_PREFIX}*"):
            with ExitStack() as inner, suppress(OSError):
                if left.stat().st_uid == os.getuid() and _lock(inner, left):  # left by a killed build, since a live one would hold the lock
                    sweep(left)
                    left.rmdir()
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=_SCRATCH_PREFIX))
        _lock(stack, Path(folder))
        yield folder


def _lock(stack: ExitStack, folder: Path) -> bool:
    handle = os.open(folder, os.O_RDONLY)
    stack.callback(os.close, handle)
    try:
        return try_lock(handle)
    except OSError:
        return True  # some network file systems can't lock folders: equal builds still write equal bytes


def prove_deletable(destination: Store) -> None:
    """Deletes an object of unfinished work that does not exist, because a key that may not delete should fail before the work.

    Raises:
        StoreError: the store does not delete.
    """
    if destination.local is not None:
        return
    try:
        destination.remove([f"{FOLDER}/none"])
    except StoreError as error:
        if not isinstance(error.__cause__, PermissionError):
            raise
        raise StoreError(f"{error}. A data set is made here, for which the key has to read, list, write and delete") from error


def sweep(folder: Path) -> None:
    """Removes the half-written files of a process that was killed, and no file of another program."""
    for partial in folder.glob(f"{TEMPORARY_PREFIX}*"):
        if LEFT_BEHIND.fullmatch(partial.name):
            partial.unlink(missing_ok=True)


def read_rejected(store: Store) -> list[tuple[str, str]]:
    """Reads (name, reason) of the pictures that the build of a data set left out.

    Raises:
        ManifestMismatch: the list is damaged.
        StoreError: the list is missing, or can't be read.
    """
    try:
        rows = [json.loads(line) for line in store.read(REJECTED).splitlines()]
        return [(str(row["source"]), str(row["reason"])) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestMismatch(f"{store.describe(REJECTED)}: damaged ({error})") from error
