"""One rank's slice of a global batch: the `Batch` that is handed out, and the `Filling` and `Pending` that it comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.stream.mixture import Position
from pipeline.stream.plan import BatchPlan, PlannedSample
from shards.keyed import derived_keys

_TICK_SECONDS = 1.0
MODEL = 3  # purpose of the random numbers that are left to the model


class LoaderClosed(RuntimeError):
    """A batch was asked of a loader that was closed."""

    def __init__(self) -> None:
        super().__init__("the loader was closed and gives no more batches: make another")


@dataclass(frozen=True)
class Batch:
    """A rank's slice of one global batch.

    Attributes:
        images: uint8 (n, H, W, 3), RGB; pinned where there is a GPU, and on it where the loader copies batches.
        masks: bool (n, H, W), True where pixels are dropped.
        labels: int64 (n,), -1 where unknown; None where a data set has no labels.
        sample_ids: int64 (n,), ids of the delivered samples: where a substitute stands in, its own. Those of a second data set begin where
            the first's end.
        epoch: epoch of the first data set, from 0.
        index: index of the batch in that epoch, from 0.
        keys: int64 (n,), random keys for all that a model draws per sample.
    """

    images: Tensor
    masks: Tensor
    labels: Tensor | None
    sample_ids: Tensor
    epoch: int
    index: int
    keys: Tensor


class Filling:
    """A planned batch while threads write into its memory.

    Args:
        plan: plan of the batch.
        images: uint8 (n, H, W, 3), written by the threads.
        masks: bool (n, H, W), written by the threads.
        labelled: whether the batch gets labels.

    Attributes:
        image_rows: NumPy view of the images; the images themselves where a decoder writes them on a device.
        mask_rows: NumPy view of the masks.
        labels: int64 (n,), written by the threads.
        fetched: bytes that were asked of the store, by slot; the thread that reads a sample takes its entry out.
        tasks: tasks of the threads, in the order in which they begin.
    """

    def __init__(self, plan: BatchPlan, images: Tensor, masks: Tensor, labelled: bool) -> None:
        self.plan, self.images, self.masks = plan, images, masks
        self.image_rows: Any = images.numpy() if images.device.type == "cpu" else images
        self.mask_rows: NDArray[np.bool_] = masks.numpy()
        self.labels = np.empty(len(images), np.int64)
        self.fetched: dict[int, Future[bytes]] = {}
        self.tasks: list[Future[None]] = []
        self._labelled = labelled
        self._sample_ids = np.empty(len(images), np.int64)
        self._keys = np.empty(len(images), np.uint64)
        for part in plan.parts:
            self._sample_ids[part.slots] = part.sample_ids
            self._keys[part.slots] = part.keys

    def substitute(self, sample: PlannedSample) -> None:
        """Records that another sample than the planned one fills a slot."""
        self._sample_ids[sample.slot] = sample.sample_id
        self._keys[sample.slot] = sample.key

    def cancel(self) -> None:
        """Cancels every task and every request that has not begun."""
        for task in self.tasks:
            task.cancel()
        for data in list(self.fetched.values()):
            data.cancel()

    def batch(self) -> Batch:
        """The batch, once every task is done."""
        return Batch(
            images=self.images,
            masks=self.masks,
            labels=torch.from_numpy(self.labels) if self._labelled else None,
            sample_ids=torch.from_numpy(self._sample_ids),
            epoch=self.plan.epoch,
            index=self.plan.index,
            keys=torch.from_numpy(derived_keys(self._keys, MODEL).view(np.int64)),
        )


class Pending:
    """A batch that the loader has begun: first it is planned, then it is filled.

    Args:
        positions: position of each data set where the batch begins.
        planned: the filling to come, with all its tasks under way.
        copy: function that starts the copy of the filled batch to a device and returns that copy; None hands the batch out as it is.
    """

    def __init__(self, positions: tuple[Position, ...], planned: Future[Filling], copy: Callable[[Batch], Batch] | None = None) -> None:
        self.positions = positions
        self._planned = planned
        self._copy = copy
        self._copied: Batch | None = None

    def done(self) -> bool:
        """True if `batch` would return or raise at once."""
        planned = self._planned
        if not planned.done():
            return False
        return planned.cancelled() or planned.exception() is not None or all(task.done() for task in planned.result().tasks)

    def copy_ahead(self) -> None:
        """Starts the copy of the batch if it is filled. Never waits; an error of the batch is left to `batch`."""
        planned = self._planned
        if self._copy is None or self._copied is not None or not _succeeded(planned):
            return
        filling = planned.result()
        if all(_succeeded(task) for task in filling.tasks):
            self._copied = self._copy(filling.batch())

    def abandon(self) -> None:
        """Cancels everything that has not begun. Never blocks, because the garbage collector may call it from any thread; the tasks of a
        plan in progress are cancelled when the plan is finished."""
        if not self._planned.cancel():
            self._planned.add_done_callback(_cancel_filling)

    def batch(self, waiting: Callable[[], None]) -> Batch:
        """Waits for the batch.

        Args:
            waiting: called once a second meanwhile.

        Raises:
            LoaderClosed: the loader was closed.
            Exception: the error of the plan, of a task or of `waiting`.
        """
        _await([self._planned], waiting)
        filling = self._planned.result()
        _await(filling.tasks, waiting)
        if self._copied is not None:
            return self._copied
        batch = filling.batch()
        return batch if self._copy is None else self._copy(batch)


def _succeeded(future: Future[Any]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _cancel_filling(planned: Future[Filling]) -> None:
    if _succeeded(planned):
        planned.result().cancel()


def _await(tasks: Sequence[Future[Any]], waiting: Callable[[], None]) -> None:
    """Waits for all tasks; if any failed, raises the error of the first failed task in list order."""
    while True:
        wait(tasks, _TICK_SECONDS, FIRST_EXCEPTION)  # one wait for all: waiting for each would wake this thread once a task
        done = [task.done() for task in tasks]
        for task, is_done in zip(tasks, done, strict=True):
            if is_done and task.cancelled():
                raise LoaderClosed
            if is_done:
                task.result()
        if all(done):
            return
        waiting()
