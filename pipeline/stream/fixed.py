"""Chosen samples with fixed crops and masks: the same in every step and attempt, whichever rank reads them. A run is evaluated on them.

In: opened data sets and the ids of samples in each. Out: `FixedSamples` of any of them, by their numbers in the choice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.stream.batch.batch import MODEL
from pipeline.stream.dataset import Dataset
from pipeline.stream.decode.crop import CropRule
from pipeline.stream.decode.decoder import Decoder
from pipeline.stream.loader import StreamConfig, StreamLoader
from pipeline.stream.plan import plan_samples
from pipeline.stream.read.samples import BadSample
from shards.keyed import derived_keys, key_of, permutation

_FIXED = 6  # purpose of random numbers, beside those of `held_back`
_TOGETHER = 8  # samples of one task: few enough that all threads have work


@dataclass(frozen=True)
class FixedSamples:
    """Some of the chosen samples. A sample that can't be read has a black picture and the label -1.

    Attributes:
        images: uint8 (n, H, W, 3), RGB.
        masks: bool (n, H, W), True where pixels are dropped.
        labels: int64 (n,), -1 where unknown.
        keys: int64 (n,), random keys for all that a model draws per sample.
        readable: bool (n,).
    """

    images: Tensor
    masks: Tensor
    labels: Tensor
    keys: Tensor
    readable: Tensor


class Decoding(Protocol):
    """The decoder that pictures are read with, and how many threads may use it; a `StreamLoader` is one.

    Attributes:
        decoder: decoder of the pictures.
        threads: threads that decode.
    """

    @property
    def decoder(self) -> Decoder: ...
    @property
    def threads(self) -> int: ...


class FixedChoice:
    """A choice of samples from data sets, spread evenly over the ids that it is taken from.

    Args:
        config: settings of the stream that the samples come from; seed, crop and masks are its own.
        loader: decoder of the pictures and its threads.
        datasets: opened data sets.
        ids: ids of the samples to choose from, one array int64 (n,) for each data set.
        most: largest number of samples that are chosen.

    Attributes:
        datasets: the data sets.
        count: number of chosen samples.
        labelled: True where they have labels of the same classes; False where data sets have no labels, or do not share their classes.
        digest: hexadecimal digits that differ between choices of other samples, crops or masks.
    """

    def __init__(
        self, config: StreamConfig, loader: Decoding, datasets: Sequence[Dataset], ids: Sequence[NDArray[np.int64]], most: int
    ) -> None:
        self._config, self._decoder, self._threads = config, loader.decoder, max(loader.threads, config.data.requests)
        self.datasets = datasets
        total = sum(map(len, ids))
        self.count = min(most, total)
        spread = np.arange(self.count) * total // max(1, self.count)
        shuffled = spread[permutation(self.count, config.seed, _FIXED)]  # otherwise neighbours would be of one class
        ends = np.cumsum([len(each) for each in ids])
        self._of = np.searchsorted(ends, shuffled, side="right")
        self._ids = np.concatenate(ids)[shuffled] if total else np.empty(0, np.int64)
        self.digest = self._digest()
        names = {dataset.manifest.classes for dataset in datasets}  # numbers without names mean the same within one data set alone
        shared = len(datasets) == 1 or (len(names) == 1 and () not in names)
        self.labelled = shared and all(dataset.manifest.labelled for dataset in datasets)

    def _digest(self) -> str:
        data, size = self._config.data, self._config.image_size
        mask = np.zeros((size, size), np.bool_)
        if self._config.mask is not None:
            self._config.mask.draw(0, mask)  # masks of other settings differ already for this key
        facts = [size, data.crop, data.flip, *((dataset.manifest.fingerprint, dataset.seed) for dataset in self.datasets)]
        seen = hashlib.sha256(repr(facts).encode())
        for part in (mask, self._of.astype(np.int64), self._ids):
            seen.update(part.tobytes())
        return seen.hexdigest()[:16]

    def sample_id(self, number: int) -> int:
        """The id, among the samples of all data sets laid end to end, of the sample with a number in the choice."""
        return int(self.datasets[self._of[number]].first_id + self._ids[number])

    def read(self, numbers: Sequence[int]) -> tuple[FixedSamples, list[BadSample]]:
        """Reads samples and draws their crops and masks.

        Args:
            numbers: numbers of the samples in the choice.

        Returns:
            The samples in the order of the numbers, and an error for each one that can't be read.

        Raises:
            ShardError: a shard can't be read.
        """
        count, size = len(numbers), self._config.image_size
        images, masks = np.zeros((count, size, size, 3), np.uint8), np.zeros((count, size, size), np.bool_)
        labels, keys, readable = np.full(count, -1, np.int64), np.zeros(count, np.uint64), np.zeros(count, np.bool_)
        bad: list[BadSample] = []

        def fill(places: NDArray[np.int64]) -> None:
            for dataset_number in np.unique(self._of[chosen[places]]):
                dataset = self.datasets[dataset_number]
                own = places[self._of[chosen[places]] == dataset_number]
                seed = key_of(dataset.seed, _FIXED) >> 1  # crops and masks that no epoch of the training has
                crop = self._config.data.crop
                for sample in plan_samples(dataset.manifest, seed, 0, dataset.first_id, crop, own, self._ids[chosen[own]]).each():
                    keys[sample.slot] = sample.key
                    try:
                        data, label = dataset.read(sample, None)
                    except BadSample as error:
                        bad.append(error)
                        continue
                    (why,) = self._decoder.crops([data], [images[sample.slot]], rule, [sample.key], [sample.draws])
                    if why is not None:
                        bad.append(dataset.reader.bad(sample.sample_id, sample.shard, sample.row, "undecodable", why))
                        continue
                    readable[sample.slot], labels[sample.slot] = True, label
                    if self._config.mask is not None:
                        self._config.mask.draw(sample.mask_key, masks[sample.slot])

        chosen = np.asarray(numbers, np.int64)
        rule = CropRule.of(self._config.data)
        with ThreadPoolExecutor(max(1, min(self._threads, -(-count // _TOGETHER))), thread_name_prefix="evaluation") as pool:
            list(pool.map(fill, np.array_split(np.arange(count), max(1, -(-count // _TOGETHER)))))
        images[~readable] = 0  # a decoder may have written a part
        model_keys = derived_keys(keys, MODEL).view(np.int64)
        return FixedSamples(*map(torch.from_numpy, (images, masks, labels, model_keys, readable))), bad


def held_back_choice(loader: StreamLoader, most: int) -> FixedChoice:
    """Chooses from the samples that the loader holds back."""
    return FixedChoice(loader.config, loader, loader.datasets, [dataset.held_back for dataset in loader.datasets], most)


def choice_of(loader: StreamLoader, dataset: Dataset, most: int) -> FixedChoice:
    """Chooses from all samples of another data set than those that the loader trains on."""
    config = replace(loader.config, seed=dataset.seed)
    return FixedChoice(config, loader, [dataset], [np.arange(dataset.manifest.total_samples)], most)
