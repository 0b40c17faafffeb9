"""A copy of a run's state in CPU memory, which is written while the training goes on.

The memory is allocated once and used again: most of what a copy into fresh memory costs on a CPU are its page faults.
It holds the state once more, which is what saving beside the training costs in memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Tensors = Mapping[str, Mapping[str, Tensor]]
_ALIGNMENT = 64  # bytes: of every tensor in the memory, enough for any type


class Snapshot:
    """Tensors on the CPU as they were when the snapshot was taken; complete once `wait` has returned.

    Attributes:
        tensors: file -> name -> contiguous tensor. They lie in the memory of the `SnapshotMemory`, until its next `take`.
    """

    def __init__(self, tensors: Tensors, copies: list[tuple[torch.cuda.Event, torch.cuda.Event]]) -> None:
        self.tensors = tensors
        self._copies = copies

    def wait(self) -> float:
        """Waits until everything is copied; returns the seconds for which devices held their training back meanwhile."""
        for _, end in self._copies:
            end.synchronize()
        return max((begin.elapsed_time(end) / 1000 for begin, end in self._copies), default=0.0)


class SnapshotMemory:
    """Where snapshots lie, one at a time. Grows when a larger state comes, and is pinned where tensors come from a GPU."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._layout: list[tuple[str, str, torch.dtype, torch.Size]] = []
        self._places: dict[str, dict[str, Tensor]] = {}
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def take(self, tensors: Tensors) -> Snapshot:
        """Copies tensors of any device. Overwrites the snapshot before, which must have been written by now.

        What is on a GPU is copied on a stream of its own without making the caller wait: the GPU's training stream waits on the GPU for
        the end of the copies, since the next step's update must not overtake them.
        """
        places = self._room_for(tensors)
        devices = {tensor.device for part in tensors.values() for tensor in part.values() if tensor.is_cuda}
        copies = {device: self._begin(device) for device in devices}
        with torch.no_grad():
            for file, part in tensors.items():
                for name, tensor in part.items():
                    if tensor.device in copies:
                        with torch.cuda.stream(self._streams[tensor.device]):
                            places[file][name].copy_(tensor, non_blocking=True)
                        tensor.record_stream(self._streams[tensor.device])  # a temporary tensor's memory is not given away before the copy
                    else:
                        places[file][name].copy_(tensor)
        for device, (_, end) in copies.items():
            end.record(self._streams[device])
            torch.cuda.current_stream(device).wait_event(end)
        return Snapshot(places, list(copies.values()))

    def _begin(self, device: torch.device) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        """Makes the device's copying stream wait for the steps so far; the events around what follows on it."""
        with torch.cuda.device(device):
            stream = self._streams.setdefault(device, torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        begin.record(stream)
        return begin, end

    def _room_for(self, tensors: Tensors) -> dict[str, dict[str, Tensor]]:
        layout = [(file, name, tensor.dtype, tensor.shape) for file, part in tensors.items() for name, tensor in part.items()]
        if layout == self._layout:
            return self._places
        starts, size = [], 0
        for _, _, dtype, shape in layout:
            starts.append(size)
            size += math.ceil(shape.numel() * dtype.itemsize / _ALIGNMENT) * _ALIGNMENT
        if size > self._memory.numel():
            self._memory = torch.empty(0, dtype=torch.uint8)  # the old memory is free before the new is taken
            self._places, self._layout = {}, []
            pinned = any(tensor.is_cuda for part in tensors.values() for tensor in part.values())
            self._memory = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        self._places = {file: {} for file in tensors}
        for (file, name, dtype, shape), start in zip(layout, starts, strict=True):
            self._places[file][name] = self._memory[start : start + shape.numel() * dtype.itemsize].view(dtype).view(shape)
        self._layout = layout
        return self._places
