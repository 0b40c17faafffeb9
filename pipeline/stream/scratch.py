"""Memory that a thread uses again for every picture: fresh pages for each would cost a sixth of the decoding."""

from __future__ import annotations

import math
import threading

import numpy as np
from numpy.typing import NDArray


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
