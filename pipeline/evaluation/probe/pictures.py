"""Labelled pictures, wherever they lie, and the batches that are made of them."""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.config import DataConfig
from pipeline.stream.counters import Counters
from pipeline.stream.dataset import open_datasets
from pipeline.stream.read.samples import BadSample
from shards.counting import counted
from shards.dataset.pixels import PictureRejected, read_rgb
from shards.errors import ExplainedError
from shards.store import Options

_REQUESTS = 8  # samples in flight from a store
_Result = TypeVar("_Result")


class ProbeError(ExplainedError):
    """A probe can't be made: of its pictures, its settings, or its need of disk or memory. The message says what to change."""


class LabelledPictures(Protocol):
    """Pictures with labels."""

    name: str
    """Name of the set for people, without credentials."""
    classes: tuple[str, ...]
    """Names of the classes."""
    labels: NDArray[np.int64]
    """int64 (n,), class of every picture; -1 where it is unknown."""

    def read(self, numbers: Sequence[int]) -> Iterator[bytes | None]:
        """Reads pictures in the order given; None for one that can't be read or whose bytes are damaged."""
        ...


class DatasetPictures:
    """The pictures of a data set of shards, by sample id.

    Args:
        url: URL of the data set.
        options: options of its store, as in fsspec.

    Raises:
        ShardError: the data set can't be read or is damaged.
        ProbeError: it has no labels.
    """

    def __init__(self, url: str, options: Options | None = None) -> None:
        config = DataConfig(shards=url, storage_options=dict(options or {}), cache="none")
        (self._dataset,) = open_datasets(config, 0, Counters())
        manifest = self._dataset.manifest
        self.name = self._dataset.reader.index_reader.store.describe()
        shards = [self._dataset.reader.index(shard).rows["label"] for shard in range(len(manifest.records))]
        self.labels = np.concatenate(shards).astype(np.int64)
        self.classes = tuple(manifest.classes)
        if not self.classes:  # numbers without names may have gaps of millions between them
            occurring = np.unique(self.labels[self.labels >= 0])
            self.classes = tuple(map(str, occurring.tolist()))
            self.labels[self.labels >= 0] = np.searchsorted(occurring, self.labels[self.labels >= 0])

    def read(self, numbers: Sequence[int]) -> Iterator[bytes | None]:
        """Reads samples by their ids, several requests at a time."""
        shards, rows = self._dataset.manifest.locate(list(numbers))

        def one(number: int, shard: int, row: int) -> bytes | None:
            try:
                return self._dataset.reader.read(number, shard, row)[0]
            except BadSample:
                return None

        places = zip(numbers, shards.tolist(), rows.tolist(), strict=True)
        yield from _ahead((functools.partial(one, *place) for place in places), _REQUESTS)


@dataclass(frozen=True)
class Chosen:
    """The pictures that are probed.

    Attributes:
        numbers: int64 (n,), their numbers in the set, ascending.
        labels: int64 (n,), their classes, counted over `classes`.
        classes: names of the classes that are left.
        notes: a sentence for everything that was left out.
    """

    numbers: NDArray[np.int64]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def choose(pictures: LabelledPictures, folds: int, limit: int | None, seed: int) -> Chosen:
    """Chooses the pictures to probe: those with a label, of classes with a picture for every fold, at most `limit` of each class.

    Args:
        pictures: the set.
        folds: folds of the cross-validation.
        limit: most pictures of a class, drawn by the seed; None takes all.
        seed: seed of the draw.

    Raises:
        ProbeError: fewer than two classes are left.
    """
    return divided(np.arange(len(pictures.labels)), pictures.labels, pictures.classes, folds, limit, seed)


def divided(
    numbers: NDArray[np.int64], labels: NDArray[np.int64], classes: Sequence[str], folds: int, limit: int | None, seed: int
) -> Chosen:
    """The same for pictures by number and label, as `choose`."""
    counts = np.bincount(labels[labels >= 0], minlength=len(classes))
    kept = np.flatnonzero(counts >= folds)
    if len(kept) < 2:
        raise ProbeError(
            f"a probe needs two classes with {counted(folds, 'picture')} or more, and there are {len(kept)} "
            f"({counted(int((labels >= 0).sum()), 'picture')} with a label, {counted(int(np.count_nonzero(counts)), 'class')}). Name a "
            "folder of one folder a class, or set --label-pattern or --folds"
        )
    notes = []
    if unknown := int((labels < 0).sum()):
        notes.append(f"{counted(unknown, 'picture without a label is', 'pictures without a label are')} left out")
    small = [f"{classes[each]} ({counts[each]})" for each in np.flatnonzero((counts > 0) & (counts < folds)).tolist()]
    if small:
        notes.append(f"classes with fewer than {counted(folds, 'picture')} (--folds) are left out: {', '.join(small[:10])}{_more(small)}")
    found = np.isin(labels, kept)
    if limit is not None and bool((counts[kept] > limit).any()):
        order = np.random.default_rng(seed).permutation(len(labels))
        taken: dict[int, int] = {}
        for place in order.tolist():
            label = int(labels[place])
            taken[label] = taken.get(label, 0) + 1
            found[place] &= taken[label] <= limit
        notes.append(f"of every class at most {counted(limit, 'picture is', 'pictures are')} taken (--limit), drawn by the seed")
    renumbered = np.searchsorted(kept, labels[found])
    return Chosen(numbers[found], renumbered.astype(np.int64), tuple(classes[each] for each in kept.tolist()), tuple(notes))


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 10} more" if len(names) > 10 else ""


@dataclass(frozen=True)
class PictureBatch:
    """Some pictures as a network takes them.

    Attributes:
        inputs: float32 (n, 3, side, side).
        numbers: their numbers in the set.
        damaged: numbers of pictures that came between them and can't be decoded.
    """

    inputs: Tensor
    numbers: tuple[int, ...]
    damaged: tuple[int, ...]


def batches(
    pictures: LabelledPictures, numbers: Sequence[int], transform: Callable[[Image.Image], Tensor], size: int
) -> Iterator[PictureBatch]:
    """Reads and decodes pictures in the order given, in as many threads as there are cores.

    Args:
        pictures: the set.
        numbers: numbers of the pictures.
        transform: function that makes float32 (1, 3, side, side) of a picture.
        size: pictures of a batch, the damaged ones included.
    """

    def decoded(data: bytes | None) -> Tensor | None:
        if data is None:
            return None
        try:
            picture = Image.fromarray(read_rgb(data, DataConfig().max_pixels))
        except PictureRejected:
            return None
        return transform(picture)

    threads = max(1, min(16, len(os.sched_getaffinity(0))))
    tensors = _ahead((functools.partial(decoded, data) for data in pictures.read(numbers)), threads)
    for start in range(0, len(numbers), size):
        part = numbers[start : start + size]
        made = [(number, next(tensors)) for number in part]
        good = [(number, values) for number, values in made if values is not None]
        bad = tuple(number for number, values in made if values is None)
        inputs = torch.cat([values for _, values in good]) if good else torch.empty(0)
        yield PictureBatch(inputs, tuple(number for number, _ in good), bad)


def _ahead(work: Iterator[Callable[[], _Result]], threads: int) -> Iterator[_Result]:
    """Results of work in its order, a few of which are made ahead."""
    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for each in work:
                waiting.append(pool.submit(each))
                if len(waiting) >= 4 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for left in waiting:
                left.cancel()
