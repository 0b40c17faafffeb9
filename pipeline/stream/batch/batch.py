"""One rank's share of a global batch: what is handed out, and what it is while the threads still write into it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.stream.mixture import Position
from shards.keyed import derived_keys

_TICK_SECONDS = 1.0
_MODEL = 3  # purpose of the random numbers that are left to the model


class LoaderClosed(RuntimeError):
    """A batch was asked of a loader that was closed."""

    def __init__(self) -> None:
        super().__init__("the loader was closed, and no more batches come from it: make another")


@dataclass(frozen=True)
class Batch:
    """A rank's share of one global batch.

    Attributes:
        images: uint8 (n, H, W, 3), RGB; pinned where there is a GPU.
        masks: bool (n, H, W), True where pixels are dropped.
        labels: int64 (n,), -1 where unknown; None where a data set has no classes.
        sample_ids: int64 (n,), of what was delivered: a substitute's own id where one stands in. Those of a second source begin where
            the first's end.
        epoch: of the data set, from 0; of the first one where several are mixed.
        index: of the batch in that epoch, from 0.
        keys: int64 (n,), random keys for whatever else a model draws a sample.
    """

    images: Tensor
    masks: Tensor
    labels: Tensor | None
    sample_ids: Tensor
    epoch: int
    index: int
    keys: Tensor


class Place(NamedTuple):
    """One sample on its way into a batch: where it goes, where it lies, and what is drawn for it."""

    place: int
    sample_id: int
    shard: int
    row: int
    key: int
    mask_key: int
    draws: list[float]


class Places(NamedTuple):
    """Several of `Place`, a column for each of its fields.

    Attributes:
        places: int64 (n,), in the rank's share of the batch.
        sample_ids: int64 (n,), of the whole stream.
        shards: int64 (n,), of the source's manifest.
        rows: int64 (n,), of the shards' indexes.
        keys: uint64 (n,), of `sample_keys`.
        mask_keys: uint64 (n,).
        draws: float64 (n, numbers), of `draws_of`.
    """

    places: NDArray[Any]
    sample_ids: NDArray[Any]
    shards: NDArray[Any]
    rows: NDArray[Any]
    keys: NDArray[Any]
    mask_keys: NDArray[Any]
    draws: NDArray[Any]

    def some(self, chosen: NDArray[np.int64]) -> Places:
        """Those whose numbers are given, in that order."""
        return Places(*(column[chosen] for column in self))

    def each(self) -> list[Place]:
        """One by one."""
        return list(map(Place._make, zip(*(column.tolist() for column in self), strict=True)))


class Pending:
    """A batch in the making.

    Attributes:
        number: of the batch since the loader was made, from 1.
        positions: of the sources, where it begins.
        planned: done when all that follows is there.
        images, masks: what the threads write into, with their NumPy views image_rows and mask_rows; labels, sample_ids, keys likewise.
        fetched: bytes that were asked of the store, by place.
        tasks: of the threads.
        abandoned: nobody wants it any more.
    """

    images: Tensor
    masks: Tensor
    planned: Future[None]

    def __init__(self, number: int, positions: tuple[Position, ...]) -> None:
        self.number, self.positions = number, positions
        self.fetched: dict[int, Future[bytes]] = {}
        self.tasks: list[Future[None]] = []
        self.abandoned = False

    def write_into(self, images: Tensor, masks: Tensor) -> None:
        """Gives it its memory."""
        self.images, self.masks = images, masks
        self.image_rows: NDArray[np.uint8] = images.numpy()
        self.mask_rows: NDArray[np.bool_] = masks.numpy()
        count = images.shape[0]
        self.sample_ids = np.empty(count, np.int64)
        self.labels = np.empty(count, np.int64)
        self.keys = np.empty(count, np.uint64)

    def expect(self, samples: Places) -> None:
        """Says which samples come to some of its places."""
        self.sample_ids[samples.places] = samples.sample_ids
        self.keys[samples.places] = samples.keys

    def done(self) -> bool:
        """Whether `batch` would not wait."""
        return self.planned.done() and all(task.done() for task in self.tasks)

    def abandon(self) -> None:
        """Lets go of what nobody has begun. Waits for nothing, since the garbage collector may call it in any thread: a plan that is being
        made right now lets go of its own at its end."""
        self.abandoned = True
        self.planned.cancel()
        self.let_go()

    def let_go(self) -> None:
        """Cancels its tasks and what was asked of the store."""
        for task in self.tasks:
            task.cancel()
        for data in list(self.fetched.values()):
            data.cancel()

    def batch(self, first_share: int, waiting: Callable[[], None], labelled: bool) -> Batch:
        """The batch, when its last task is done; raises what planning it, a task or `waiting` raised. `first_share`: samples of the first
        source in a global batch."""
        _await([self.planned], waiting)
        _await(self.tasks, waiting)
        return Batch(
            images=self.images,
            masks=self.masks,
            labels=torch.from_numpy(self.labels) if labelled else None,
            sample_ids=torch.from_numpy(self.sample_ids),
            epoch=self.positions[0][0],
            index=self.positions[0][1] // first_share,
            keys=torch.from_numpy(derived_keys(self.keys, _MODEL).view(np.int64)),
        )


def _await(tasks: Sequence[Future[None]], waiting: Callable[[], None]) -> None:
    """Waits until all are done, or one has failed: raises its error, of several the first one's in their order."""
    while True:
        wait(tasks, _TICK_SECONDS, FIRST_EXCEPTION)  # one look at all: a look at each would be woken for each
        done = [task.done() for task in tasks]
        for task, is_done in zip(tasks, done, strict=True):
            if is_done and task.cancelled():
                raise LoaderClosed
            if is_done:
                task.result()
        if all(done):
            return
        waiting()
