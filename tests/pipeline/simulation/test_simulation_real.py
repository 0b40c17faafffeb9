"""A real epoch on a real S3 server against what `python launch/simulate.py` predicted, and figures taken from the bucket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from launch.local.object_store import SeaweedFS
from launch.simulate import main
from pipeline.config import DataConfig
from pipeline.simulation import Prediction, Setup, probe, simulate, stored
from pipeline.simulation.prediction import FIRST
from pipeline.stream.loader import StreamConfig, StreamLoader
from pipeline.stream.read.cache import ShardCache
from shards.errors import ShardError
from tests.datasets import photographs, upload, write_dataset
from tests.launching import wait_until

COUNTS = [20, 31, 9, 20, 20, 17, 23, 20, 20, 20, 20, 20, 11, 29, 20, 20, 20, 20, 20, 20, 5, 35, 20, 20]


@pytest.fixture(scope="module")
def url(s3: SeaweedFS, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("simulated")
    write_dataset(folder, photographs(sum(COUNTS), 120, 160), COUNTS)
    return upload(s3, "simulated", folder)


def at_rest(cache: ShardCache) -> bool:
    with cache._lock:
        return not (cache._wanted or cache._busy)


def run_an_epoch(url: str, options: dict[str, str], **data: object) -> dict[str, float]:
    """Counters of a real epoch of a rank alone; between two batches it waits for the downloads to come to rest."""
    known: dict[str, object] = {
        "shards": url,
        "storage_options": options,
        "lanes": 4,
        "shuffle_block": 16,
        "threads": 2,
        "ready_batches": 1,
    }
    config = StreamConfig(DataConfig(**{**known, **data}), image_size=64, global_batch=32, seed=9, epochs=1)  # type: ignore[arg-type]
    with StreamLoader(config) as loader:
        cache = loader.datasets[0].reader.cache
        for _ in loader:
            if cache is not None:
                wait_until(partial(at_rest, cache), pause=0.01)  # nobody is told of a download's end
        return dict(loader.counters.totals())


def predicted(url: str, options: dict[str, str], cache_gb: float) -> Prediction:
    figures = {"seed": 9, "global_batch": 32, "lanes": 4, "shuffle_block": 16, "ready_batches": 1, "connections": 2, "latency": 2}
    return simulate(stored(url, options), Setup(ranks_per_node=1, epochs=1, cache_gb=cache_gb, **figures))


@pytest.mark.server
def test_a_real_epoch_without_a_cache_asks_for_what_was_predicted(s3: SeaweedFS, url: str) -> None:
    """Indexes and samples to the last one; bytes and requests within 5 %: how many neighbours are joined is an expectation."""
    totals = run_an_epoch(url, s3.options, cache="none")
    traffic = predicted(url, s3.options, 0).now.traffic
    assert totals["images"] == traffic.samples == traffic.ranged
    assert totals["store_requests"] == pytest.approx(traffic.requests, rel=0.05)
    assert totals["bytes_read_store"] == pytest.approx(traffic.bytes, rel=0.05)


@pytest.mark.server
@pytest.mark.parametrize("part", [1.0, 0.6], ids=["enough", "too small"])
def test_a_real_epoch_with_a_cache_asks_for_what_was_predicted(
    s3: SeaweedFS, url: str, tmp_path: Path, part: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole shards to the last one where the cache is enough; samples read by ranges, requests and bytes within 15 %. They are downloaded
    one at a time: two side by side come in either order, and what came first is evicted first."""
    monkeypatch.setattr("pipeline.stream.dataset.ShardCache", partial(ShardCache, downloads=1))
    cache_gb = predicted(url, s3.options, 1.0).cache_needed * part / 1e9
    totals = run_an_epoch(url, s3.options, cache=str(tmp_path), cache_gb=cache_gb)
    traffic = predicted(url, s3.options, cache_gb).paces[FIRST].traffic
    assert totals["cache_downloads"] == pytest.approx(traffic.downloads, abs=0 if part == 1 else 2)
    assert totals["cache_misses"] == pytest.approx(traffic.ranged, rel=0.15)
    assert totals["bytes_read_store"] == pytest.approx(traffic.bytes, rel=0.15)
    assert totals["store_requests"] == pytest.approx(traffic.requests, rel=0.15)


@pytest.mark.server
def test_latency_and_bandwidth_are_taken_from_the_bucket(
    s3: SeaweedFS, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"MOST_BYTES": 20_000_000, "_ALONE_BYTES": 4_000_000, "_TOGETHER_SECONDS": 1.0, "_LATENCY_SECONDS": 1.0}.items():
        monkeypatch.setattr(probe, name, value)
    storage = [argument for key, value in s3.options.items() for argument in ("--storage", f"{key}={value}")]
    assert main([url, "--measure", "--json", "--global-batch", "32", *storage]) == 0
    table = json.loads(capsys.readouterr().out)
    measured = table["measured"]
    assert 0 < measured["latency"] <= measured["latency_p95"] < 5000
    assert measured["bandwidth"] > 0
    assert measured["bytes"] <= 20_000_000
    assert measured["retries"] == 0
    assert table["setup"]["latency"] == measured["latency"]
    assert table["setup"]["bandwidth"] == measured["bandwidth"]
    assert table["data_set"]["samples"] == sum(COUNTS)
    assert not table["data_set"]["read_in_place"]
    assert main([url, "--measure", "--json", "--global-batch", "32", "--latency", "9999", *storage]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["setup"]["latency"] == 9999
    assert table["setup"]["bandwidth"] == table["measured"]["bandwidth"]
    assert table["given_not_measured"] == ["latency"]
    with pytest.raises(ShardError, match="simulated/set"):
        probe.measure(stored(url, s3.options).manifest, {**s3.options, "secret": "wrong"})
