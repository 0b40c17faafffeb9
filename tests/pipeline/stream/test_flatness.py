"""A rank holds the same (memory, open files, threads) after 50 epochs as after five, and a small leak would be seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.local.object_store import SeaweedFS
from shards.dataset.manifest import Manifest
from tests.conftest import ROOT
from tests.datasets import photographs, upload, write_dataset

EPOCHS, WARM = 50, 5
COUNTS = [20, 15, 22, 14, 19]
A_BATCH = 1000  # bytes a batch whose leak must be seen


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("flat")
    return folder, write_dataset(folder, photographs(sum(COUNTS), 20, 20), COUNTS)


def observe(*leak: str, **settings: object) -> list[dict[str, Any]]:
    """The rows that `flatness.py` prints: the resources it holds after each epoch."""
    data = {"threads": 2, "shuffle_block": 8, "lanes": 2, **settings}
    # one arena and no delayed trimming: what is freed leaves, so that the rest is what is held
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.pipeline.stream.flatness", json.dumps(data), str(EPOCHS), *leak]
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert found.returncode == 0, found.stderr[-4000:]
    rows = [json.loads(line) for line in found.stdout.splitlines()]
    assert len(rows) == EPOCHS
    return rows


def growth(rows: list[dict[str, Any]]) -> tuple[float, int]:
    """Bytes a batch and descriptors that were added between the fifth epoch and the last, each end being the least of five epochs.

    The memory is that of the half of the time in which it grew less: a leak grows all the time, an allocator takes a step once.
    """
    middle = (WARM + EPOCHS) // 2
    ends = [rows[at - WARM : at] for at in (2 * WARM, middle, EPOCHS)]
    memory = [min(row["memory"] for row in end) for end in ends]
    batches = [end[0]["batches"] for end in ends]
    rates = [(memory[at + 1] - memory[at]) / (batches[at + 1] - batches[at]) for at in (0, 1)]
    return min(rates), min(row["descriptors"] for row in ends[2]) - min(row["descriptors"] for row in ends[0])


def assert_flat(rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    memory, descriptors = growth(rows)
    threads = rows[-1]["threads"] - rows[WARM - 1]["threads"]
    with capsys.disabled():
        print(f"\n{rows[-1]['batches']} batches: {memory:+.0f} bytes a batch, {descriptors:+} open files, {threads:+} threads")
    assert memory < A_BATCH / 2
    assert descriptors < WARM
    assert threads <= 0


@pytest.mark.slow
def test_nothing_grows_over_fifty_epochs_of_local_shards(local: tuple[Path, Manifest], capsys: pytest.CaptureFixture[str]) -> None:
    assert_flat(observe(shards=str(local[0])), capsys)


@pytest.mark.slow
@pytest.mark.server
def test_nothing_grows_over_fifty_epochs_from_a_store_through_a_cache_that_evicts(
    s3: SeaweedFS, local: tuple[Path, Manifest], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = upload(s3, "flat", local[0])
    budget = 2.5 * max(record.size for record in local[1].records)
    rows = observe(shards=url, storage_options=s3.options, cache=str(tmp_path / "cache"), cache_gb=budget / 1e9)
    assert_flat(rows, capsys)
    assert rows[-1]["totals"]["cache_evictions"] > 10
    assert rows[-1]["totals"]["cache_misses"] > EPOCHS  # samples read as ranges meanwhile
    assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar")) <= budget


@pytest.mark.slow
def test_a_leak_of_a_kilobyte_a_batch_and_a_descriptor_an_epoch_would_be_seen(local: tuple[Path, Manifest]) -> None:
    memory, descriptors = growth(observe("leak", shards=str(local[0])))
    assert memory > 0.8 * A_BATCH
    assert descriptors >= EPOCHS - 2 * WARM
