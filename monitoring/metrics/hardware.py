"""What the machine says of itself when the metrics are read: its memory, and the GPU of a rank through NVIDIA's management library.

A reading is made in the thread that answers a scrape, never in the training loop, and one that fails is NaN: no scrape and no run ends
because a driver does not answer.
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
    """Bytes of this machine's memory; NaN where the system does not say. `used` is what could not be had without swapping."""
    try:
        found = dict(re.findall(r"^(MemTotal|MemAvailable): +(\d+) kB$", _MEMORY.read_text(), re.MULTILINE))
        total = 1024.0 * int(found["MemTotal"])
        return total if kind == "total" else total - 1024.0 * int(found["MemAvailable"])
    except (OSError, KeyError):
        return math.nan


class Gpu:
    """One GPU, by `find`."""

    def __init__(self, library: Any, handle: Any) -> None:
        self._library, self._handle = library, handle

    @classmethod
    def find(cls, uuid: str) -> Gpu | None:
        """The GPU with an id; None, with one line in the log, where the library, the driver or the GPU is not there.

        Args:
            uuid: `GPU-` and 32 hexadecimal digits in five parts, as `nvidia-smi -L` shows it.
        """
        try:
            import pynvml  # noqa: PLC0415 - an extra

            pynvml.nvmlInit()
            return cls(pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid))
        except ImportError:
            _log.warning("no metrics of the GPU: pip install context-encoders[gpu] for those of its memory and load")
        except Exception as error:  # the library has an error of its own for everything, and a driver may have others
            _log.warning("no metrics of the GPU %s: %s", uuid, error)
        return None

    def memory_used(self) -> float:
        """Bytes, of all processes together."""
        return self._read(lambda: self._library.nvmlDeviceGetMemoryInfo(self._handle).used)

    def memory_total(self) -> float:
        """Bytes."""
        return self._read(lambda: self._library.nvmlDeviceGetMemoryInfo(self._handle).total)

    def utilisation(self) -> float:
        """Share of the driver's last period, up to a second, in which a kernel ran: 0 to 1."""
        return self._read(lambda: self._library.nvmlDeviceGetUtilizationRates(self._handle).gpu) / 100

    @staticmethod
    def _read(value: Callable[[], Any]) -> float:
        try:
            return float(value())
        except Exception:  # as in `find`; a part of a divided GPU, for one, has no load of its own
            return math.nan
