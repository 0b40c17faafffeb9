"""Memory that a thread uses again for every picture: fresh pages for each would cost a sixth of the decoding."""

from __future__ import annotations

import math
import threading

import numpy as np
from numpy.typing import NDArray

_LARGEST_KEPT = 16 << 20  # bytes of one task's files; more is given back at once


class Scratch(threading.local):
    """One piece of memory a thread; it grows to the largest picture seen and is given back when the thread ends."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def take(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """uint8 of a shape, with whatever was in it; the thread's next call hands out the same memory."""
        size = math.prod(shape)
        if self._memory.size < size:
            self._memory = np.empty(size, np.uint8)
        return self._memory[:size].reshape(shape)


class ReadMemory(threading.local):
    """Where a thread reads the files of one task, so that the next task's come to lie in the same place."""

    def __init__(self) -> None:
        self._memory = memoryview(bytearray(1 << 20))

    def take(self, size: int) -> memoryview:
        """Writable bytes with whatever was in them; the thread's next call may hand out the same."""
        if size > _LARGEST_KEPT:
            return memoryview(bytearray(size))
        if size > len(self._memory):
            self._memory = memoryview(bytearray(min(2 * size, _LARGEST_KEPT)))  # so that the next task, which may need more, fits
        return self._memory[:size]
