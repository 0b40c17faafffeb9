"""One data set of a stream: its order, its slots in a rank's batches, and where its samples are read from.

In: the URL of a data set and the settings of `data`. Out: plans of what the next batches hold, and the bytes of their samples. Each data
set keeps its own order, lanes and epochs; `pipeline.stream.mixture` deals the slots of a batch out to several.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import DataConfig, SourceConfig
from pipeline.mapping import expanded
from pipeline.stream.counters import Counters
from pipeline.stream.mixture import Position, dataset_seed, named_sources
from pipeline.stream.order import OrderError, SampleOrder
from pipeline.stream.plan import PlannedSample, PlannedSamples, plan_samples
from pipeline.stream.read.cache import ShardCache
from pipeline.stream.read.cache_folder import default_folder
from pipeline.stream.read.fetch import Fetcher
from pipeline.stream.read.samples import BadSample, SampleReader
from pipeline.stream.read.storage import ResumingReader, reading_store
from shards.counting import counted
from shards.dataset import manifest as manifests
from shards.dataset.manifest import Manifest
from shards.errors import ManifestMismatch, ShardCorrupt, ShardError

HELD_BACK = "held_back"
"""Name, in a position's state, of the number of samples that are in no batch. Positions of runs before there were any lack it."""


class Dataset:
    """One data set of a stream. It has an order and slots from the first call of `take_slots` on.

    Args:
        name: name of the data set in `data.sources`; empty for the only one.
        config: URL and store of the data set.
        data: settings for reading it.
        seed: seed of its order, crops and masks.
        first_id: number added to its sample ids, which makes them unlike those of every other data set of the stream.
        counters: gets the counts of the reader and the cache.
        parts: data sets of this process that share its open files.

    Raises:
        ShardError: the data set can't be read or is damaged.
    """

    def __init__(
        self, name: str, config: SourceConfig, data: DataConfig, seed: int, first_id: int, counters: Counters, parts: int = 1
    ) -> None:
        options = {**data.storage_options, **config.storage_options}
        self.name = name
        self.seed = seed
        self.first_id = first_id
        self._data = data

        def reader_of(url: str) -> ResumingReader:
            return ResumingReader(reading_store(url, options, data.stall_seconds), data.retries, data.stall_seconds, counters, parts)

        index_reader = reader_of(manifests.split_manifest_url(config.shards)[0])
        self.manifest: Manifest = manifests.load(config.shards, reader=index_reader)
        self.mean_bytes = max(1, sum(record.size for record in self.manifest.records) // max(1, self.manifest.total_samples))
        """Mean bytes of a sample, its part of the tar's headers and padding included."""
        elsewhere = self.manifest.shards_url != self.manifest.url
        reader = reader_of(self.manifest.shards_url) if elsewhere else index_reader
        self.is_local = reader.store.local is not None
        """True for shards in a folder of this machine, which are read in place."""
        cache = None
        if not self.is_local and data.cache != "none":
            folder = default_folder() if data.cache == "auto" else Path(expanded(data.cache, "data.cache"))
            cache = ShardCache(folder, int(data.cache_gb * 1e9), self.manifest, reader, counters, parts=parts)
        self.reader = SampleReader(self.manifest, reader, index_reader, cache, counters)
        self.lost: dict[int, str] = {}
        """Reasons why shards can't be read, by shard, where the run goes on without them."""
        self._prefetched: Position | None = None

    def take_slots(self, count: int, slots: NDArray[np.int64], rank_slice: slice, lanes: int, held_back: int) -> None:
        """Gives the data set its slots of every batch.

        Args:
            count: samples of the data set in a global batch.
            slots: int64 (count,), indexes of those samples in the global batch, ascending.
            rank_slice: the rank's slice of the global batch.
            lanes: lanes of the data set's order; their greatest common divisor with the count is used.
            held_back: samples of the data set that are in no batch.

        Raises:
            OrderError: the data set holds fewer samples than one batch takes.
        """
        self.order = SampleOrder(self.manifest, self.seed, count, lanes, self._data.shuffle_block, self._data.tail, held_back)
        start, stop = (int(edge) for edge in np.searchsorted(slots, [rank_slice.start, rank_slice.stop]))
        self._rank_slice = slice(start, stop)
        self._slots = slots[start:stop] - rank_slice.start
        self._prefetched = None

    def describe(self, global_batch: int) -> str:
        """One line for the console: what the data set holds, and its part of a global batch where it has a name."""
        name = f"{self.name}: {self.order.global_batch_size} of every {counted(global_batch, 'sample')}, " if self.name else ""
        what = f"{counted(self.manifest.total_samples, 'picture')} in {counted(len(self.manifest.records), 'shard')}"
        held_back = f", {len(self.held_back)} of them held back" if len(self.held_back) else ""
        return f"{name}{what}{held_back}, {counted(self.order.batches_per_epoch(), 'batch')} an epoch"

    @property
    def held_back(self) -> NDArray[np.int64]:
        """Ids, in the data set, of the samples that are in no batch: int64 (n,), ascending."""
        return self.order.samples.held_back

    # ---- the position

    def next(self, position: Position) -> Position:
        """The position itself, or the start of the next epoch if this one has no batch left."""
        return self.order.skip_finished_epoch(position)

    def after(self, position: Position) -> Position:
        """The position behind the batch at a position."""
        return self.next((position[0], position[1] + self.order.global_batch_size))

    def state(self, position: Position) -> dict[str, int]:
        """The position and the facts that make it meaningful, each under the data set's name."""
        facts = {
            "epoch": position[0],
            "consumed": position[1],
            "lanes": self.order.lanes,
            HELD_BACK: len(self.held_back),
            "data_set": self.manifest.fingerprint,
        }
        if self.name:
            facts["seed"] = self.seed  # follows from the data set's number in data.sources
        return {self._key(fact): value for fact, value in facts.items()}

    def lanes_and_position(self, state: Mapping[str, int]) -> tuple[int, int, Position]:
        """The lanes, the number of held-back samples and the position that a state names.

        Raises:
            ManifestMismatch: the state knows no data set of this name, or another one under its name.
            OrderError: the samples of a batch do not fit the lanes.
        """
        if self._key("epoch") not in state:
            raise ManifestMismatch(
                "the position to continue from was reached with other data.sources"
                f"{f' (none is called {self.name})' if self.name else ''}: set them back, or start a new run"
            )
        if int(state[self._key("data_set")]) != self.manifest.fingerprint:
            where = f"data.sources.{self.name}.shards" if self.name else "data.shards"
            raise ManifestMismatch(
                f"the position to continue from was reached with another {where} "
                f"({self.reader.index_reader.store.describe()} holds other shards now): set it back, or start a new run"
            )
        if self.name and int(state[self._key("seed")]) != self.seed:
            raise ManifestMismatch(
                "data.sources names the data sets in another order than the run began with, and their order is part of the run: "
                "set it back, or start a new run"
            )
        lanes, count = int(state[self._key("lanes")]), self.order.global_batch_size
        if count % lanes:
            what = f"its {counted(count, 'sample')} of a batch" if self.name else f"a global batch of {count}"
            raise OrderError(
                f"the run was started with {counted(lanes, 'lane')}{f' of {self.name}' if self.name else ''}: "
                f"{what} must be a multiple of that number"
            )
        return lanes, int(state[self._key(HELD_BACK)]), (int(state[self._key("epoch")]), int(state[self._key("consumed")]))

    def _key(self, fact: str) -> str:
        return f"{self.name}.{fact}" if self.name else fact

    # ---- plans

    def plan(self, position: Position) -> PlannedSamples:
        """Plans the rank's samples of the batch at a position."""
        epoch, consumed = position
        return self._plan(epoch, self._slots, self.order.take(epoch, consumed, self._rank_slice))

    def substitutes(self, position: Position, slot: int) -> Iterator[PlannedSample]:
        """Plans what replaces an unreadable sample, in the order of `SampleOrder.substitutes`; lost shards are passed over.

        Args:
            position: position where the batch begins.
            slot: slot of the unreadable sample.
        """
        epoch, consumed = position
        (number,) = np.flatnonzero(self._slots == slot).tolist()
        for candidate in self.order.substitutes(epoch, consumed, self._rank_slice.start + number):
            (shard,), _ = self.manifest.locate([candidate])
            if int(shard) not in self.lost:  # the samples of a lost shard are counted as bad in their own turn
                yield from self._plan(epoch, np.array([slot]), np.array([candidate])).each()

    def _plan(self, epoch: int, slots: NDArray[np.int64], ids: NDArray[np.int64]) -> PlannedSamples:
        return plan_samples(self.manifest, self.seed, epoch, self.first_id, self._data.crop, slots, ids)

    # ---- bytes

    def fetch(self, samples: PlannedSamples, batch: int, fetcher: Fetcher) -> dict[int, Future[bytes]]:
        """Asks the store ahead for the samples that this machine does not hold.

        Args:
            samples: samples of one batch.
            batch: number of the batch; requests of a smaller number go first.
            fetcher: threads that send the requests.

        Returns:
            The bytes to come, by slot.
        """
        absent = self.absent(samples)
        if not absent.any():
            return {}
        data = fetcher.start(self.reader, batch, samples.shards[absent], samples.rows[absent])
        return dict(zip(samples.slots[absent].tolist(), data, strict=True))

    def absent(self, samples: PlannedSamples) -> NDArray[np.bool_]:
        """Bool (n,): True for samples that have to come from a remote store; all False for shards on this machine."""
        return self.reader.absent(samples.shards)

    def read(self, sample: PlannedSample, fetched: Future[bytes] | None) -> tuple[bytes, int]:
        """The bytes and the label of a sample, as `SampleReader.read`.

        Args:
            sample: the sample.
            fetched: the bytes to come, if `fetch` asked for them.

        Raises:
            BadSample: the sample's bytes are wrong, or its shard can't be read and `data.unavailable` says substitute.
            ShardError: the shard can't be read.
        """
        if self._data.unavailable == "stop":
            return self.reader.read(sample.sample_id, sample.shard, sample.row, fetched)
        try:
            if (lost := self.lost.get(sample.shard)) is not None:
                raise ShardCorrupt(lost)
            return self.reader.read(sample.sample_id, sample.shard, sample.row, fetched)
        except ShardError as error:
            self.lost[sample.shard] = str(error)  # the store is asked once, not once a sample
            name = self.reader.reader.store.describe(self.manifest.records[sample.shard].name)
            raise BadSample(sample.sample_id, f"row {sample.row}", name, "unavailable", str(error)) from error

    # ---- downloads

    def prefetch(self, position: Position) -> None:
        """Names the shards of the position's block and the next one to the cache, once a block."""
        cache = self.reader.cache
        block = (position[0], position[1] // self.order.lanes // self.order.shuffle_block)
        if cache is not None and block != self._prefetched:
            self._prefetched = block
            cache.prefetch(self.order.shards_ahead(*position, self._rank_slice, blocks=2))

    def hold_downloads(self, held: bool) -> None:
        """Lets the cache begin no download while held."""
        if self.reader.cache is not None:
            self.reader.cache.hold_back(held)

    def failures(self) -> dict[int, str]:
        """Reasons why shards could not be cached, by shard; their samples are read as ranges instead."""
        return dict(self.reader.cache.failures) if self.reader.cache is not None else {}

    def abandon(self) -> None:
        """Ends every wait for another attempt to reach the store."""
        self.reader.reader.abandon()
        self.reader.index_reader.abandon()

    def close(self) -> None:
        """Ends the downloads."""
        self.abandon()
        if self.reader.cache is not None:
            self.reader.cache.close()


def open_datasets(data: DataConfig, seed: int, counters: Counters) -> list[Dataset]:
    """Opens the data sets that a configuration names, each with ids and random numbers of its own.

    Raises:
        ShardError: a data set can't be read or is damaged.
    """
    named = named_sources(data)
    found: list[Dataset] = []
    try:
        for number, (name, config) in enumerate(named.items()):
            first_id = found[-1].first_id + found[-1].manifest.total_samples if found else 0
            found.append(Dataset(name, config, data, dataset_seed(seed, number), first_id, counters, len(named)))
    except BaseException:
        for dataset in found:
            dataset.close()
        raise
    return found
