"""Copies of batches to a GPU, beside the computation: the next batch moves while the step before it is computed.

The loader starts the copy of the next batch when it hands out one, on a stream of its own, and each batch is copied once, however many
players look at it. The computation waits only for the copy of its own batch. A batch that is on its way has not been handed out, so a
position that is saved meanwhile does not count it. On CPUs there is nothing to copy, and the loader is given no copies to start.

Four kinds of memory must outlive what is queued. Page-locked memory of the loader, and of tensors that are page-locked here, goes back to
torch's allocator, which uses it again only after the copies that were queued from it. Memory on the device belongs to the stream of the
copies, and is used again there; `SideStream.arrive` also keeps it until the computation that was queued before its release is done.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.stream.batch.batch import Batch
from pipeline.training.phases import Phases


class CopyStream(Protocol):
    """A queue of copies to a device, beside its computation."""

    def copy(self, tensor: Tensor) -> Tensor:
        """Queues the copy of a tensor, and returns the copy at once."""
        ...

    def mark(self) -> Any:
        """Marks the end of the copies that were queued so far."""
        ...

    def arrive(self, mark: Any, copies: Iterable[Tensor]) -> None:
        """Makes the computation that is queued from now on wait for copies, without waiting here.

        Args:
            mark: end of the copies of a batch.
            copies: copies of that batch, whose memory is kept for all computation that is queued before they are released.
        """
        ...


class SideStream:
    """A stream of a GPU beside its current one.

    Args:
        device: GPU of the rank.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy(self, tensor: Tensor) -> Tensor:
        if tensor.device == self._device:  # decoded there
            return tensor
        pinned = tensor if tensor.is_pinned() else tensor.pin_memory()  # only page-locked memory is copied beside the host's own work
        with torch.cuda.stream(self._stream):
            return pinned.to(self._device, non_blocking=True)

    def mark(self) -> Any:
        return self._stream.record_event()

    def arrive(self, mark: Any, copies: Iterable[Tensor]) -> None:
        computation = torch.cuda.current_stream(self._device)
        computation.wait_event(mark)
        for tensor in copies:
            tensor.record_stream(computation)


@dataclass(frozen=True)
class DeviceBatch(Batch):
    """A batch on its way to the device: images, masks, labels and keys are there once it has arrived, sample_ids stay on the host.

    Attributes:
        host_labels: labels on the host, for a look that does not wait for the device.
        stream: stream of its copies.
        copied: mark behind its copies.
    """

    host_labels: Tensor | None
    stream: CopyStream
    copied: Any

    def arrive(self) -> None:
        """Makes the computation wait for the copies; to be called before the first use."""
        self.stream.arrive(self.copied, [each for each in (self.images, self.masks, self.labels, self.keys) if each is not None])


class DeviceCopies:
    """Starts the copies of batches to a device.

    Args:
        stream: stream of the copies.
    """

    def __init__(self, stream: CopyStream) -> None:
        self._stream = stream

    @classmethod
    def to(cls, device: torch.device) -> DeviceCopies | None:
        """Makes the copies to a GPU; None for any other device."""
        return cls(SideStream(device)) if device.type == "cuda" else None

    def start(self, batch: Batch) -> DeviceBatch:
        """Starts the copy of a batch, and returns at once.

        Args:
            batch: batch of the loader, on the host.
        """
        copy = self._stream.copy
        return DeviceBatch(
            images=copy(batch.images),
            masks=copy(batch.masks),
            labels=None if batch.labels is None else copy(batch.labels),
            sample_ids=batch.sample_ids,
            epoch=batch.epoch,
            index=batch.index,
            keys=copy(batch.keys),
            host_labels=batch.labels,
            stream=self._stream,
            copied=self._stream.mark(),  # behind the copies: arguments are evaluated in this order
        )


def arrive(batch: Batch, phases: Phases) -> None:
    """Makes the computation of a step wait for the copy of its batch, as the phase `host_to_device`: the time that the copy costs the step.

    Args:
        batch: batch of the step.
        phases: phases of the step, which has begun.
    """
    if isinstance(batch, DeviceBatch):
        phases.enter("host_to_device")
        batch.arrive()
        phases.enter("")


def host_labels(batch: Batch) -> Tensor | None:
    """Returns the labels of a batch on the host, int64 (n,); None where there are none. Never waits for the device."""
    return batch.host_labels if isinstance(batch, DeviceBatch) else batch.labels
