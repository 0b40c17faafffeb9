"""Memory that a thread uses again for every picture, or every task: fresh pages for each would cost a sixth of the decoding."""

from __future__ import annotations

import math
import threading

import numpy as np
from numpy.typing import NDArray


class Scratch(threading.local):
    """One piece of memory a thread, as large as the most that was asked for; it is given back when the thread ends.

    Args:
        largest_kept: bytes; what needs more gets memory of its own. None keeps any.
    """

    def __init__(self, largest_kept: int | None = None) -> None:
        self._largest_kept = largest_kept
        self._memory = np.empty(0, np.uint8)

    def take(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """uint8 of a shape, with whatever was in it; the thread's next call hands out the same memory."""
        size = math.prod(shape)
        memory = self._memory if self._memory.size >= size else np.empty(size, np.uint8)
        if self._largest_kept is None or size <= self._largest_kept:
            self._memory = memory
        return memory[:size].reshape(shape)
