"""The synthetic store is a data set like any other, and a cold start waits for the bytes of its own batch, not for shards."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.config import DataConfig
from pipeline.stream.loader import StreamConfig, StreamLoader
from shards.dataset import index
from tests.datasets import photographs
from tests.faults.conftest import take
from tests.faults.shaping import Shape
from tests.faults.synthetic_store import BUCKET, PREFIX, URL, SyntheticSet, SyntheticStore
from tests.launching import wait_until


@contextmanager
def served(data: SyntheticSet, shape: Shape) -> Iterator[str]:
    """The endpoint of a synthetic store in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server, endpoint = asyncio.run_coroutine_threadsafe(SyntheticStore(data, shape).start(), loop).result()
    try:
        yield endpoint
    finally:

        async def stop() -> None:
            server.close()
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def stream(endpoint: str, cache: str, **data: object) -> StreamConfig:
    settings: dict[str, object] = {
        "shards": URL,
        "storage_options": {"endpoint_url": endpoint, "key": "any", "secret": "any"},
        "cache": cache,
    }
    return StreamConfig(DataConfig(**{**settings, "threads": 2, **data}), image_size=48, global_batch=32)  # type: ignore[arg-type]


def test_a_synthetic_shard_is_what_its_index_and_its_manifest_say(tmp_path: Path) -> None:
    data = SyntheticSet(photographs(5, 64, 80), shards=3, shard_bytes=300_000, true_sha256=True)
    with served(data, Shape()) as endpoint:
        for record in data.manifest.records:
            with urllib.request.urlopen(f"{endpoint}/{BUCKET}/{PREFIX}/{record.name}") as body:  # noqa: S310
                tar = body.read()
            assert hashlib.sha256(tar).hexdigest() == record.sha256
            (tmp_path / record.name).write_bytes(tar)
            with open(tmp_path / record.name, "rb") as file:
                rows = index.make(file, record.name).rows
            stored = index.decode(data.small[record.index_name], record.index_name).rows
            assert (rows[["offset", "length", "digest"]] == stored[["offset", "length", "digest"]]).all()
        for start, end in [(0, 1), (511, 513), (1000, 299_000), (tar_end := len(tar) - 3, tar_end + 3)]:
            assert b"".join(data.range(record.name, start, end)) == tar[start:end]


def test_a_shape_holds_latency_and_bandwidth() -> None:
    data = SyntheticSet(photographs(5, 64, 80), shards=1, shard_bytes=2_000_000)
    with served(data, Shape(latency_ms=50, megabytes_per_second=10)) as endpoint:
        began = time.monotonic()
        with urllib.request.urlopen(f"{endpoint}/{BUCKET}/{PREFIX}/{data.manifest.records[0].name}") as body:  # noqa: S310
            size = len(body.read())
        assert time.monotonic() - began > 0.9 * (0.05 + size / 10e6)


def test_the_first_batch_does_not_wait_for_whole_shards(tmp_path: Path) -> None:
    """12 shards of 3 MB at 20 MB/s: all of them take 2 seconds, the first batch is a hundredth of them."""
    data = SyntheticSet(photographs(8, 64, 80), shards=12, shard_bytes=3_000_000, true_sha256=True)
    with served(data, Shape(latency_ms=20, megabytes_per_second=20)) as endpoint:
        with StreamLoader(stream(endpoint, str(tmp_path), ready_batches=1)) as loader:
            (first,) = take(loader, 1)
            read = loader.counters.totals()["bytes_read_store"]
            assert read < 0.25 * data.manifest.total_bytes
            wait_until(lambda: len(list(tmp_path.glob("*.tar"))) >= 2)  # whole shards come behind
        with StreamLoader(stream(endpoint, "none")) as loader:
            (again,) = itertools.islice(loader, 1)
    assert first.images.equal(again.images)
    assert first.sample_ids.equal(again.sample_ids)
