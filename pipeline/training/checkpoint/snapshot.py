"""A copy of a run's state in CPU memory, which is written while the training goes on.

The memory is allocated once and used again, because most of the cost of a copy into fresh memory is page faults. It holds
the state once more: that is the price in memory of saving beside the training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Tensors = Mapping[str, Mapping[str, Tensor]]
_ALIGNMENT = 64  # bytes; every tensor in the memory starts at a multiple, which is enough for any type


class Snapshot:
    """Tensors on the CPU as they were when the snapshot was taken; complete once `wait` has returned.

    Attributes:
        tensors: file -> name -> contiguous tensor. They lie in the `SnapshotMemory`, until its next snapshot.
    """

    def __init__(self, tensors: Tensors, events: list[tuple[torch.cuda.Event, torch.cuda.Event]]) -> None:
        self.tensors = tensors
        self._events = events

    def wait(self) -> float:
        """Waits until everything is copied; returns the longest time, in seconds, that a device held its training back for the copies."""
        for _, end in self._events:
            end.synchronize()
        return max((begin.elapsed_time(end) / 1000 for begin, end in self._events), default=0.0)


class SnapshotMemory:
    """Memory for one snapshot at a time. It grows when a larger state comes, and is pinned where tensors come from a GPU."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._layout: list[tuple[str, str, torch.dtype, torch.Size]] = []
        self._copies: dict[str, dict[str, Tensor]] = {}
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def snapshot(self, tensors: Tensors) -> Snapshot:
        """Copies tensors of any device over the snapshot before, which must have been written by now.

        Tensors on a GPU are copied on a stream of their own, and the caller does not wait for them. The GPU's training stream waits on the
        GPU for the end of the copies, because the next step's update must not overtake them.
        """
        copies = self._allocated(tensors)
        devices = {tensor.device for part in tensors.values() for tensor in part.values() if tensor.is_cuda}
        events = {device: self._begin(device) for device in devices}
        with torch.no_grad():
            for file, part in tensors.items():
                for name, tensor in part.items():
                    if tensor.device in events:
                        with torch.cuda.stream(self._streams[tensor.device]):
                            copies[file][name].copy_(tensor, non_blocking=True)
                        tensor.record_stream(self._streams[tensor.device])  # a temporary tensor's memory is not given away before the copy
                    else:
                        copies[file][name].copy_(tensor)
        for device, (_, end) in events.items():
            end.record(self._streams[device])
            torch.cuda.current_stream(device).wait_event(end)
        return Snapshot(copies, list(events.values()))

    def _begin(self, device: torch.device) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        """Makes the device's copying stream wait for the steps so far. Returns two events, for the beginning and the end of the copies."""
        with torch.cuda.device(device):
            stream = self._streams.setdefault(device, torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        begin.record(stream)
        return begin, end

    def _allocated(self, tensors: Tensors) -> dict[str, dict[str, Tensor]]:
        """Tensors in this memory of the same names, types and shapes; the same ones as long as these do not change."""
        layout = [(file, name, tensor.dtype, tensor.shape) for file, part in tensors.items() for name, tensor in part.items()]
        if layout == self._layout:
            return self._copies
        starts, size = [], 0
        for _, _, dtype, shape in layout:
            starts.append(size)
            size += math.ceil(shape.numel() * dtype.itemsize / _ALIGNMENT) * _ALIGNMENT
        if size > self._memory.numel():
            self._memory = torch.empty(0, dtype=torch.uint8)  # the old memory is free before the new is taken
            self._copies, self._layout = {}, []
            pinned = any(tensor.is_cuda for part in tensors.values() for tensor in part.values())
            self._memory = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        self._copies = {file: {} for file in tensors}
        for (file, name, dtype, shape), start in zip(layout, starts, strict=True):
            self._copies[file][name] = self._memory[start : start + shape.numel() * dtype.itemsize].view(dtype).view(shape)
        self._layout = layout
        return self._copies
