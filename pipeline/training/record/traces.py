"""Removes what a start leaves in a run folder that is refused before it has recorded anything: the lock, empty folders, an owner's name.

A data set that is misspelt is found out late, when the folder exists already. Nothing that holds data is removed: files of stacks only if
they are empty, folders only if they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from monitoring.run_files import CHECKPOINTS, EVENTS, PICTURES, STACKS, TARGETS

LOCK, RUN_NAME, OWNER = ".lock", ".run-name", "owner.json"
"""Names of files of a run folder: its lock, and the name by which it owns its checkpoints; and of the owner's record beside these."""


def make_folder(path: Path) -> list[Path]:
    """Makes a folder; returns the folders that were missing, the innermost first.

    Raises:
        OSError: the folder can't be made.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    return missing


def remove_traces(run: Path, made: Sequence[Path]) -> None:
    """Removes what this start has made in a run folder, if the run has recorded nothing. Called while the lock is held.

    Args:
        run: the run folder.
        made: folders that this start has made, the innermost first.
    """
    if (run / EVENTS).exists():
        return
    with suppress(OSError):  # no reason to hide why the run was refused
        for path in (run / STACKS).glob("*.txt"):
            if path.stat().st_size == 0:
                path.unlink()
        checkpoints = run / CHECKPOINTS
        if checkpoints.is_dir() and [path.name for path in checkpoints.iterdir()] == [OWNER]:
            (checkpoints / OWNER).unlink()
            (run / RUN_NAME).unlink(missing_ok=True)
        (run / LOCK).unlink(missing_ok=True)
    for folder in (*(run / name for name in (TARGETS, STACKS, PICTURES, CHECKPOINTS)), *made):
        with suppress(OSError):  # not there, or not empty
            folder.rmdir()
