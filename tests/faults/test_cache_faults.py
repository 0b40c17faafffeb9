"""Faults of the node's cache and of the processes that share it: the same batches, no bad file, nothing left behind."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from launch.local.object_store import SeaweedFS
from pipeline.stream.loader import StreamLoader
from tests import warm
from tests.conftest import ROOT
from tests.faults.conftest import BATCHES, DataSet, assert_same, cache_of, stream_config, take, through, upload, whole_shards
from tests.faults.proxy import Fault, Proxy, Rule
from tests.faults.rank import fingerprint
from tests.launching import python, wait_until

pytestmark = pytest.mark.server


@contextmanager
def rank(proxy: Proxy, data_set: DataSet, cache: Path, **task: object) -> Iterator[subprocess.Popen[str]]:
    """A rank in a process of its own that reads through the proxy."""
    options = {**data_set.server.options, "endpoint_url": proxy.endpoint}
    data = {"cache": str(cache), **task.pop("data", {})}  # type: ignore[dict-item]
    full = {"url": data_set.url, "options": options, "data": data, "rank": 0, "world": 1, "batches": BATCHES, **task}
    command = [python(), "-m", "tests.faults.rank", json.dumps(full)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            kill(process)


def kill(process: subprocess.Popen[str]) -> None:
    """kill -9 of a rank, whose files and locks are free when this returns."""
    if process.poll() is None:
        program = warm.behind(psutil.Process(process.pid))
        program.kill()
        psutil.wait_procs([program], timeout=30)
    process.wait()


def outcome(process: subprocess.Popen[str]) -> tuple[list[str], dict[str, float]]:
    """The fingerprints and the counters of a rank that ended well."""
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 0
    lines = output.splitlines()
    return lines[1:-1], json.loads(lines[-1])


def fill(data_set: DataSet, cache: Path) -> None:
    """A cache with every shard in it."""
    cache.mkdir(exist_ok=True)
    for record in data_set.manifest.records:
        shutil.copyfile(data_set.folder / record.name, cache / f"{record.sha256}.tar")


def download_requests(proxy: Proxy, data_set: DataSet) -> list[Rule]:
    """A rule for each shard that spoils nothing and counts the requests for the whole of it."""
    return [
        Rule(Fault.NONE, key=f"*/{record.name}", lengths=frozenset({record.size}))
        for record in data_set.manifest.records
        if record.count > 1
    ]


def test_a_full_disk_costs_speed_only(data_set: DataSet, proxy: Proxy, tmp_path: Path) -> None:
    smallest, largest = (function(record.size for record in data_set.manifest.records) for function in (min, max))
    with rank(proxy, data_set, tmp_path, largest_file=(smallest + largest) // 2, linger=3.0) as process:
        found, totals = outcome(process)
    assert found == [fingerprint(batch) for batch in data_set.reference]
    assert totals["cache_failures"] > 0
    assert 0 < len(whole_shards(tmp_path)) < len(data_set.manifest.records)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system of two pages needs root")
def test_a_file_system_without_space_costs_speed_only(data_set: DataSet, tmp_path: Path) -> None:
    size = 2 * min(record.size for record in data_set.manifest.records) + 8192
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(tmp_path)], capture_output=True, check=False).returncode:
        pytest.skip("file systems can't be mounted here")
    try:
        with StreamLoader(stream_config(data_set.url, data_set.server.options, cache=str(tmp_path))) as loader:
            assert_same(take(loader), data_set.reference)
            wait_until(lambda: loader.counters.totals().get("cache_failures", 0) > 0)
        whole_shards(tmp_path)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@pytest.mark.parametrize("damage", ["rots", "is cut", "is emptied", "is a folder"])
def test_a_cached_shard_that_goes_bad_is_fetched_again(data_set: DataSet, proxy: Proxy, tmp_path: Path, damage: str) -> None:
    fill(data_set, tmp_path)
    for path in tmp_path.glob("*.tar"):
        data = bytearray(path.read_bytes())
        data[1500 : len(data) - 1024 : 700] = bytes(len(range(1500, len(data) - 1024, 700)))
        path.unlink()
        if damage == "is a folder":
            path.mkdir()
        else:
            path.write_bytes({"rots": bytes(data), "is cut": bytes(data[: len(data) // 2]), "is emptied": b""}[damage])
    with StreamLoader(through(proxy, data_set, cache=str(tmp_path))) as loader:
        assert_same(take(loader), data_set.reference)
        assert len(loader.quarantine) == 0
        assert (loader.counters.totals().get("cache_repairs", 0) > 0) == (damage == "rots")


def test_a_shard_that_is_cut_while_it_is_read_is_fetched_again(data_set: DataSet, proxy: Proxy, tmp_path: Path) -> None:
    fill(data_set, tmp_path)
    with StreamLoader(through(proxy, data_set, cache=str(tmp_path), ready_batches=1)) as loader:
        batches = iter(loader)
        found = [next(batches)]
        for path in tmp_path.glob("*.tar"):
            os.truncate(path, 1000)
        found += [next(batches) for _ in range(BATCHES - 1)]
    assert_same(found, data_set.reference)


def test_a_cache_folder_that_is_deleted_under_a_run_costs_speed_only(data_set: DataSet, proxy: Proxy, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with StreamLoader(through(proxy, data_set, cache=str(cache), ready_batches=1)) as loader:
        batches = iter(loader)
        found = [next(batches)]
        while cache.exists():  # a download that runs may put a file there meanwhile
            shutil.rmtree(cache, ignore_errors=True)
        found += [next(batches) for _ in range(BATCHES - 1)]
    assert_same(found, data_set.reference)


@pytest.mark.parametrize("gigabytes", [0.0, 2e-5], ids=["nothing", "less than one shard"])
def test_a_budget_smaller_than_a_shard_costs_speed_only(data_set: DataSet, proxy: Proxy, tmp_path: Path, gigabytes: float) -> None:
    assert sum(record.size > gigabytes * 1e9 for record in data_set.manifest.records) >= 3
    with StreamLoader(through(proxy, data_set, cache=str(tmp_path), cache_gb=gigabytes)) as loader:
        assert_same(take(loader), data_set.reference)
    assert sum(path.stat().st_size for path in whole_shards(tmp_path)) <= gigabytes * 1e9


def test_what_a_killed_rank_leaves_is_taken_over_and_swept(data_set: DataSet, proxy: Proxy, tmp_path: Path) -> None:
    """The first rank hangs in two downloads; it is killed there, and the second one finds nothing in its way."""
    sizes = frozenset(record.size for record in data_set.manifest.records if record.count > 1)
    proxy.rules = [Rule(Fault.STALL, lengths=sizes, at=2000)]
    before = shared_memory_users()
    with rank(proxy, data_set, tmp_path, linger=60.0, data={"stall_seconds": 60.0}) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(1 + BATCHES)]
        assert [line.strip() for line in lines[1:]] == [fingerprint(batch) for batch in data_set.reference]
        wait_until(lambda: list(tmp_path.glob(".partial*")))
        assert shared_memory_of(warm.behind(psutil.Process(process.pid)).pid) == []
        kill(process)
    left = list(tmp_path.glob(".partial*"))
    assert left
    assert shared_memory_users() == before
    proxy.rules = download_requests(proxy, data_set)
    with StreamLoader(through(proxy, data_set, cache=str(tmp_path))) as loader:
        assert not any(path.exists() and not locked(path) for path in left)
        assert_same(take(loader), data_set.reference)
        wait_until(lambda: len(list(tmp_path.glob("*.tar"))) == len(data_set.manifest.records))
    assert len(whole_shards(tmp_path)) == len(data_set.manifest.records)


def shared_memory_of(pid: int) -> list[str]:
    """Mappings of /dev/shm in a process."""
    return [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "/dev/shm" in line]  # noqa: S108


def shared_memory_users() -> list[str]:
    """Files that PyTorch or this project could leave in /dev/shm; other programs' come and go."""
    return sorted(path.name for path in Path("/dev/shm").iterdir() if path.name.startswith(("torch_", "context", "shard", "psm_")))  # noqa: S108


def locked(path: Path) -> bool:
    """Returns whether a process works on a file."""
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_ranks_in_two_processes_download_each_shard_once(data_set: DataSet, proxy: Proxy, tmp_path: Path) -> None:
    proxy.rules = download_requests(proxy, data_set)
    with (
        rank(proxy, data_set, tmp_path, rank=0, world=2, linger=20.0) as one,
        rank(proxy, data_set, tmp_path, rank=1, world=2, linger=20.0) as two,
    ):
        ended = [outcome(one), outcome(two)]
    assert sum(totals.get("cache_downloads", 0) for _, totals in ended) == len(data_set.manifest.records)
    assert [rule.hits for rule in proxy.rules] == [1] * len(proxy.rules)
    assert len(whole_shards(tmp_path)) == len(data_set.manifest.records)


def test_a_rank_takes_over_from_one_that_is_killed_beside_it(data_set: DataSet, proxy: Proxy, tmp_path: Path) -> None:
    sizes = frozenset(record.size for record in data_set.manifest.records if record.count > 1)
    stalling = Rule(Fault.STALL, lengths=sizes, at=2000, count=2)
    proxy.rules = [stalling]
    with rank(proxy, data_set, tmp_path, linger=60.0, data={"stall_seconds": 60.0}) as process:
        wait_until(lambda: stalling.hits == 2)
        with StreamLoader(through(proxy, data_set, cache=str(tmp_path), shuffle_block=2)) as loader:
            batches = iter(loader)
            next(batches)
            kill(process)
            end = time.monotonic() + 30
            while len(list(tmp_path.glob("*.tar"))) < len(data_set.manifest.records) and time.monotonic() < end:
                next(batches)  # each block asks for what it needs again
                time.sleep(0.02)
            assert cache_of(loader).failures == {}
    assert len(whole_shards(tmp_path)) == len(data_set.manifest.records)


@pytest.mark.slow
def test_a_server_that_is_killed_in_mid_body_and_comes_back_costs_time_only(data_set: DataSet, tmp_path: Path) -> None:
    with SeaweedFS(tmp_path / "server") as server:
        url = upload(server, data_set.folder)
        restarts: list[threading.Thread] = []

        def crash() -> None:
            server.kill()
            restarts.append(threading.Thread(target=server.start))
            restarts[0].start()

        with Proxy(server.endpoint) as proxy:
            proxy.rules = [Rule(Fault.RESET, first=6, count=1, at=1000, action=crash)]
            options = {**server.options, "endpoint_url": proxy.endpoint}
            cache = str(tmp_path / "cache")
            with StreamLoader(stream_config(url, options, cache=cache, retries=40, stall_seconds=5.0)) as loader:
                found = take(loader)
                totals = loader.counters.totals()
            restarts[0].join()
    assert_same(found, data_set.reference)
    assert totals["store_retries"] > 0
    whole_shards(Path(cache))
