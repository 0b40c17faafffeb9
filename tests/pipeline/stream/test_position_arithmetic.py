"""A position of 10^9 samples in 100,000 shards is arithmetic: what it costs to go on there doesn't depend on how far it is."""

from __future__ import annotations

import bisect
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.stream import order as order_module
from pipeline.stream.order import SampleOrder
from shards.dataset.manifest import Manifest, ShardRecord
from shards.keyed import permutation
from tests.conftest import ROOT

SHARDS, SAMPLES = 100_000, 10**9
SEED, BATCH, LANES, BLOCK = 9, 4096, 64, 4096
MEGABYTES = 300


def large_manifest() -> Manifest:
    """100,000 shards of 1 to 19,999 samples, 10^9 together."""
    counts = np.random.default_rng(0).integers(1, 10_000, SHARDS // 2)
    uneven = np.stack([counts, 2 * SAMPLES // SHARDS - counts], axis=1).ravel().tolist()
    return Manifest(
        tuple(
            ShardRecord(f"shard-{number:06d}.tar", count * 20_000, f"{number:064x}", count, f"{number:064x}")
            for number, count in enumerate(uneven)
        )
    )


def positions(order: SampleOrder) -> list[int]:
    """First and last batch of an epoch, and batches in between: at the start of a block, in it, and over its end."""
    batches = order.batches_per_epoch()
    a_block = BLOCK * order.lanes // BATCH
    return [0, a_block - 1, a_block, batches // 3 // a_block * a_block + a_block // 2, batches // 2, batches - 2, batches - 1]


def by_definition(manifest: Manifest, epoch: int, index: int) -> list[int]:
    """The ids of a batch, place by place: shards permuted and laid end to end, cut into lanes, shuffled in blocks."""
    shards = permutation(len(manifest.records), SEED, 1, epoch)
    ends = np.cumsum(manifest.sample_counts[shards]).tolist()
    lane_length, per_lane = manifest.total_samples // LANES, BATCH // LANES
    ids = []
    for place in range(BATCH):
        lane, position = place // per_lane, index * per_lane + place % per_lane
        number, within = divmod(position, BLOCK)
        shuffled = block_of(min(BLOCK, lane_length - number * BLOCK), epoch, lane, number)
        virtual = lane * lane_length + number * BLOCK + int(shuffled[within])
        shard = bisect.bisect_right(ends, virtual)
        ids.append(int(manifest.starts[shards[shard]]) + virtual - (ends[shard - 1] if shard else 0))
    return ids


def block_of(length: int, epoch: int, lane: int, number: int, kept: dict[tuple[int, ...], Any] = {}) -> Any:  # noqa: B006 - a cache
    key = (length, epoch, lane, number)
    if key not in kept:
        kept[key] = permutation(length, SEED, 2, epoch, lane, number)
    return kept[key]


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    found = large_manifest()
    assert (len(found.records), found.total_samples) == (SHARDS, SAMPLES)
    return found


@pytest.fixture
def permuted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of all permutations that the order draws: its work, free of the clock."""
    lengths: list[int] = []

    def counted(count: int, *key: int) -> Any:
        lengths.append(count)
        return permutation(count, *key)

    monkeypatch.setattr(order_module, "permutation", counted)
    return lengths


def test_a_fresh_order_gives_the_batch_of_the_definition_at_any_of_a_billion_samples(manifest: Manifest) -> None:
    order = SampleOrder(manifest, SEED, BATCH, LANES, BLOCK)
    for epoch, index in zip((0, 0, 1, 40, 10**6, 3, 2**40), positions(order), strict=True):
        fresh = SampleOrder(manifest, SEED, BATCH, LANES, BLOCK)
        assert fresh.global_batch(epoch, index).tolist() == by_definition(manifest, epoch, index)


def test_resuming_draws_the_shards_once_and_one_block_a_lane_wherever_it_is(manifest: Manifest, permuted: list[int]) -> None:
    order = SampleOrder(manifest, SEED, BATCH, LANES, BLOCK)
    for index in positions(order):
        permuted.clear()
        SampleOrder(manifest, SEED, BATCH, LANES, BLOCK).global_batch(5, index)
        assert permuted.count(SHARDS) == 1
        assert len(permuted) == 1 + LANES  # a batch takes 64 of a lane, which divide 4096: they lie in one block
        assert sum(permuted) <= SHARDS + LANES * BLOCK
    permuted.clear()
    order.take(0, (order.batches_per_epoch() - 1) * BATCH, order.share(3, 8))
    assert len(permuted) == LANES // 8 + (SHARDS in permuted)  # a rank draws the blocks of its own lanes alone


def test_every_batch_of_a_block_costs_no_further_permutation(manifest: Manifest, permuted: list[int]) -> None:
    order = SampleOrder(manifest, SEED, BATCH, LANES, BLOCK)
    first = BLOCK * LANES // BATCH * 1000
    for index in range(first, first + BLOCK * LANES // BATCH):
        order.global_batch(0, index)
    assert len(permuted) == 1 + LANES


def test_the_time_to_the_first_batch_does_not_grow_with_the_position(manifest: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    where = positions(SampleOrder(manifest, SEED, BATCH, LANES, BLOCK))
    best = dict.fromkeys(where, float("inf"))
    for attempt in range(3):
        for index in where:
            started = time.perf_counter()
            SampleOrder(manifest, SEED, BATCH, LANES, BLOCK).global_batch(attempt, index)
            best[index] = min(best[index], time.perf_counter() - started)
    with capsys.disabled():
        print("\nfirst batch of 4,096 ids at batch " + ", ".join(f"{index:,}: {1e3 * time:.0f} ms" for index, time in best.items()))
    assert max(best.values()) < 10 * best[0] + 2


def test_the_rate_of_batches(capsys: pytest.CaptureFixture[str]) -> None:
    order = SampleOrder(Manifest(large_manifest().records[:10]), SEED, 256)
    assert order.manifest.total_samples == 100_000
    started = time.perf_counter()
    ids = [order.global_batch(0, index) for index in range(order.batches_per_epoch())]
    seconds = time.perf_counter() - started
    with capsys.disabled():
        print(
            f"\nglobal_batch alone: {len(ids) / seconds:,.0f} batches of 256, {256 * len(ids) / seconds:,.0f} ids a second on 10^5 samples"
        )
    assert len(np.unique(np.concatenate(ids))) == 100_000 - 100_000 % 256


def test_a_billion_samples_fit_in_little_memory(capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "tests.pipeline.stream.test_position_arithmetic"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr
    megabytes = float(found.stdout)
    with capsys.disabled():
        print(f"\n{SHARDS:,} shards of {SAMPLES:,} samples, batches of three epochs: {megabytes:.0f} MB at most")
    assert megabytes < MEGABYTES


def _measure() -> None:
    """What a process that does nothing else needs at most, in MB."""
    order = SampleOrder(large_manifest(), SEED, BATCH, LANES, BLOCK)
    for epoch in range(3):
        for index in positions(order):
            order.global_batch(epoch, index)
            list(order.shards_ahead(epoch, index * BATCH, order.share(0, 1), blocks=2))
    # not ru_maxrss, which Linux carries over from the process that started this one
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) * 1024 / 1e6)


if __name__ == "__main__":
    assert Path.cwd() == ROOT
    _measure()
