"""Readings of the machine, taken when the metrics are read: its memory, and the GPU of a rank through NVIDIA's management library (NVML).

A reading is taken in the thread that answers a scrape, never in the training loop. A reading that fails is NaN, so that no scrape and no
run ends because a driver does not answer.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

_MEMORY = Path("/proc/meminfo")
_log = logging.getLogger(__name__)


def host_memory(kind: Literal["used", "total"]) -> float:
    """Bytes of this machine's memory, NaN where the system does not say. `used` is total minus available."""
    try:
        found = dict(re.findall(r"^(MemTotal|MemAvailable): +(\d+) kB$", _MEMORY.read_text(), re.MULTILINE))
        total = 1024.0 * int(found["MemTotal"])
        return total if kind == "total" else total - 1024.0 * int(found["MemAvailable"])
    except (OSError, KeyError):
        return math.nan


class Gpu:
    """One GPU as NVML sees it; `find` opens it."""

    def __init__(self, library: Any, handle: Any) -> None:
        self._library, self._handle = library, handle

    @classmethod
    def find(cls, uuid: str) -> Gpu | None:
        """Opens the GPU with an id; returns None, after one line in the log, where the library, the driver or the GPU is missing.

        Args:
            uuid: id of the GPU as `nvidia-smi -L` shows it: `GPU-` and 32 hexadecimal digits in five parts.
        """
        try:
            import pynvml  # noqa: PLC0415 - an extra

            pynvml.nvmlInit()
            return cls(pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid))
        except ImportError:
            _log.warning("the memory and load of the GPU are not reported: nvidia-ml-py is missing (pip install -e '.[gpu]')")
        except Exception as error:  # NVML has a class for every code, and a driver may raise others
            _log.warning("the memory and load of the GPU %s are not reported: %s", uuid, error)
        return None

    def memory_used(self) -> float:
        """Bytes of its memory in use, over all processes."""
        return self._read(lambda: self._library.nvmlDeviceGetMemoryInfo(self._handle).used)

    def memory_total(self) -> float:
        """Bytes of its memory."""
        return self._read(lambda: self._library.nvmlDeviceGetMemoryInfo(self._handle).total)

    def utilisation(self) -> float:
        """Fraction of the driver's last sampling period (up to a second) in which a kernel ran, 0 to 1."""
        return self._read(lambda: self._library.nvmlDeviceGetUtilizationRates(self._handle).gpu) / 100

    @staticmethod
    def _read(value: Callable[[], Any]) -> float:
        try:
            return float(value())
        except Exception:  # as in `find`; a MIG partition, for example, has no load of its own
            return math.nan
