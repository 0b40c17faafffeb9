"""Reading from a real S3 server, with and without the node's cache, and what the server or the disk may do to it."""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from launch.local.object_store import SeaweedFS
from pipeline.config import DataConfig
from pipeline.stream.batch.quarantine import QuarantineFull
from pipeline.stream.loader import Batch, StreamConfig, StreamLoader
from pipeline.stream.read.cache import ShardCache
from pipeline.stream.read.fetch import Wanted
from pipeline.stream.read.samples import SampleReader
from pipeline.stream.read.storage import ResumingReader, ShardUnavailable
from shards.dataset.manifest import Manifest
from shards.errors import ShardCorrupt, ShardError, StoreError
from shards.store import Store
from tests.datasets import photographs, upload, write_dataset
from tests.launching import wait_until

pytestmark = pytest.mark.server
COUNTS = [1, 30, 25, 40, 5, 27]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("local")
    return folder, write_dataset(folder, photographs(sum(COUNTS), 160, 200), COUNTS)


@pytest.fixture(scope="module")
def url(s3: SeaweedFS, local: tuple[Path, Manifest]) -> str:
    return upload(s3, "remote", local[0])


def stream_config(url: str, options: dict[str, str], **data: object) -> StreamConfig:
    settings: dict[str, object] = {"shards": url, "storage_options": options, "shuffle_block": 16, "threads": 2, "retries": 3, **data}
    return StreamConfig(DataConfig(**settings), image_size=96, global_batch=32, seed=5)  # type: ignore[arg-type]


def take(loader: StreamLoader, count: int = 10) -> list[Batch]:
    return list(itertools.islice(loader, count))


@pytest.fixture(scope="module")
def reference(local: tuple[Path, Manifest]) -> list[Batch]:
    with StreamLoader(stream_config(str(local[0]), {})) as loader:
        return take(loader)


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.sample_ids, other.sample_ids)
        assert torch.equal(one.images, other.images)


def cached(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar"))


@pytest.mark.parametrize("gigabytes", [1.0, 0.0003, 0.0], ids=["enough", "too small", "nothing"])
def test_same_batches_from_s3_with_any_cache(s3: SeaweedFS, url: str, reference: list[Batch], tmp_path: Path, gigabytes: float) -> None:
    with StreamLoader(stream_config(url, s3.options, cache=str(tmp_path / "cache"), cache_gb=gigabytes)) as loader:
        assert_same(take(loader), reference)
    held = sum(path.stat().st_size for path in (tmp_path / "cache").iterdir())
    assert held <= gigabytes * 1e9
    assert not list((tmp_path / "cache").glob(".partial*"))


def test_the_store_is_asked_for_later_batches_while_every_thread_waits_for_it(
    s3: SeaweedFS, url: str, reference: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    answering = threading.Event()
    with StreamLoader(stream_config(url, s3.options, cache="none", threads=1, ready_batches=3)) as loader:
        assert loader._fetcher is not None
        start, read = loader._fetcher.start, loader._fetcher._read_shard

        def noted(samples: SampleReader, batch: int, shards: NDArray[np.int64], rows: NDArray[np.int64]) -> list[Future[bytes]]:
            asked.append(batch)
            return start(samples, batch, shards, rows)

        def from_the_third_on_in_time(samples: SampleReader, batch: int, shard: int, wanted: Sequence[Wanted]) -> None:
            assert batch < 3 or answering.wait(30)
            read(samples, batch, shard, wanted)

        monkeypatch.setattr(loader._fetcher, "start", noted)
        monkeypatch.setattr(loader._fetcher, "_read_shard", from_the_third_on_in_time)
        batches = iter(loader)
        found = [next(batches), next(batches)]
        training = threading.Thread(target=lambda: found.append(next(batches)))
        training.start()
        try:
            wait_until(lambda: asked == [1, 2, 3, 4, 5])
            assert len(found) == 2
        finally:
            answering.set()
            training.join(30)
        assert_same(found, reference[:3])


def slowly(take_ids: Callable[..., NDArray[np.int64]], pause: float) -> Callable[..., NDArray[np.int64]]:
    def paused(*which: object) -> NDArray[np.int64]:
        time.sleep(pause)  # closing comes in between
        return take_ids(*which)

    return paused


def test_closing_ends_what_was_asked_of_the_store(s3: SeaweedFS, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for pause in (0.0, 0.0, 0.2):
        loader = StreamLoader(stream_config(url, s3.options, cache="none", ready_batches=3))
        batches = iter(loader)
        next(batches)
        monkeypatch.setattr(loader.datasets[0].order, "take", slowly(loader.datasets[0].order.take, pause))
        loader._begin(loader._positions)  # is being planned, or not even that
        closing = threading.Thread(target=loader.close, daemon=True)
        closing.start()
        closing.join(20)
        assert not closing.is_alive()
        del batches


def test_same_batches_from_s3_without_a_cache(s3: SeaweedFS, url: str, reference: list[Batch]) -> None:
    with StreamLoader(stream_config(url, s3.options, cache="none")) as loader:
        assert_same(take(loader), reference)
        totals = loader.counters.totals()
    assert totals["bytes_read_store"] > 100_000


def test_the_cache_holds_whole_shards_and_serves_the_next_run(
    s3: SeaweedFS, url: str, local: tuple[Path, Manifest], reference: list[Batch], tmp_path: Path
) -> None:
    config = stream_config(url, s3.options, cache=str(tmp_path))
    with StreamLoader(config) as loader:
        take(loader, 1)
        wait_until(lambda: len(cached(tmp_path)) == len(COUNTS))
    for path in cached(tmp_path):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem
    with StreamLoader(config) as loader:
        assert_same(take(loader), reference)
        totals = loader.counters.totals()
    assert totals.get("cache_misses", 0) == 0
    assert totals["cache_hits"] >= 320


def test_two_ranks_download_each_shard_once(s3: SeaweedFS, url: str, tmp_path: Path) -> None:
    loaders = [StreamLoader(stream_config(url, s3.options, cache=str(tmp_path)), rank, 2) for rank in range(2)]
    for loader in loaders:
        take(loader, 8)
    wait_until(lambda: len(cached(tmp_path)) == len(COUNTS))
    assert sum(loader.counters.totals().get("cache_downloads", 0) for loader in loaders) == len(COUNTS)
    for loader in loaders:
        loader.close()


def test_a_small_cache_evicts_what_is_used_least_and_never_exceeds_its_budget(
    s3: SeaweedFS, url: str, local: tuple[Path, Manifest], reference: list[Batch], tmp_path: Path
) -> None:
    budget = 2.2 * max(record.size for record in local[1].records)
    most = 0
    with StreamLoader(stream_config(url, s3.options, cache=str(tmp_path), cache_gb=budget / 1e9, shuffle_block=2)) as loader:
        for _ in itertools.islice(loader, 20):
            with open(tmp_path / ".room.lock") as room:
                fcntl.flock(room, fcntl.LOCK_EX)  # nothing is evicted or begun while the files are counted
                with suppress(FileNotFoundError):  # renamed between the two looks
                    most = max(most, sum(path.stat().st_size for path in tmp_path.iterdir()))
            time.sleep(0.05)
        totals = loader.counters.totals()
    assert 0 < most <= budget
    assert totals["cache_evictions"] > 0


def test_a_byte_that_rots_in_the_cache_is_noticed_and_fetched_again(
    s3: SeaweedFS, url: str, reference: list[Batch], tmp_path: Path
) -> None:
    config = stream_config(url, s3.options, cache=str(tmp_path))
    with StreamLoader(config) as loader:
        take(loader, 1)
        wait_until(lambda: len(cached(tmp_path)) == len(COUNTS))
    for path in cached(tmp_path):
        data = bytearray(path.read_bytes())
        for place in range(600, len(data), 400):
            data[place] ^= 0x10
        path.write_bytes(data)
    with StreamLoader(config) as loader:
        assert_same(take(loader), reference)
        assert loader.counters.totals()["cache_repairs"] > 0
        assert len(loader.quarantine) == 0


def test_what_a_killed_download_left_is_swept_and_what_is_being_written_is_not(s3: SeaweedFS, url: str, tmp_path: Path) -> None:
    (tmp_path / f".partial-{'0' * 64}").write_bytes(b"half")
    with open(tmp_path / f".partial-{'a' * 64}", "wb") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        with StreamLoader(stream_config(url, s3.options, cache=str(tmp_path))) as loader:
            take(loader, 1)
        assert (tmp_path / f".partial-{'a' * 64}").exists()
    assert not (tmp_path / f".partial-{'0' * 64}").exists()


def test_a_cache_that_cannot_be_written_is_named(s3: SeaweedFS, url: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file/cache: the cache can't be written .* data.cache"):
        StreamLoader(stream_config(url, s3.options, cache=str(tmp_path / "file" / "cache")))


def test_a_flipped_byte_in_the_store_is_quarantined(s3: SeaweedFS, local: tuple[Path, Manifest], tmp_path: Path) -> None:
    url = upload(s3, "flipped", local[0])
    store = Store(url, s3.options)
    record = local[1].records[3]
    row = local[1].read_index(store, 3).rows[7]
    data = bytearray(store.read(record.name))
    data[int(row["offset"]) + int(row["length"]) // 2] ^= 1
    store.write(record.name, bytes(data))
    config = stream_config(url, s3.options, cache=str(tmp_path / "cache"), max_bad_fraction=0.02)
    with StreamLoader(replace(config, quarantine=tmp_path / "list.jsonl")) as loader:
        take(loader, 4)
        assert loader.counters.totals()["bad_samples_digest"] == 1
        wait_until(loader.cache_failures)
        assert "its sha256 is" in loader.cache_failures()["", 3]
    assert record.name in (tmp_path / "list.jsonl").read_text()
    with StreamLoader(stream_config(url, s3.options, cache="none")) as loader, pytest.raises(QuarantineFull, match=record.name):
        take(loader, 4)


def test_a_truncated_object_is_named(s3: SeaweedFS, local: tuple[Path, Manifest]) -> None:
    url = upload(s3, "truncated", local[0])
    store = Store(url, s3.options)
    record = local[1].records[1]
    store.write(record.name, store.read(record.name)[:20_000])
    config = stream_config(url, s3.options, cache="none", retries=1)
    with StreamLoader(config) as loader, pytest.raises(ShardCorrupt, match=f"{record.name}: cut short: 20,000 bytes"):
        take(loader)


def test_a_missing_object_is_named_at_once(s3: SeaweedFS, local: tuple[Path, Manifest]) -> None:
    url = upload(s3, "incomplete", local[0])
    name = local[1].records[1].name
    Store(url, s3.options).delete(name)
    config = stream_config(url, s3.options, cache="none")
    with StreamLoader(config) as loader, pytest.raises(ShardUnavailable, match=f"{name}: no such object"):
        take(loader)


def test_wrong_credentials_a_missing_bucket_and_no_server_are_one_message_each(s3: SeaweedFS, url: str) -> None:
    with pytest.raises(StoreError, match="access refused") as refused:
        StreamLoader(stream_config(url, {**s3.options, "secret": "wrong-secret"}))
    assert "wrong-secret" not in str(refused.value)
    with pytest.raises(ShardError, match="s3://nowhere/set"):
        StreamLoader(stream_config("s3://nowhere/set", s3.options))
    with pytest.raises(StoreError, match="s3://remote/set"):
        StreamLoader(stream_config(url, {**s3.options, "endpoint_url": "http://127.0.0.1:9"}))


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[SeaweedFS]:
    with SeaweedFS(tmp_path / "server") as server:
        yield server


def test_a_server_that_dies_and_comes_back_costs_time_only(
    own_server: SeaweedFS, local: tuple[Path, Manifest], reference: list[Batch], tmp_path: Path
) -> None:
    url = upload(own_server, "mortal", local[0])
    config = stream_config(url, own_server.options, cache="none", retries=30, stall_seconds=10)

    def restart() -> None:
        time.sleep(4)  # longer than the client library goes on by itself
        own_server.start()

    with StreamLoader(replace(config, data=replace(config.data, ready_batches=1))) as loader:
        iterator = iter(loader)
        found = [next(iterator)]
        own_server.kill()
        restarting = threading.Thread(target=restart)
        restarting.start()
        found += itertools.islice(iterator, len(reference) - 1)
        restarting.join()
        assert loader.counters.totals()["store_retries"] > 0
    assert_same(found, reference)


def test_a_server_that_stays_away_ends_the_wait(own_server: SeaweedFS, local: tuple[Path, Manifest]) -> None:
    url = upload(own_server, "gone", local[0])
    with StreamLoader(stream_config(url, own_server.options, cache="none", retries=2, stall_seconds=2)) as loader:
        iterator = iter(loader)
        next(iterator)
        own_server.kill()
        with pytest.raises(ShardUnavailable, match="gave up at byte"):
            list(itertools.islice(iterator, 10))


def test_a_range_past_the_end_of_an_object_is_an_error(s3: SeaweedFS, url: str, local: tuple[Path, Manifest]) -> None:
    record = local[1].records[0]
    reader = ResumingReader(Store(url, s3.options), retries=1)
    data = (local[0] / record.name).read_bytes()
    assert reader.range(record.name, 0, record.size) == data
    assert reader.range(record.name, 700, 701) == data[700:701]
    with pytest.raises(ShardCorrupt, match="cut short"):
        reader.range(record.name, record.size - 5, record.size + 5)
    assert os.environ.get("AWS_SECRET_ACCESS_KEY") != s3.secret


def test_what_the_receiver_raises_is_not_taken_for_the_stores_failure(s3: SeaweedFS, url: str, local: tuple[Path, Manifest]) -> None:
    calls = []

    def full_disk(data: bytes) -> None:
        calls.append(len(data))
        raise OSError(28, "No space left on device")

    record = local[1].records[1]
    reader = ResumingReader(Store(url, s3.options), retries=5)
    with pytest.raises(OSError, match="No space left"):
        reader.copy(record.name, 0, record.size, full_disk)
    assert len(calls) == 1
    assert reader.counters.totals().get("store_retries", 0) == 0


@pytest.mark.timeout(120)  # a hang runs into it
def test_closing_does_not_wait_for_downloads(s3: SeaweedFS, url: str, tmp_path: Path) -> None:
    for _ in range(5):
        loader = StreamLoader(stream_config(url, s3.options, cache=str(tmp_path), threads=1))
        next(iter(loader))
        loader.close()
        assert not list(tmp_path.glob(".partial*"))
        for path in tmp_path.glob("*.tar"):
            path.unlink()


def test_the_cache_never_deletes_what_is_not_its_own(s3: SeaweedFS, url: str, local: tuple[Path, Manifest], tmp_path: Path) -> None:
    strangers = [tmp_path / "thesis.tar", tmp_path / ".partial-otherjob"]
    for path in strangers:
        path.write_bytes(b"x" * 100_000)
        os.utime(path, (1, 1))
    budget = 2.2 * max(record.size for record in local[1].records)
    reader = ResumingReader(Store(url, s3.options))
    # a stream that finds both shards needed all the time reads the others as ranges: what has to go is said here
    cache = ShardCache(tmp_path, int(budget), local[1], reader, reader.counters)
    for wanted in ((1, 3), (2, 5)):
        cache.prefetch(wanted)
        deadline = time.monotonic() + 60
        while not all(cache.holds(shard) for shard in wanted):
            assert time.monotonic() < deadline, f"shards {wanted} did not come into a cache of two"
            time.sleep(0.02)
    assert reader.counters.totals()["cache_evictions"] > 0, "no shard was evicted from a cache of two"
    cache.close()
    cache.close()
    with StreamLoader(stream_config(url, s3.options, cache=str(tmp_path), cache_gb=budget / 1e9, shuffle_block=2)) as loader:
        take(loader)
        loader.close()
        loader.close()
    assert all(path.exists() for path in strangers)


@pytest.mark.timeout(120)  # a hang runs into it
def test_ending_a_run_while_the_store_is_away_quarantines_nothing(
    own_server: SeaweedFS, local: tuple[Path, Manifest], tmp_path: Path
) -> None:
    url = upload(own_server, "ending", local[0])
    config = stream_config(url, own_server.options, cache="none", retries=50, unavailable="substitute", max_bad_fraction=1.0)
    with StreamLoader(replace(config, quarantine=tmp_path / "list.jsonl")) as loader:
        iterator = iter(loader)
        next(iterator)
        own_server.kill()
        time.sleep(1.5)  # requests fail and wait for their next attempt
        loader.close()
    assert not (tmp_path / "list.jsonl").exists()
