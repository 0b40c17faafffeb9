"""Memory for batches, used again once nobody holds the batch any more.

A fresh 40 MB batch costs thousands of page faults, a tenth of what decoding into it costs. So a buffer goes back to the pool when the last
tensor that views it is collected, and never while somebody may still read it. Pinned memory is left to torch's own caching allocator, which
also knows which copies to the device are still under way.
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
        """Called when the last view of a buffer is gone."""
        with self._lock:
            self._free.setdefault(memory.size, []).append(memory)


class _Lease:
    """What NumPy keeps as the owner of a view: its end is the buffer's return."""

    def __init__(self, pool: BufferPool, memory: NDArray[np.uint8]) -> None:
        self._pool, self._memory = pool, memory

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self._memory.__array_interface__

    def __del__(self) -> None:
        self._pool.give_back(self._memory)


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
