"""Memory that is used again: of batches once they are dropped (`BufferPool`), of a thread from picture to picture (`Scratch`).

Fresh memory costs page faults: a 40 MB batch thousands of them, a tenth of what decoding into it costs, and fresh pages for each picture a
sixth of its decode. A batch's buffer goes back to the pool when the last tensor that views it is collected, and never while a reader may
hold it. Pinned memory is left to torch's own caching allocator, which also knows the copies to the device that are still under way.
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class BufferPool:
    """Tensors of recycled memory.

    Args:
        pinned: take page-locked memory for asynchronous copies to a GPU.
    """

    def __init__(self, pinned: bool) -> None:
        self.pinned = pinned
        self._free: dict[int, list[NDArray[np.uint8]]] = {}
        self._lock = threading.RLock()  # a collection may give a lease back inside take()

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor of one byte an element."""
        import torch  # noqa: PLC0415 - decoding and the simulator use `Scratch` alone, and torch takes seconds to import

        if self.pinned:
            return torch.empty(shape, dtype=dtype, pin_memory=True)
        size = math.prod(shape)
        with self._lock:
            free = self._free.setdefault(size, [])
            memory = free.pop() if free else np.empty(size, np.uint8)
        return torch.from_numpy(np.asarray(_Lease(self, memory))).view(dtype).view(shape)

    def give_back(self, memory: NDArray[np.uint8]) -> None:
        """Takes a buffer back; called when its last view is collected."""
        with self._lock:
            self._free.setdefault(memory.size, []).append(memory)


class _Lease:
    """The owner that NumPy keeps for a view; its end returns the buffer to the pool."""

    def __init__(self, pool: BufferPool, memory: NDArray[np.uint8]) -> None:
        self._pool, self._memory = pool, memory

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self._memory.__array_interface__

    def __del__(self) -> None:
        self._pool.give_back(self._memory)


class Scratch(threading.local):
    """One piece of memory for each thread, as large as its largest request so far, freed when the thread ends.

    Args:
        largest_kept: most bytes that are kept; a larger request gets memory of its own. None keeps any size.
    """

    def __init__(self, largest_kept: int | None = None) -> None:
        self._largest_kept = largest_kept
        self._memory = np.empty(0, np.uint8)

    def take(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Memory of a shape, uint8, with its old content; the thread's next call hands out the same memory."""
        size = math.prod(shape)
        memory = self._memory if self._memory.size >= size else np.empty(size, np.uint8)
        if self._largest_kept is None or size <= self._largest_kept:
            self._memory = memory
        return memory[:size].reshape(shape)
