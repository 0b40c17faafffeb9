"""Files on local disks: files that appear whole or not at all, locks among processes, and the files below a folder.

A whole file is written under a temporary name beside its target, then fsync, then rename. The kernel releases a lock when its holder ends,
however it ends; flock locks belong to the open file, not to the process, so two opens of one file in one process lock each other out. A
walk follows links, because data sets are often put together of links to other disks: sizes and times are those of the files that links
lead to, and a folder that a link in it leads back to is an error, or is skipped.

Needs the standard library alone, so that everything here may import it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

TEMPORARY_PREFIX = ".partial-"
LEFT_BEHIND = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}(?:.+-)?[0-9a-f]{{32}}")
"""Names of the temporary files of `whole_file`; a file of any other name belongs to another program."""


@contextmanager
def whole_file(target: Path, durable: bool = True, one_writer: bool = False) -> Iterator[IO[bytes]]:
    """Opens a temporary file that becomes `target` when the block ends, and is removed when the block raises.

    Args:
        target: path of the file; its folder must exist.
        durable: whether the bytes and the new name survive a power cut (fsync of the file and of its folder).
        one_writer: whether no other process writes `target` at the same time. The temporary name is then always the same, so that the
            next write replaces the file that a kill has left; otherwise a sweep has to find it by LEFT_BEHIND.

    Raises:
        OSError: the folder can't be written, or the disk is full; `target` is as it was before.
    """
    partial = target.with_name(f"{TEMPORARY_PREFIX}{target.name if one_writer else uuid.uuid4().hex}")
    try:
        with open(partial, "wb" if one_writer else "xb") as file:
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


def try_lock(file: int, shared: bool = False) -> bool:
    """Takes a lock without waiting.

    Args:
        file: descriptor of an open file or folder.
        shared: whether other open files may hold shared locks at the same time. An exclusive lock of this file becomes a shared one.

    Returns:
        Whether the lock was taken; False where another open file holds one that excludes it.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for_lock(file: int) -> None:
    """Takes the exclusive lock, waiting for as long as another open file holds one.

    Args:
        file: descriptor of an open file or folder.

    Raises:
        OSError: the file system has no locks.
    """
    fcntl.flock(file, fcntl.LOCK_EX)


def unlock(file: int) -> None:
    """Releases the lock of an open file."""
    fcntl.flock(file, fcntl.LOCK_UN)


def file_system(path: Path) -> str:
    """Names the file system of a path as `TYPE at MOUNT POINT`, for a message; `file system` where the kernel does not list it."""
    place = os.path.realpath(path)
    best = ("", "")
    with suppress(OSError):
        for line in Path("/proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            point, kind = (re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), field) for field in line.split(" ")[1:3])
            if len(point) >= len(best[0]) and (place + "/").startswith(point.rstrip("/") + "/"):  # the later of two hides the other
                best = (point, kind)
    return f"{best[1]} at {best[0]}" if best[0] else "file system"


def files_below(
    root: Path, folder: str = "", depth: int | None = None, strict: bool = False, lenient: Callable[[str], object] = lambda _name: False
) -> Iterator[tuple[str, os.stat_result | None]]:
    """Lists the regular files below `root/folder`.

    Args:
        root: folder that names are relative to.
        folder: folder below the root, or "" for the root itself. A missing folder holds nothing, and a file is its own listing.
        depth: levels of folders that are listed; 1 lists the folder alone, None everything.
        strict: raise for folders that can't be listed and for circles of links, instead of skipping them.
        lenient: function that returns something true for the names of folders that are skipped all the same.

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
            if strict and not lenient(name):
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
