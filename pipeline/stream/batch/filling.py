"""What a thread does for some samples of a batch: read, decode, crop and mask them, and find others in place of those that can't be used.

In: the samples of a task, as `batch.Places` has them. Out: their places in the batch, filled.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from pipeline.config import DataConfig
from pipeline.masking.source import MaskSource
from pipeline.stream.batch.batch import Pending, Place, Places
from pipeline.stream.batch.quarantine import Quarantine
from pipeline.stream.buffers import Scratch
from pipeline.stream.counters import Counters
from pipeline.stream.dataset import Position, Source
from pipeline.stream.decode.crop import draws_of
from pipeline.stream.decode.decoder import Decoder
from pipeline.stream.read.samples import BadSample
from shards.errors import ShardCorrupt, ShardError
from shards.keyed import derived_keys, sample_keys

_LARGEST_KEPT = 16 << 20  # bytes of one task's files, from one task to the next
_MASK = 2  # purpose of random numbers, beside the crop's and the model's


class Filler:
    """Fills the places of a batch; any number of threads may use it at once.

    Args:
        data: how pictures are read.
        mask: where masks come from; None gives masks without a dropped pixel.
        decoder: of the run.
        quarantine: gets the unreadable samples.
        counters: gets decode_seconds and images.
    """

    def __init__(self, data: DataConfig, mask: MaskSource | None, decoder: Decoder, quarantine: Quarantine, counters: Counters) -> None:
        self.data = data
        self.mask = mask
        self.decoder = decoder
        self.quarantine = quarantine
        self.counters = counters
        self._files = Scratch(_LARGEST_KEPT)

    def samples(self, source: Source, epoch: int, places: NDArray[np.int64], ids: NDArray[np.int64]) -> Places:
        """What the threads need to know of some samples, drawn for all at once, which costs next to nothing.

        Args:
            source: the samples'.
            epoch: of the source.
            places: int64 (n,), in the rank's share of the batch.
            ids: int64 (n,), of the source's manifest.
        """
        keys = sample_keys(source.seed, epoch, ids)
        crops, mask_keys = draws_of(keys, self.data.crop), derived_keys(keys, _MASK)
        return Places(places, source.first_id + ids, *source.manifest.locate(ids), keys, mask_keys, crops)

    def fill(self, pending: Pending, source: Source, position: Position, samples: Places) -> None:
        """Reads, decodes and masks some pictures of a batch.

        Args:
            pending: the batch.
            source: the pictures'.
            position: of the source where the batch begins.
            samples: the pictures.

        Raises:
            QuarantineFull: more samples are unreadable than allowed.
            ShardError: a shard can't be had or is damaged.
        """
        started = time.thread_time()
        for place, error in self._fill_places(pending, source, samples.each()):
            self._substitute(pending, source, position, place, error)
        self.counters.add(decode_seconds=time.thread_time() - started, images=len(samples.places))

    def _fill_places(self, pending: Pending, source: Source, samples: Sequence[Place]) -> list[tuple[int, BadSample]]:
        """Fills places with samples; returns those whose sample is bad. Each stage is done for all samples before the next: a decode
        clears the processor's caches, and the little that the other stages do costs twice in cold ones."""
        data, bad = self.data, list[tuple[int, BadSample]]()
        read: list[Place] = []
        pictures: list[bytes | memoryview] = []
        here = self._read_here(pending, source, samples)
        for sample in samples:
            try:
                picture, label = here.get(sample.place) or self._read(source, sample, pending.fetched.pop(sample.place, None))
            except BadSample as error:
                bad.append((sample.place, error.with_traceback(None)))
                continue
            read.append(sample)
            pictures.append(picture)
            pending.labels[sample.place] = label
        places = [pending.image_rows[each.place] for each in read]
        keys, draws = [each.key for each in read], [each.draws for each in read]
        reasons = self.decoder.crops(pictures, places, data.crop, data.flip, keys, data.max_pixels, draws)
        for each, reason in zip(read, reasons, strict=True):
            if reason is not None:
                bad.append((each.place, source.samples.bad(each.sample_id, each.shard, each.row, "undecodable", reason)))
            elif self.mask is None:
                pending.mask_rows[each.place] = False
            else:
                self.mask.draw(each.mask_key, pending.mask_rows[each.place])
        return bad

    def _read_here(self, pending: Pending, source: Source, samples: Sequence[Place]) -> dict[int, tuple[memoryview, int]]:
        """What of some samples lies on this machine and is right, by place; without all that needs a closer look, or was asked of the
        store."""
        plain = [
            each
            for each in samples
            if each.place not in pending.fetched and each.shard not in source.lost and self.quarantine.find(each.sample_id) is None
        ]
        found = source.samples.read_here([each.shard for each in plain], [each.row for each in plain], self._files)
        return {each.place: here for each, here in zip(plain, found, strict=True) if here is not None}

    def _read(self, source: Source, sample: Place, fetched: Future[bytes] | None) -> tuple[bytes, int]:
        """The bytes and the label of a sample; BadSample where it is known or turns out to be unusable."""
        shard, row = sample.shard, sample.row
        known = self.quarantine.find(sample.sample_id)
        if known is not None and known.cause != "undecodable":  # whether the part that a crop needs decodes is another question each epoch
            raise known
        if self.data.unavailable == "stop":
            return source.samples.read(sample.sample_id, shard, row, fetched)
        try:
            if (lost := source.lost.get(shard)) is not None:
                raise ShardCorrupt(lost)
            return source.samples.read(sample.sample_id, shard, row, fetched)
        except ShardError as error:
            source.lost[shard] = str(error)  # asked for once, not once a sample
            name = source.samples.reader.store.describe(source.manifest.records[shard].name)
            raise BadSample(sample.sample_id, f"row {row}", name, "unavailable", str(error)) from error

    def _substitute(self, pending: Pending, source: Source, position: Position, place: int, error: BadSample) -> None:
        """Fills a place whose sample is bad with the next good one of its block, the same whoever does it."""
        self.quarantine.add(error)
        (number,) = np.flatnonzero(source.places == place).tolist()
        epoch, consumed = position
        for candidate in source.order.substitutes(epoch, consumed, source.part.start + number):
            (shard,), _ = source.manifest.locate([candidate])
            if int(shard) in source.lost:
                continue  # its samples are counted when their own turn comes
            samples = self.samples(source, epoch, np.array([place]), np.array([candidate]))
            bad = self._fill_places(pending, source, samples.each())
            if not bad:
                pending.expect(samples)
                return
            self.quarantine.add(bad[0][1])
        raise ShardCorrupt(f"no sample can be read in place of another: {error}") from error
