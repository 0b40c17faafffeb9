"""Versions and hardware of a process, for the record of a run, so that a comparison of two runs shows what else was different."""

from __future__ import annotations

import os
import platform
from importlib import metadata

_PACKAGES = ("context-encoders", "torch", "numpy", "accelerate", "deepspeed", "simplejpeg", "nvidia-nvimgcodec-cu12", "safetensors")


def environment() -> dict[str, str]:
    """Name -> version of Python, of the installed packages that decide a result, and of the system; and the number of cores."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {**found, "system": platform.platform(terse=True), "processor": platform.machine(), "cores": str(os.cpu_count() or "unknown")}
