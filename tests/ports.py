"""Free ports for servers whose port is chosen before they start: no other program takes one in between.

The kernel gives a program that asks for any port one of its own range, so these come from below that range; each worker of pytest-xdist
has a part for itself.
"""

from __future__ import annotations

import itertools
import os
import socket
from pathlib import Path

_FIRST, _PART, _PARTS = 10_000, 600, 16  # SLURM jobs look for theirs from 20,000 on
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
# not always from the start: another run of the tests may be under way
_offsets = itertools.count(os.getpid() * 37)


def free_port(count: int = 1) -> int:
    """The first of `count` free ports that follow each other; none is given twice before all have been.

    Raises:
        OSError: none is free.
    """
    part = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _PARTS
    first = _FIRST + _PART * part
    ephemeral = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else 32_768
    assert first + _PART <= ephemeral, f"{_RANGE}: the kernel hands out ports from {ephemeral} on, tests need them up to {first + _PART}"
    for _ in range(_PART):
        port = first + next(_offsets) % (_PART - count + 1)
        if all(map(_is_free, range(port, port + count))):
            for _ in range(count - 1):
                next(_offsets)
            return port
    raise OSError(f"no {count} free ports from {first} to {first + _PART - 1}")


def _is_free(port: int) -> bool:
    """On every address of this machine."""
    with socket.socket() as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what an ended server's last connections wait for is no matter
        try:
            found.bind(("", port))
        except OSError:
            return False
    return True
