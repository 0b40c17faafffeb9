"""The cache over a store in memory, whose requests are counted and held up: what closing waits for, and what is fetched again."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pipeline import recipes
from pipeline.config import DataConfig, SourceConfig, parse
from pipeline.mapping import ConfigError
from pipeline.stream.counters import Counters
from pipeline.stream.dataset import Dataset
from pipeline.stream.read import storage
from pipeline.stream.read.cache import ShardCache
from pipeline.stream.read.cache_folder import CacheFolder, default_folder
from shards.store import Store
from tests.datasets import photographs, write_dataset
from tests.launching import wait_until

COUNT = 12
PIECES = 8
"""Requests in which a shard is downloaded, at least."""


class HeldStore:
    """A store in memory that notes its requests for shards and lets a test decide on each.

    Attributes:
        asked: first bytes of the requests, in their order.
        held: number of requests that are answered; those behind them wait for `go_on`.
        broken: True for a store that fails from request `held` on, instead of waiting.
        go_on: lets all requests go on.
    """

    def __init__(self, url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.url = url
        self.asked: list[int] = []
        self.held, self.broken, self.go_on = 1 << 30, False, threading.Event()
        store = Store(url)
        for path in folder.iterdir():
            store.write(path.name, path.read_bytes())
        self._get = store.fs.cat_file
        monkeypatch.setattr(store.fs, "cat_file", self._noted)

    def _noted(self, path: str, start: int | None = None, end: int | None = None, **more: Any) -> bytes:
        if path.endswith(".tar"):
            self.asked.append(start or 0)
            if len(self.asked) > self.held:
                if self.broken:
                    raise OSError("the connection broke off")
                assert self.go_on.wait(30)
        data: bytes = self._get(path, start=start, end=end, **more)
        return data


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldStore]:
    """A data set of one shard, which is downloaded in `PIECES` requests or more."""
    manifest = write_dataset(tmp_path / "set", photographs(COUNT, 160, 200), [COUNT])
    monkeypatch.setattr(storage, "_CHUNK", manifest.records[0].size // PIECES // 16)  # a request is for 16 of them
    made = HeldStore(f"memory://{tmp_path.name}", tmp_path / "set", monkeypatch)
    yield made
    made.go_on.set()


def opened(store: HeldStore, tmp_path: Path) -> tuple[Dataset, ShardCache]:
    data = DataConfig(cache=str(tmp_path / "cache"), retries=1)
    dataset = Dataset("", SourceConfig(shards=store.url), data, 0, 0, Counters())
    assert not dataset.is_local
    assert dataset.reader.cache is not None
    return dataset, dataset.reader.cache


def files(cache: ShardCache) -> list[str]:
    """Names of whole and of half-written shards in the cache."""
    return sorted(path.name for path in cache.folder.iterdir() if path.name != ".room.lock")


@pytest.mark.timeout(60)
def test_closing_waits_for_the_piece_that_is_under_way_and_for_no_other(store: HeldStore, tmp_path: Path) -> None:
    dataset, cache = opened(store, tmp_path)
    store.held = 2
    cache.prefetch([0])
    wait_until(lambda: len(store.asked) == 3)
    assert len(files(cache)) == 1, "the shard is being written"
    thread = threading.Thread(target=dataset.close, daemon=True)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive(), "the folder is left while a thread still writes to it"
    store.go_on.set()
    thread.join(20)
    assert not thread.is_alive()
    assert len(store.asked) == 3 < PIECES, "the rest of the shard was downloaded, though nothing needs it"
    assert files(cache) == []
    assert cache.failures == {}


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077], ids=oct)
def test_the_files_of_the_cache_obey_the_umask(umask: int, store: HeldStore, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        dataset, cache = opened(store, tmp_path)
        with closing(dataset):
            cache.prefetch([0])
            wait_until(lambda: cache.holds(0))
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in cache.folder.iterdir()} == {0o666 & ~umask}
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o777 & ~umask


def test_the_cache_of_a_user_below_the_folder_for_temporary_files_is_closed_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    CacheFolder(default_folder(), 0, Counters()).close()
    assert stat.S_IMODE(default_folder().stat().st_mode) == 0o700


def test_a_variable_in_the_folder_of_the_cache_is_that_of_the_node(
    store: HeldStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "disk"))
    config = parse(recipes.SETTINGS, ["--data.shards", store.url, "--data.cache", "$NODE_DISK/cache"])
    assert config.data.cache == "$NODE_DISK/cache", "another node may have another"
    with closing(Dataset("", SourceConfig(shards=store.url), config.data, 0, 0, Counters())):
        assert (tmp_path / "disk" / "cache").is_dir()
    monkeypatch.delenv("NODE_DISK")
    with pytest.raises(ConfigError, match=r"data\.cache: \$NODE_DISK/cache needs the variable NODE_DISK"):
        Dataset("", SourceConfig(shards=store.url), config.data, 0, 0, Counters())


@pytest.mark.timeout(60)
def test_an_abandoned_data_set_tries_no_download_again(store: HeldStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_FIRST_PAUSE", 12.0)  # longer than the test waits, and no longer than a failure may take
    dataset, cache = opened(store, tmp_path)
    with closing(dataset):
        store.held, store.broken = 2, True
        cache.prefetch([0])
        wait_until(lambda: len(store.asked) == 3)
        dataset.abandon()
        wait_until(lambda: not files(cache), seconds=5)
    assert len(store.asked) == 3
    assert cache.failures == {}, "the shard is as good as before"
    assert cache.counters.totals().get("cache_failures", 0) == 0


@pytest.mark.timeout(60)
def test_a_shard_with_a_byte_that_rots_is_fetched_again(store: HeldStore, tmp_path: Path) -> None:
    dataset, cache = opened(store, tmp_path)
    with closing(dataset):
        right = dataset.reader.read(0, 0, 5)
        record, entry = dataset.manifest.records[0], dataset.reader.index(0).row(5)
        cache.prefetch([0])
        wait_until(lambda: cache.holds(0))
        path = cache.folder / f"{record.sha256}.tar"
        before, pieces = len(store.asked), len(store.asked) - 1
        assert dataset.reader.read(0, 0, 5) == right
        assert len(store.asked) == before, "read from the cache"
        with open(path, "r+b") as file:
            file.seek(entry[0] + entry[2] // 2)
            (byte,) = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1]))
        assert dataset.reader.read(0, 0, 5) == right
        assert cache.counters.totals()["cache_repairs"] == 1
        sample = len(store.asked) - before
        assert (sample, path.exists(), cache.holds(0)) == (1, False, False)
        cache.prefetch([0])
        wait_until(lambda: cache.holds(0))
        assert len(store.asked) == before + sample + pieces, "the shard was not fetched whole"
        assert hashlib.sha256(path.read_bytes()).hexdigest() == record.sha256
        assert dataset.reader.read(0, 0, 5) == right
        assert len(store.asked) == before + sample + pieces
        assert cache.counters.totals()["cache_downloads"] == 2
        assert cache.counters.totals()["cache_repairs"] == 1
