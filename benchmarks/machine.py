"""The line above a table: the machine and the time of a measurement."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path


def measured_here() -> str:
    """Returns the beginning of the line: time, processor, number of cores and load average."""
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end"


def processor() -> str:
    """Returns the name of the processor, as the system gives it."""
    models = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return models[0] if models else platform.machine()
