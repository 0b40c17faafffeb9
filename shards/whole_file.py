"""Local files that appear whole or not at all: a temporary name beside the target, fsync, rename.

Needs the standard library alone, so that every folder may import it.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

TEMPORARY_PREFIX = ".partial-"
LEFT_BEHIND = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}(?:.+-)?[0-9a-f]{{32}}")
"""Names of the temporary files of `whole_file`; a file of any other name belongs to another program."""


@contextmanager
def whole_file(target: Path, durable: bool = True) -> Iterator[IO[bytes]]:
    """Opens a temporary file that becomes `target` when the block ends, and is removed when the block raises.

    Args:
        target: path of the file; its folder must exist.
        durable: whether the bytes and the new name survive a power cut (fsync of the file and of its folder).

    Raises:
        OSError: the folder can't be written, or the disk is full; `target` is as it was before.
    """
    partial = target.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    try:
        with open(partial, "xb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    if durable:
        sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Makes a rename in a local folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
