"""Files below a local folder, links followed, because data sets are often put together of links to other disks.

Sizes and times are those of the files that links lead to. A folder that a link in it leads back to is an error, or is skipped.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path


def files_below(
    root: Path, folder: str = "", depth: int | None = None, strict: bool = False
) -> Iterator[tuple[str, os.stat_result | None]]:
    """Lists the regular files below `root/folder`.

    Args:
        root: folder that names are relative to.
        folder: folder below the root, or "" for the root itself. A missing folder holds nothing, and a file is its own listing.
        depth: levels of folders that are listed; 1 lists the folder alone, None everything.
        strict: raise for folders that can't be listed and for circles of links, instead of skipping them.

    Yields:
        Name and state of each file; the state of a link that leads nowhere is None.

    Raises:
        OSError: a folder can't be listed, or a link in it leads back to it.
    """
    stack: list[tuple[str, frozenset[tuple[int, int]], int]] = [(folder, frozenset(), 1)]
    while stack:
        name, above, level = stack.pop()
        place = root / name
        try:
            status = place.stat()
            identity = (status.st_dev, status.st_ino)  # names of one folder differ, these don't
            if identity in above:
                raise OSError(errno.ELOOP, "this link leads back to a folder that holds it. Remove the link", str(place))
            with os.scandir(place) as found:
                entries = list(found)
        except (FileNotFoundError, NotADirectoryError):
            if name == folder and name and place.is_file():
                yield name, place.stat()
            continue
        except OSError:
            if strict:
                raise
            continue
        for entry in entries:
            below = f"{name}/{entry.name}" if name else entry.name
            kind, state = _look(entry)
            if kind == "file":
                yield below, state
            elif kind == "folder" and (depth is None or level < depth):
                stack.append((below, above | {identity}, level + 1))


def _look(entry: os.DirEntry[str]) -> tuple[str, os.stat_result | None]:
    """Returns `file`, `folder` or "" for anything else, and the state of a file (None where a link leads nowhere or in a circle)."""
    try:
        if entry.is_dir():
            return "folder", None
        return ("file", entry.stat()) if entry.is_file() else ("file" if entry.is_symlink() and not _leads(entry) else "", None)
    except OSError:
        return ("file", None) if entry.is_symlink() else ("", None)  # the other was removed in the meantime


def _leads(entry: os.DirEntry[str]) -> bool:
    try:
        entry.stat()
    except OSError:
        return False
    return True
