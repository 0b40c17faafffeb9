"""The exit status of a process that is not a child of this one, as Linux shows it."""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import suppress
from pathlib import Path

_GET_INFO = 0xC040FF0B  # PIDFD_GET_INFO of the kernel's pidfd.h: _IOWR(0xFF, 11, struct pidfd_info), of 64 bytes
_INFO = struct.Struct("=QQ11Ii")  # mask, cgroup, the ids of process, parent, users and groups, exit code
_EXIT = 1 << 3  # PIDFD_INFO_EXIT
_STATE, _EXIT_CODE = 0, 49  # fields of /proc/PID/stat behind the name


def exit_status(pidfd: int, process: int) -> int | None:
    """Returns how a process ended, in the form of `subprocess`: its exit code, or minus the number of the signal that killed it.

    The status stands in /proc until the parent takes it, and from Linux 6.15 on in the pidfd after that.

    Args:
        pidfd: pidfd of the process, which has ended.
        process: process id.

    Returns:
        The status, None where it can't be known any more.
    """
    with suppress(OSError, IndexError, ValueError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        if fields[_STATE] == "Z":
            return os.waitstatus_to_exitcode(int(fields[_EXIT_CODE]))
    with suppress(OSError):
        found = _INFO.unpack(fcntl.ioctl(pidfd, _GET_INFO, _INFO.pack(_EXIT, *[0] * 12, 0)))
        if found[0] & _EXIT:
            return os.waitstatus_to_exitcode(found[-1])
    return None
