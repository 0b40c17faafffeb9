"""Tars that were indexed without digests: one that was replaced since then is never trained on."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.stream.counters import Counters
from pipeline.stream.read.samples import SampleReader
from pipeline.stream.read.storage import ResumingReader
from shards.dataset import manifest
from shards.dataset.index import Rules
from shards.errors import ShardCorrupt
from shards.store import Store
from tests.shards.adopt.foreign import picture, run, served
from tests.shards.trees import tar_of


def read_all(url: Path) -> list[bytes]:
    """The pictures, as a training run reads them."""
    data = manifest.load(str(url))
    samples = SampleReader(data, ResumingReader(Store(data.shards_url)), ResumingReader(Store(data.url)), None, Counters())
    shards, rows = data.locate(np.arange(data.total_samples))
    return [samples.read(place, int(shard), int(row))[0] for place, (shard, row) in enumerate(zip(shards, rows, strict=True))]


@pytest.mark.parametrize("remote", [False, True])
def test_a_tar_of_the_same_length_that_was_put_in_the_place_of_another(tmp_path: Path, remote: bool) -> None:
    target = tmp_path / "tars" / "x.tar"
    target.parent.mkdir()

    def put(number: int, seconds: int) -> None:
        target.write_bytes(tar_of({"0.jpg": picture(number), "1.jpg": picture(number + 1)}))
        os.utime(target, (seconds, seconds))

    put(1, 1_000_000_000)
    with served(target.parent) as address:
        url = f"{address}/" if remote else str(target.parent)
        run(url, tmp_path / "out", rules=Rules(digests=False))
        assert read_all(tmp_path / "out") == [picture(1), picture(2)]
        put(3, 1_100_000_000)
        with pytest.raises(ShardCorrupt, match=r"x\.tar: another tar than the one that was indexed .*Index it again"):
            read_all(tmp_path / "out")
        run(url, tmp_path / "out", rules=Rules(digests=False))
        assert read_all(tmp_path / "out") == [picture(3), picture(4)]
        target.unlink()
        with pytest.raises(ShardCorrupt, match=r"x\.tar: missing"):
            read_all(tmp_path / "out")
