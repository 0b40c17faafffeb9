"""Locks of files and folders among processes, which the kernel releases when their holder ends, however it ends.

flock locks belong to the open file, not to the process: two opens of one file in one process lock each other out.
"""

from __future__ import annotations

import fcntl


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
