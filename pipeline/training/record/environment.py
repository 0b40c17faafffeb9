"""What a process runs on and with, for the record of a run: who compares two runs later wants to know what else was different."""

from __future__ import annotations

import os
import platform
from importlib import metadata

_PACKAGES = ("context-encoders", "torch", "numpy", "accelerate", "deepspeed", "simplejpeg", "nvidia-nvimgcodec-cu12", "safetensors")


def environment() -> dict[str, str]:
    """Name -> version of Python, of the packages that decide a result, where they are installed, and of the system; the number of cores."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {**found, "system": platform.platform(terse=True), "processor": platform.machine(), "cores": str(os.cpu_count() or "unknown")}
