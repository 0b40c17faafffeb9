"""A thread's work on a task: it reads, decodes, crops and masks some samples of a batch, and substitutes others for bad ones.

In: the planned samples of a task. Out: their slots of the batch, filled.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from pipeline.config import DataConfig
from pipeline.masking.source import MaskSource
from pipeline.stream.batch.batch import Filling
from pipeline.stream.batch.quarantine import Quarantine
from pipeline.stream.buffers import Scratch
from pipeline.stream.counters import Counters
from pipeline.stream.dataset import Dataset
from pipeline.stream.decode.crop import CropRule
from pipeline.stream.decode.decoder import Decoder
from pipeline.stream.mixture import Position
from pipeline.stream.plan import PlannedSample, PlannedSamples
from pipeline.stream.read.samples import BadSample
from shards.errors import ShardCorrupt

_LARGEST_KEPT = 16 << 20  # bytes of one task's files that a thread keeps for its next task


class Filler:
    """Fills the slots of a batch; any number of threads may use it at once.

    Args:
        data: settings of crops and limits.
        mask: source of the masks; None gives masks without a dropped pixel.
        decoder: decoder of the run.
        quarantine: gets the unreadable samples.
        counters: gets decode_seconds and images.
    """

    def __init__(self, data: DataConfig, mask: MaskSource | None, decoder: Decoder, quarantine: Quarantine, counters: Counters) -> None:
        self.mask = mask
        self.decoder = decoder
        self.quarantine = quarantine
        self.counters = counters
        self.rule = CropRule.of(data)
        """Settings of the crops, which a position that is loaded may change."""
        self._files = Scratch(_LARGEST_KEPT)

    def fill(self, filling: Filling, dataset: Dataset, position: Position, samples: PlannedSamples) -> None:
        """Fills the slots of some samples of a batch.

        Args:
            filling: the batch.
            dataset: data set of the samples.
            position: position of the data set where the batch begins.
            samples: samples of the task.

        Raises:
            QuarantineFull: more samples are unreadable than allowed.
            ShardError: a shard can't be read or is damaged.
        """
        started = time.thread_time()
        for slot, error in self._fill_slots(filling, dataset, samples.each()):
            self._substitute(filling, dataset, position, slot, error)
        self.counters.add(decode_seconds=time.thread_time() - started, images=len(samples.slots))

    def _fill_slots(self, filling: Filling, dataset: Dataset, samples: Sequence[PlannedSample]) -> list[tuple[int, BadSample]]:
        """Fills the slots of samples; returns the slots whose sample is bad. Each stage is done for all samples before the next one,
        because a decode clears the processor's caches and the little work of the other stages costs twice as much in cold ones."""
        bad = list[tuple[int, BadSample]]()
        read: list[PlannedSample] = []
        pictures: list[bytes | memoryview] = []
        here = self._read_here(filling, dataset, samples)
        for sample in samples:
            try:
                picture, label = here.get(sample.slot) or self._read(filling, dataset, sample)
            except BadSample as error:
                bad.append((sample.slot, error.with_traceback(None)))
                continue
            read.append(sample)
            pictures.append(picture)
            filling.labels[sample.slot] = label
        out = [filling.image_rows[each.slot] for each in read]
        reasons = self.decoder.crops(pictures, out, self.rule, [each.key for each in read], [each.draws for each in read])
        for each, reason in zip(read, reasons, strict=True):
            if reason is not None:
                bad.append((each.slot, dataset.reader.bad(each.sample_id, each.shard, each.row, "undecodable", reason)))
            elif self.mask is None:
                filling.mask_rows[each.slot] = False
            else:
                key = filling.plan.mask_key
                self.mask.draw(each.mask_key if key is None else key, filling.mask_rows[each.slot])
        return bad

    def _read_here(self, filling: Filling, dataset: Dataset, samples: Sequence[PlannedSample]) -> dict[int, tuple[memoryview, int]]:
        """Bytes and labels of samples that lie on this machine and are proven, by slot. Samples that need a closer look, or were asked of
        the store, are left out."""
        plain = [
            each
            for each in samples
            if each.slot not in filling.fetched and each.shard not in dataset.lost and self.quarantine.find(each.sample_id) is None
        ]
        found = dataset.reader.read_here([each.shard for each in plain], [each.row for each in plain], self._files)
        return {each.slot: here for each, here in zip(plain, found, strict=True) if here is not None}

    def _read(self, filling: Filling, dataset: Dataset, sample: PlannedSample) -> tuple[bytes, int]:
        """The bytes and the label of a sample; BadSample where it is known or turns out to be unusable."""
        fetched = filling.fetched.pop(sample.slot, None)
        known = self.quarantine.find(sample.sample_id)
        if known is not None and known.cause != "undecodable":  # another epoch's crop may lie in a part of the picture that decodes
            raise known
        return dataset.read(sample, fetched)

    def _substitute(self, filling: Filling, dataset: Dataset, position: Position, slot: int, error: BadSample) -> None:
        """Fills a slot whose sample is bad with the next good one of its block, the same on every rank and in every attempt."""
        self.quarantine.add(error)
        for candidate in dataset.substitutes(position, slot):
            bad = self._fill_slots(filling, dataset, [candidate])
            if not bad:
                filling.substitute(candidate)
                return
            self.quarantine.add(bad[0][1])
        raise ShardCorrupt(f"no sample can be read in place of another: {error}") from error
