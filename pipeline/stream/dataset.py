"""One data set of a stream, and how several are mixed.

Each source keeps its own order, lanes and epochs; a global batch takes a fixed number of samples of each, spread
evenly over its places, so that every rank and every batch-norm group sees the mixture. A rank's share of the batch is
then a contiguous part of each source's own share, and a mixture is as exact and as elastic as one source.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import DataConfig, SourceConfig
from pipeline.stream.counters import Counters
from pipeline.stream.mixture import Position, named_sources, source_seed
from pipeline.stream.order import OrderError, SampleOrder
from pipeline.stream.read.cache import ShardCache, default_folder
from pipeline.stream.read.samples import SampleReader
from pipeline.stream.read.storage import ResumingReader, reading_store
from shards.dataset import manifest as manifests
from shards.dataset.manifest import Manifest
from shards.errors import ManifestMismatch


class Source:
    """One data set, its order and its place in a rank's batches.

    Args:
        name: as `data.sources` calls it; empty where it is the only one.
        config: where it is.
        data: how it is read.
        seed: of its order, crops and masks.
        counters: get what the reader and the cache count.
        parts: sources of this process that share its open files.

    Raises:
        ShardError: the data set can't be had or is damaged.
    """

    def __init__(self, name: str, config: SourceConfig, data: DataConfig, seed: int, counters: Counters, parts: int = 1) -> None:
        options = {**data.storage_options, **config.storage_options}
        self.name = name
        self.seed = seed
        self._data = data

        def reader_of(url: str) -> ResumingReader:
            return ResumingReader(reading_store(url, options, data.stall_seconds), data.retries, data.stall_seconds, counters, parts)

        index_reader = reader_of(manifests.place(config.shards)[0])
        self.manifest: Manifest = manifests.load(config.shards, reader=index_reader)
        self.mean_bytes = max(1, sum(record.size for record in self.manifest.records) // max(1, self.manifest.total_samples))
        """Of a sample, with what its tar has around it."""
        elsewhere = self.manifest.shards_url != self.manifest.url
        reader = reader_of(self.manifest.shards_url) if elsewhere else index_reader
        cache = None
        if reader.store.local is None and data.cache != "none":
            folder = default_folder() if data.cache == "auto" else Path(data.cache).expanduser()
            cache = ShardCache(folder, int(data.cache_gb * 1e9), self.manifest, reader, counters, parts=parts)
        self.samples = SampleReader(self.manifest, reader, index_reader, cache, counters)
        self.first_id = 0
        """What is added to this source's sample ids to make them unlike every other source's."""
        self.lost: dict[int, str] = {}
        """Why shards can't be had, where the run goes on without them."""
        self._prefetched: Position | None = None

    def place(self, count: int, places: NDArray[np.int64], rank_part: slice, lanes: int) -> None:
        """Gives the source its share of every batch.

        Args:
            count: samples of it in a global batch.
            places: int64 (count,), where they stand in the global batch, ascending.
            rank_part: the rank's part of the global batch.
            lanes: of this source's order; the greatest common divisor with the count is used.

        Raises:
            OrderError: the data set holds less than the share of one batch.
        """
        self.order = SampleOrder(self.manifest, self.seed, count, lanes, self._data.shuffle_block, self._data.tail)
        start, stop = (int(edge) for edge in np.searchsorted(places, [rank_part.start, rank_part.stop]))
        self.part = slice(start, stop)
        self.places = places[start:stop] - rank_part.start
        self._prefetched = None

    def state(self, position: Position) -> dict[str, int]:
        """The position and what makes it meaningful, under the source's name."""
        facts = {
            "epoch": position[0],
            "consumed": position[1],
            "lanes": self.order.lanes,
            "data_set": self.manifest.fingerprint,
        }
        if self.name:
            facts["seed"] = self.seed  # follows from its place among the sources
        return {self._key(fact): value for fact, value in facts.items()}

    def lanes_and_position(self, state: Mapping[str, int]) -> tuple[int, Position]:
        """The lanes and the position that a state names.

        Raises:
            ManifestMismatch: the state knows no such source, or another data set under its name.
            OrderError: the share of the batch does not fit the lanes.
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
                f"({self.samples.index_reader.store.describe()} holds other shards now): set it back, or start a new run"
            )
        if self.name and int(state[self._key("seed")]) != self.seed:
            raise ManifestMismatch("data.sources: their order is part of the run and was another one: set it back, or start a new run")
        lanes, count = int(state[self._key("lanes")]), self.order.global_batch_size
        if count % lanes:
            what = f"its share of the batch, {count} samples," if self.name else f"a global batch of {count}"
            raise OrderError(
                f"the run was started with {lanes} lanes{f' of {self.name}' if self.name else ''}: {what} must be a multiple of it"
            )
        return lanes, (int(state[self._key("epoch")]), int(state[self._key("consumed")]))

    def prefetch(self, position: Position) -> None:
        """Names the shards of this block and the next to the cache, once a block."""
        cache = self.samples.cache
        block = (position[0], position[1] // self.order.lanes // self.order.shuffle_block)
        if cache is not None and block != self._prefetched:
            self._prefetched = block
            cache.prefetch(self.order.shards_ahead(*position, self.part, blocks=2))

    def next(self, position: Position) -> Position:
        """The position itself, or the start of the next epoch where this one has no batch left."""
        return self.order.settled(position)

    def after(self, position: Position) -> Position:
        """The position behind the batch at a position."""
        return self.next((position[0], position[1] + self.order.global_batch_size))

    def abandon(self) -> None:
        """Ends every wait for another attempt to reach the store."""
        self.samples.reader.abandon()
        self.samples.index_reader.abandon()

    def close(self) -> None:
        """Ends the downloads."""
        self.abandon()
        if self.samples.cache is not None:
            self.samples.cache.close()

    def _key(self, fact: str) -> str:
        return f"{self.name}.{fact}" if self.name else fact


def open_sources(data: DataConfig, seed: int, counters: Counters) -> list[Source]:
    """The data sets that a configuration names, each with ids and random numbers of its own.

    Raises:
        ShardError: one of them can't be had or is damaged.
    """
    named = named_sources(data)
    found: list[Source] = []
    try:
        for number, (name, config) in enumerate(named.items()):
            source = Source(name, config, data, source_seed(seed, number), counters, len(named))
            if found:
                source.first_id = found[-1].first_id + found[-1].manifest.total_samples
            found.append(source)
    except BaseException:
        for source in found:
            source.close()
        raise
    return found
