"""Latency and bandwidth of the bucket itself, read as training reads it: ranges of the data set's own shards.

The measurement is short, and bounded in time and bytes. It says what one machine gets at this moment, not what many get together.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pipeline.simulation.settings import SimulationError
from pipeline.stream.counters import Counters
from pipeline.stream.read.storage import ResumingReader, reading_store
from shards.dataset.manifest import Manifest, ShardRecord
from shards.store import Options

MOST_BYTES = 256_000_000
_SMALL = 16 << 10  # bytes of a range that is all latency
_LARGE = 8 << 20
_LATENCY_READS, _LATENCY_SECONDS = 40, 3.0
_ALONE_BYTES, _ALONE_SECONDS = 32_000_000, 1.5
_TOGETHER_SECONDS = 3.0
_MOST_THREADS = 16
_STALL_SECONDS, _RETRIES = 10.0, 2


@dataclass(frozen=True)
class Measurement:
    """The speed of a store.

    Attributes:
        latency: median milliseconds of a small ranged read.
        latency_p95: 95th percentile of those reads, in milliseconds.
        reads: number of those reads.
        bandwidth: MB/s (10^6 bytes) of `threads` requests at the same time.
        connection_bandwidth: MB/s of one request alone.
        threads: threads that read at the same time.
        bytes: bytes that were read in all.
        retries: requests that had to be repeated.
    """

    latency: float
    latency_p95: float
    reads: int
    bandwidth: float
    connection_bandwidth: float
    threads: int
    bytes: int
    retries: int


class _Enough(Exception):
    """The time or the bytes of a measurement are used up."""


def measure(manifest: Manifest, options: Options | None = None, connections: int = 16) -> Measurement:
    """Reads small ranges one after another, then large ones alone and together; at most 8 seconds or so and 256 MB.

    Args:
        manifest: manifest of the shards to read.
        options: fsspec options of the store.
        connections: most requests at the same time; more than 16 count as 16.

    Raises:
        StoreError: a shard can't be read.
        ShardCorrupt: a shard is shorter than its manifest says.
    """
    counters = Counters()
    reader = ResumingReader(reading_store(manifest.shards_url, options or {}, _STALL_SECONDS), _RETRIES, _STALL_SECONDS, counters)
    records = [record for record in manifest.records if record.count and record.size]
    if not records:
        raise SimulationError("--measure: the data set has no shard to read")
    spread = np.random.default_rng(0).permutation(len(records))[: 4 * _LATENCY_READS]
    chosen = [records[place] for place in spread.tolist()]
    times = _latencies(reader, chosen)
    threads = min(connections, _MOST_THREADS)
    alone = _rate(reader, chosen, 1, _ALONE_SECONDS, _ALONE_BYTES)
    left = MOST_BYTES - int(counters.totals()["bytes_read_store"])
    together = _rate(reader, chosen, threads, _TOGETHER_SECONDS, left)
    totals = counters.totals()
    return Measurement(
        latency=float(np.median(times)) * 1e3,
        latency_p95=float(np.quantile(times, 0.95)) * 1e3,
        reads=len(times),
        bandwidth=together / 1e6,
        connection_bandwidth=alone / 1e6,
        threads=threads,
        bytes=int(totals["bytes_read_store"]),
        retries=int(totals.get("store_retries", 0)),
    )


def _latencies(reader: ResumingReader, records: list[ShardRecord]) -> list[float]:
    """Seconds of each small read except the first one, which opens the connection."""
    times: list[float] = []
    end = time.monotonic() + _LATENCY_SECONDS
    for number, record in enumerate(itertools.islice(itertools.cycle(records), _LATENCY_READS + 1)):
        start = (number * 7919 * _SMALL) % max(1, record.size - _SMALL)
        began = time.monotonic()
        reader.range(record.name, start, min(start + _SMALL, record.size))
        times.append(time.monotonic() - began)
        if time.monotonic() > end and number:
            break
    return times[1:]


def _rate(reader: ResumingReader, records: list[ShardRecord], threads: int, seconds: float, most: int) -> float:
    """Bytes a second that a number of threads get from large ranges."""
    lock = threading.Lock()
    ranges = _ranges(records)
    read = 0
    promised = 0
    began = time.monotonic()

    def keep(data: bytes) -> None:
        nonlocal read
        with lock:
            read += len(data)
        if time.monotonic() - began > seconds:
            raise _Enough

    def work() -> None:
        nonlocal promised
        while time.monotonic() - began < seconds:
            with lock:
                name, start, stop = next(ranges)
                stop = min(stop, start + most - promised)
                promised += max(0, stop - start)
            if stop <= start:
                return
            try:
                reader.copy(name, start, stop, keep)
            except _Enough:
                return

    with ThreadPoolExecutor(threads, thread_name_prefix="probe") as pool:
        for running in [pool.submit(work) for _ in range(threads)]:
            running.result()
    return read / (time.monotonic() - began)


def _ranges(records: list[ShardRecord]) -> Iterator[tuple[str, int, int]]:
    for record in itertools.cycle(records):
        for start in range(0, record.size, _LARGE):
            yield record.name, start, min(start + _LARGE, record.size)
