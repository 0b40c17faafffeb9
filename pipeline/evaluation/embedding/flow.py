"""Reading, decoding and the network at the same time, batch after batch, in the order of the units.

Threads read ahead where the shards are remote, threads decode into the memory of the next batches, and threads run the network; each stage
is some batches ahead of the next. The composition of a batch follows from its unit alone. An unreadable picture keeps its place in the
batch (black), so that its neighbours' features don't depend on it, and has no row in the result.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.evaluation.embedding.network import Extractor, one_core
from pipeline.evaluation.embedding.pictures import PictureCutter
from pipeline.evaluation.embedding.reading import Raw, SequentialReader
from pipeline.evaluation.embedding.units import Unit
from pipeline.stream.buffers import BufferPool
from pipeline.stream.dataset import Dataset
from pipeline.stream.read.samples import BadSample

_LARGEST_PIECE = 64  # pictures that a thread reads and decodes at a time
_PIECE_BYTES = 8 << 20
_TICK_SECONDS = 1.0

Item = TypeVar("Item")
Begun = TypeVar("Begun")


@dataclass(frozen=True)
class Features:
    """The rows of a unit.

    Attributes:
        unit: unit of the rows.
        ids: int64 (n,), ids of the samples that could be read, ascending.
        keys: key of each sample.
        labels: int64 (n,), class of each sample, -1 where unknown.
        values: (n, dimensions), float16 or float32.
        unreadable: errors of the samples that are left out.
    """

    unit: Unit
    ids: NDArray[np.int64]
    keys: list[str]
    labels: NDArray[np.int64]
    values: NDArray[Any]
    unreadable: list[BadSample]


class _Batch:
    """A batch while it is read, decoded and computed: its unit, its ids, and what is found out of each of its samples."""

    def __init__(self, unit: Unit, ids: range) -> None:
        self.unit, self.ids = unit, ids
        self.keys = [""] * len(ids)
        self.labels = np.full(len(ids), -1, np.int64)
        self.bad: dict[int, BadSample] = {}


@dataclass(frozen=True)
class _Reading:
    """A batch whose pieces are read; a piece without a future is read by the thread that decodes it."""

    batch: _Batch
    pieces: list[tuple[range, Future[list[Raw | BadSample]] | None]]


@dataclass(frozen=True)
class _Decoding:
    """A batch whose pieces are decoded into uint8 (n, side, side, 3)."""

    batch: _Batch
    images: Tensor
    pieces: list[Future[None]]


@dataclass(frozen=True)
class _Computing:
    """A batch in the network."""

    batch: _Batch
    values: Future[NDArray[Any]]


class Flow:
    """The stages on the way from units to their features.

    Args:
        dataset: data set that is embedded.
        cutter: brings pictures to the encoder's input.
        extractor: computes features.
        side: side of the input in pixels.
        batch: pictures of a batch.
        decoders: threads that decode.
        readers: threads that read ahead; 0 lets the decoding threads read, as is best for shards on this machine.
        workers: batches in the network at the same time.
        quarantine: called with every unreadable sample as soon as it is found; may raise.
    """

    def __init__(
        self,
        dataset: Dataset,
        cutter: PictureCutter,
        extractor: Extractor,
        side: int,
        batch: int,
        decoders: int,
        readers: int,
        workers: int,
        quarantine: Callable[[BadSample], None],
    ) -> None:
        self._dataset, self._cutter, self._extractor, self._quarantine = dataset, cutter, extractor, quarantine
        self._side, self._size = side, batch
        self._piece = max(1, min(_LARGEST_PIECE, batch, _PIECE_BYTES // dataset.mean_bytes))
        self._reader = SequentialReader(dataset.reader)
        self._buffers = BufferPool(pinned=extractor.device.type == "cuda")
        self._decoding = ThreadPoolExecutor(decoders, "decode")
        self._reading = ThreadPoolExecutor(readers, "read") if readers else None
        self._computing = ThreadPoolExecutor(workers, "network", one_core)
        pieces = -(-batch // self._piece)
        self._read_ahead = -(-readers // pieces)
        self._decoded_ahead = 1 + -(-decoders // pieces)
        self._computed_ahead = workers

    def features(self, units: Iterable[Unit], waiting: Callable[[], None] = lambda: None) -> Iterator[Features]:
        """Computes the features of units.

        Args:
            units: units in the order of the work; the next one is taken while the ones before are computed.
            waiting: called at least once a second; an error that it raises ends the work.

        Yields:
            The rows of each unit, in their order.

        Raises:
            ShardError: a shard can't be read, or more samples are unreadable than allowed.
            EmbedError: a value of the features can't be stored.
        """
        done = list[_Computing]()
        for computing in _ahead(self._start_computing, self._decoded(units), self._computed_ahead):
            _await(computing.values, waiting)
            done.append(computing)
            if computing.batch.ids.stop == computing.batch.unit.stop:
                yield _joined(done)
                done = []

    def pictures(self, units: Iterable[Unit]) -> Iterator[Tensor]:
        """Reads and decodes without the network, for measurements; yields uint8 (n, side, side, 3) for each batch."""
        for decoding in self._decoded(units):
            for piece in decoding.pieces:
                piece.result()
            yield decoding.images

    def _decoded(self, units: Iterable[Unit]) -> Iterator[_Decoding]:
        """Begins to read and to decode the batches of units, some ahead of the one that is handed on."""
        batches = (_Batch(unit, ids) for unit in units for ids in unit.batches(self._size))
        return _ahead(self._start_decoding, _ahead(self._start_reading, batches, self._read_ahead), self._decoded_ahead)

    def close(self) -> None:
        """Ends the threads; what they have not begun is dropped."""
        self._dataset.abandon()
        for pool in (self._computing, self._decoding, self._reading):
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)
        for pool in (self._computing, self._decoding, self._reading):
            if pool is not None:
                pool.shutdown(wait=True)

    def __enter__(self) -> Flow:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_reading(self, batch: _Batch) -> _Reading:
        firsts = range(batch.ids.start, batch.ids.stop, self._piece)
        pieces = [range(first, min(first + self._piece, batch.ids.stop)) for first in firsts]
        return _Reading(batch, [(ids, self._reading.submit(self._reader.read, ids) if self._reading else None) for ids in pieces])

    def _start_decoding(self, reading: _Reading) -> _Decoding:
        images = self._buffers.take((len(reading.batch.ids), self._side, self._side, 3), torch.uint8)
        rows: NDArray[np.uint8] = images.numpy()
        pieces = [self._decoding.submit(self._decode, reading.batch, rows, ids, read) for ids, read in reading.pieces]
        return _Decoding(reading.batch, images, pieces)

    def _decode(self, batch: _Batch, rows: NDArray[np.uint8], ids: range, read: Future[list[Raw | BadSample]] | None) -> None:
        """Fills a batch's places of some samples."""
        found = read.result() if read is not None else self._reader.read(ids)
        places, pictures = list[int](), list[bytes | memoryview]()
        for place, each in enumerate(found, ids.start - batch.ids.start):
            if isinstance(each, BadSample):
                self._leave_out(batch, rows, place, each)
            else:
                batch.keys[place], batch.labels[place] = each.key, each.label
                places.append(place)
                pictures.append(each.data)
        for place, reason in zip(places, self._cutter.cut(pictures, [rows[place] for place in places]), strict=True):
            if reason is not None:
                sample = batch.ids[place]
                (shard,), (row,) = self._dataset.manifest.locate([sample])
                self._leave_out(batch, rows, place, self._dataset.reader.bad(sample, int(shard), int(row), "undecodable", reason))

    def _leave_out(self, batch: _Batch, rows: NDArray[np.uint8], place: int, error: BadSample) -> None:
        rows[place] = 0
        batch.bad[place] = error
        self._quarantine(error)

    def _start_computing(self, decoding: _Decoding) -> _Computing:
        return _Computing(decoding.batch, self._computing.submit(self._compute, decoding))

    def _compute(self, decoding: _Decoding) -> NDArray[Any]:
        for piece in decoding.pieces:
            piece.result()
        batch = decoding.batch
        return self._extractor(decoding.images, lambda place: f"sample {batch.ids[place]} ({batch.keys[place]})")


def _ahead(begin: Callable[[Item], Begun], items: Iterable[Item], depth: int) -> Iterator[Begun]:
    """Begins the work on items, `depth` of them before the first is handed on."""
    begun: deque[Begun] = deque()
    for item in items:
        begun.append(begin(item))
        if len(begun) > depth:
            yield begun.popleft()
    yield from begun


def _await(future: Future[Any], waiting: Callable[[], None]) -> None:
    """Waits for the end of the work, and raises its error."""
    waiting()
    while not wait([future], _TICK_SECONDS).done:
        waiting()
    future.result()


def _joined(computed: list[_Computing]) -> Features:
    """Joins the batches of a unit, without the places of unreadable samples."""
    batches, unit = [each.batch for each in computed], computed[0].batch.unit
    good = np.concatenate([np.array([place not in batch.bad for place in range(len(batch.ids))], np.bool_) for batch in batches])
    keys = [key for batch in batches for key in batch.keys]
    return Features(
        unit,
        np.arange(unit.start, unit.stop)[good],
        [key for key, is_good in zip(keys, good, strict=True) if is_good],
        np.concatenate([batch.labels for batch in batches])[good],
        np.concatenate([each.values.result() for each in computed])[good],
        [batch.bad[place] for batch in batches for place in sorted(batch.bad)],
    )
