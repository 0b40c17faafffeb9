"""A small data set in a real S3 server, a proxy in front of it that spoils answers, and the batches of a run that nothing went wrong in."""

from __future__ import annotations

import hashlib
import itertools
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from launch.local.object_store import SeaweedFS
from pipeline.config import DataConfig
from pipeline.stream.loader import Batch, StreamConfig, StreamLoader
from pipeline.stream.read.cache import ShardCache
from pipeline.stream.read.storage import ResumingReader, reading_store
from shards.dataset.manifest import Manifest
from tests import datasets
from tests.datasets import photographs, write_dataset
from tests.faults.proxy import Proxy

COUNTS = [9, 14, 1, 16, 8]
BATCH, BATCHES, SIDE = 16, 6, 48


class RandomMask:
    """A quarter of the pixels, drawn from the sample's key alone."""

    def draw(self, key: int, out: NDArray[np.bool_]) -> None:
        out[...] = np.random.default_rng(key).random(out.shape) < 0.25


@dataclass(frozen=True)
class DataSet:
    """A data set on disk, the same in a bucket, and what a faultless run of two epochs delivers of it."""

    folder: Path
    manifest: Manifest
    url: str
    server: SeaweedFS
    reference: list[Batch]


def stream_config(url: str, options: dict[str, str], **data: object) -> StreamConfig:
    """A stream that tries again three times, unless told otherwise. Only where a test makes it stall does it wait for less than half a
    minute: a busy machine must not look as if it did."""
    settings: dict[str, object] = {"shuffle_block": 8, "lanes": 4, "threads": 2, "retries": 3, "stall_seconds": 30.0, "ready_batches": 2}
    settings |= {"shards": url, "storage_options": options, **data}
    return StreamConfig(DataConfig(**settings), image_size=SIDE, global_batch=BATCH, seed=3, mask=RandomMask())  # type: ignore[arg-type]


def take(loader: StreamLoader, count: int = BATCHES) -> list[Batch]:
    """The next batches."""
    return list(itertools.islice(loader, count))


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    """Sample ids, pixels, masks and labels, byte for byte."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.sample_ids, other.sample_ids)
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.masks, other.masks)
        assert one.labels is not None
        assert other.labels is not None
        assert torch.equal(one.labels, other.labels)


def whole_shards(folder: Path) -> list[Path]:
    """The shards in a cache; each is proven to be what its name says, and no half-written file may lie beside them."""
    found = sorted(folder.glob("*.tar"))
    for path in found:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem
    assert not list(folder.glob(".partial*"))
    return found


def cache_of(loader: StreamLoader) -> ShardCache:
    """The cache of a stream that has one."""
    cache = loader.datasets[0].reader.cache
    assert cache is not None
    return cache


def reader_through(proxy: Proxy, data_set: DataSet, retries: int = 3, stall_seconds: float = 30.0) -> ResumingReader:
    """A reader of the data set's objects through the proxy; unless a test makes it stall, a busy machine must not look as if it did."""
    options = {**data_set.server.options, "endpoint_url": proxy.endpoint}
    return ResumingReader(reading_store(data_set.url, options, stall_seconds), retries, stall_seconds)


def upload(server: SeaweedFS, folder: Path) -> str:
    """The files of a folder in a bucket of their own; returns its URL."""
    return datasets.upload(server, f"faults-{uuid.uuid4().hex[:12]}", folder)


@pytest.fixture(scope="session")
def data_set(s3: SeaweedFS, tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    folder = tmp_path_factory.mktemp("faults") / "set"
    manifest = write_dataset(folder, photographs(sum(COUNTS), 64, 80), COUNTS)
    with StreamLoader(stream_config(str(folder), {})) as loader:
        reference = take(loader)
    return DataSet(folder, manifest, upload(s3, folder), s3, reference)


@pytest.fixture
def proxy(s3: SeaweedFS) -> Iterator[Proxy]:
    """A proxy of one test's own, without rules."""
    with Proxy(s3.endpoint) as proxy:
        yield proxy


def through(proxy: Proxy, data_set: DataSet, **data: object) -> StreamConfig:
    """A stream of the data set through the proxy, without a cache unless one is named."""
    return stream_config(data_set.url, {**data_set.server.options, "endpoint_url": proxy.endpoint}, **{"cache": "none", **data})
