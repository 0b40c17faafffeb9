"""The pictures whose patches may fill holes, one after the other or by their ids, all with the same centre crop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import DataConfig
from pipeline.evaluation.embedding.reading import SequentialReader
from pipeline.evaluation.embedding.units import Unit, cut_units
from pipeline.evaluation.inpainting.parts import InpaintingError
from pipeline.stream.dataset import Dataset
from pipeline.stream.decode.crop import CropRule
from pipeline.stream.decode.decoder import Decoder
from pipeline.stream.read.samples import BadSample

_TOGETHER = 64  # pictures that are read, decoded and described at a time; the features of a network may depend on it


class TrainingPictures:
    """Data sets laid end to end, without the samples that are held back. Any number of threads may use it at once.

    Args:
        datasets: opened data sets.
        held_back: ids of the samples of each data set that are left out, int64 (n,), ascending.
        decoder: decoder of the pictures.
        data: settings of the pictures; the crop is always that of the middle, at the stored scale.
        side: side of the crops in pixels.

    Attributes:
        total: number of the pictures.
        facts: all that decides the pictures, as plain values.
    """

    def __init__(
        self, datasets: Sequence[Dataset], held_back: Sequence[NDArray[np.int64]], decoder: Decoder, data: DataConfig, side: int
    ) -> None:
        self._datasets, self._held_back, self._decoder, self._side = datasets, held_back, decoder, side
        self._rule = CropRule.of(replace(data, crop="center", flip=False))
        self._readers = [SequentialReader(each.reader) for each in datasets]
        self.total = sum(each.manifest.total_samples - len(ids) for each, ids in zip(datasets, held_back, strict=True))
        self.facts: dict[str, Any] = {
            "data_sets": [f"{each.manifest.fingerprint:016x}" for each in datasets],
            "held_back": [len(ids) for ids in held_back],
            "pictures": self.total,
        }

    def units(self, rows: int) -> list[Unit]:
        """Cuts all ids into units of `rows` consecutive ones of one data set; the last of a data set may be smaller."""
        found: list[Unit] = []
        for dataset in self._datasets:
            for unit in cut_units(dataset.manifest.total_samples, rows):
                found.append(Unit(len(found), dataset.first_id + unit.start, dataset.first_id + unit.stop))
        return found

    def count(self, unit: Unit) -> int:
        """The number of a unit's pictures that are not held back."""
        number = self._of(unit.start)
        first = self._datasets[number].first_id
        return len(unit) - int(np.diff(np.searchsorted(self._held_back[number], [unit.start - first, unit.stop - first]))[0])

    def read(self, unit: Unit) -> Iterator[tuple[NDArray[np.uint8], list[int], list[BadSample]]]:
        """Reads the pictures of a unit, some at a time, from the front of the shards to their back.

        Yields:
            Pictures uint8 (n, side, side, 3), their ids, ascending, and an error for each one that can't be read.

        Raises:
            ShardError: a shard can't be read.
        """
        number = self._of(unit.start)
        dataset = self._datasets[number]
        left_out = set(self._held_back[number].tolist())
        for batch in unit.batches(_TOGETHER):
            own = range(batch.start - dataset.first_id, batch.stop - dataset.first_id)
            found = zip(own, self._readers[number].read(own), strict=True)
            wanted = [(each, raw) for each, raw in found if each not in left_out]
            bad = [raw for _, raw in wanted if isinstance(raw, BadSample)]
            good = [(each, raw.data) for each, raw in wanted if not isinstance(raw, BadSample)]
            pictures, reasons = self._decoded([data for _, data in good])
            for (each, _), reason in zip(good, reasons, strict=True):
                if reason is not None:
                    (shard,), (row,) = dataset.manifest.locate([each])
                    bad.append(dataset.reader.bad(dataset.first_id + each, int(shard), int(row), "undecodable", reason))
            readable = np.array([reason is None for reason in reasons], np.bool_)
            ids = [dataset.first_id + each for (each, _), reason in zip(good, reasons, strict=True) if reason is None]
            yield pictures[readable], ids, bad

    def read_some(self, ids: Sequence[int]) -> NDArray[np.uint8]:
        """Reads pictures by their ids: uint8 (n, side, side, 3).

        Raises:
            InpaintingError: a picture can't be read any more.
            ShardError: a shard can't be read.
        """
        data: list[bytes] = []
        for each in ids:
            dataset = self._datasets[self._of(each)]
            (shard,), (row,) = dataset.manifest.locate([each - dataset.first_id])
            try:
                data.append(dataset.reader.read(each, int(shard), int(row))[0])
            except BadSample as error:
                raise InpaintingError(f"{error}: could be read when it was searched. Is the data set being written? Begin anew") from error
        return self._decoded(data)[0]

    def _decoded(self, data: Sequence[bytes | memoryview]) -> tuple[NDArray[np.uint8], list[str | None]]:
        """Decodes the crops, uint8 (n, side, side, 3), and gives the reason why one can't be decoded, or None, for each."""
        crops = np.zeros((len(data), self._side, self._side, 3), np.uint8)
        return crops, self._decoder.crops(data, list(crops), self._rule, [0] * len(data))

    def _of(self, sample: int) -> int:
        """The number of the data set that a sample belongs to."""
        return int(np.searchsorted([each.first_id for each in self._datasets], sample, side="right")) - 1
