"""The settings of a simulation: cluster, store and training, each figure with its unit, and the data set.

The fields of `Setup` are the options of the command line, and their texts are its `--help`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.config import CheckpointConfig, DataConfig
from shards.counting import counted
from shards.dataset import manifest as manifests
from shards.dataset.index import file_size
from shards.dataset.manifest import Manifest, ShardRecord
from shards.errors import ShardError
from shards.store import Options, Store

_DATA = DataConfig()
_TAR_BLOCK = 512
_TAR_MEMBERS = 3  # picture, label and note, each with a header
_TAR_END = 10_240
_MOST_SHARDS = 2_000_000
_INDEXES_READ = 8
_MOST = 2**53 - 1  # largest number up to which a float holds every integer
_MOST_BYTES = 2**62  # sums of int64 hold them with room to spare
_LEAST = 1e-9  # smallest figure above 0: a smaller one makes times that no float holds


class SimulationError(ShardError):
    """A figure that a cluster, a store or a data set can't have. The message names the option."""


def _option(default: float, unit: str, text: str, none: str = "", least: float = 0.0, most: float = _MOST) -> Any:
    """A field of `Setup` from `least` to `most`; `none` says what 0 means where 0 is allowed."""
    known = {"unit": unit, "help": text + (f"; 0: {none}" if none else ""), "least": least, "most": most}
    return dataclasses.field(default=default, metadata=known)


@dataclass(frozen=True)
class Setup:
    """The cluster, the store and the training.

    Raises:
        SimulationError: a figure is out of range.
    """

    nodes: int = _option(1, "N", "machines that train", least=1, most=100_000)
    ranks_per_node: int = _option(8, "N", "ranks (GPUs) of a node; they share its cache and its bandwidth", least=1, most=256)
    global_batch: int = _option(2048, "SAMPLES", "samples a step over all ranks", least=1, most=8_000_000)
    lanes: int = _option(_DATA.lanes, "N", "data.lanes: streams of the order", least=1, most=100_000)
    shuffle_block: int = _option(
        _DATA.shuffle_block, "SAMPLES", "data.shuffle_block: samples that are shuffled together in a lane", least=1
    )
    seed: int = _option(0, "N", "seed of the order", most=2**63 - 1)
    epochs: int = _option(3, "N", "passes over the data set", least=1)
    ready_batches: int = _option(_DATA.ready_batches, "N", "data.ready_batches: batches that a rank prepares ahead", least=1)
    cache_gb: float = _option(
        _DATA.cache_gb, "GB", "data.cache_gb: most bytes in a node's cache, in 10^9", "no cache, samples are read as ranges", most=4e9
    )
    bandwidth: float = _option(1000.0, "MB/s", "bandwidth from the store to one node, in 10^6 bytes a second", least=1e-6)
    store_bandwidth: float = _option(0.0, "MB/s", "bandwidth from the store to all nodes together", "no limit")
    connection_bandwidth: float = _option(0.0, "MB/s", "bandwidth of a single request", "no limit but the node's")
    latency: float = _option(30.0, "MS", "time from a request to its first byte, in milliseconds", "none")
    requests_per_second: float = _option(5500.0, "N/s", "requests of all nodes that the store (or its prefix) answers a second", "no limit")
    connections: int = _option(_DATA.requests, "N", "data.requests: ranges that a rank has under way at the same time", least=1)
    images_per_second: float = _option(1000.0, "N/s", "images a second that a rank trains on when it never waits", least=1e-6)
    decode_rate: float = _option(0.0, "N/s", "images a second that the threads of a rank can decode", "not a limit")
    preemption_minutes: float = _option(
        0.0, "MIN", "minutes between two kills without warning, after which a node goes on with an empty cache", "none"
    )
    restart_seconds: float = _option(120.0, "S", "time from a kill until the ranks ask for their first batch", "none")
    checkpoint_steps: int = _option(CheckpointConfig().every, "STEPS", "checkpoint.every: steps between two checkpoints", least=1)

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            value, least, most = getattr(self, entry.name), entry.metadata["least"], entry.metadata["most"]
            wanted = ""
            if not value <= most:  # NaN too
                wanted = f"{most:,.16g} or less" if isinstance(most, float) else f"{most:,} or less"
            elif value < least:
                wanted = "a number above 0" if 0 < least < 1 else f"{least:g} or more"
            elif isinstance(entry.default, int) and not isinstance(value, int):
                wanted = "a whole number"
            elif 0 < value < _LEAST:
                wanted = f"0, or {_LEAST:g} or more"
            if wanted:
                raise SimulationError(f"{option(entry.name)} {_shown(value)}: give {wanted}")
        if self.world_size > self.global_batch:
            raise SimulationError(
                f"{counted(self.world_size, 'rank')} (--nodes {self.nodes} x --ranks-per-node {self.ranks_per_node}) "
                f"get less than a sample each of --global-batch {self.global_batch}: raise it to {self.world_size} or more"
            )

    @property
    def world_size(self) -> int:
        """Ranks of all nodes."""
        return self.nodes * self.ranks_per_node


def option(name: str) -> str:
    """A field's option on the command line."""
    return "--" + name.replace("_", "-")


def _shown(value: float) -> str:
    """A figure for a message; the digits of a very large one are left out."""
    if not isinstance(value, int):
        return f"{value:g}"
    return f"{value}" if abs(value) <= 2**64 else "of more than 19 digits"


@dataclass(frozen=True)
class Subject:
    """The data set that a simulation is about.

    Attributes:
        manifest: manifest of the data set; made up if there is no data set yet.
        name: name of the data set for people, without credentials.
        picture_fraction: fraction of a shard's bytes that are pictures; the rest is tar headers, labels and notes.
        picture_source: origin of that figure.
        local: True for shards in a folder of this machine, where training reads them in place.
    """

    manifest: Manifest
    name: str
    picture_fraction: float
    picture_source: str
    local: bool = False


def stored(url: str, options: Options | None = None) -> Subject:
    """Reads the manifest of a data set that exists, and at most 8 of its indexes.

    Raises:
        StoreError, ManifestMismatch: the data set can't be read, or is damaged.
    """
    manifest = manifests.load(url, options)
    store = Store(manifest.url, options)
    filled = np.flatnonzero(manifest.sample_counts)
    chosen = filled[np.unique(np.linspace(0, len(filled) - 1, _INDEXES_READ).astype(int))]
    pictures = sum(int(manifest.read_index(store, shard).rows["length"].sum(dtype=np.int64)) for shard in chosen.tolist())
    fraction = pictures / sum(manifest.records[shard].size for shard in chosen.tolist())
    source = f"indexes of {len(chosen)} of {counted(len(filled), 'shard')}"
    return Subject(manifest, store.describe(), fraction, source, Store(manifest.shards_url, options).local is not None)


def made_up(samples: float, shard_samples: float, sample_bytes: float) -> Subject:
    """Makes up a data set that does not exist yet: equal shards, as `python -m shards build` writes them.

    Args:
        samples: samples of the data set.
        shard_samples: samples of a shard; the last one holds the rest.
        sample_bytes: mean bytes of a picture.

    Raises:
        SimulationError: a figure is not a whole number from 1 up, or there are too many shards to hold in memory, or more bytes than 62
            bits can count.
    """
    for name, value in (("samples", samples), ("shard_samples", shard_samples), ("sample_bytes", sample_bytes)):
        if not 1 <= value <= _MOST or value != int(value):
            raise SimulationError(f"{option(name)} {_shown(value)}: give a whole number from 1 up to {_MOST:,}")
    count, each, size = int(samples), int(shard_samples), int(sample_bytes)
    full, rest = divmod(count, each)
    if full > _MOST_SHARDS:
        raise SimulationError(
            f"--samples {count:,} in shards of {each:,} are {counted(full, 'shard')}, more than {_MOST_SHARDS:,}: raise --shard-samples"
        )
    stride = _TAR_MEMBERS * _TAR_BLOCK + 2 * _TAR_BLOCK + -(-size // _TAR_BLOCK) * _TAR_BLOCK

    def record(held: int) -> ShardRecord:
        return ShardRecord(counted(held, "sample"), -(-(held * stride + 2 * _TAR_BLOCK) // _TAR_END) * _TAR_END, "", held, "")

    if full * record(each).size + record(rest).size >= _MOST_BYTES:
        raise SimulationError(
            f"--samples {count:,} of --sample-bytes {size:,} are 2^62 bytes or more with their tar headers: lower one of them"
        )
    manifest = Manifest((record(each),) * full + ((record(rest),) if rest else ()))
    name = f"made up: {counted(count, 'picture')} of {counted(size, 'byte')}, {each:,} a shard"
    return Subject(manifest, name, count * size / manifest.total_bytes, "given")


def index_bytes(samples: int) -> int:
    """Bytes of a shard's index."""
    return file_size(samples)
