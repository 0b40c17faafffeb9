"""A run is asked to stop while its store does not answer: the steps that it has done are saved all the same."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from launch.local.object_store import SeaweedFS
from pipeline.training.checkpoint.store import CheckpointStore, verify
from pipeline.training.record.run_folder import read_lines
from shards.store import Store
from tests.datasets import photographs, write_dataset
from tests.faults.conftest import upload
from tests.faults.proxy import Fault, Proxy, Rule
from tests.launching import kill_all, rank_processes, setting_list, start, wait_until

pytestmark = pytest.mark.slow
STALL = 600
"""Seconds for which a request is waited for: longer than a test."""


def settings(url: str, proxy: Proxy, server: SeaweedFS, run: Path) -> list[str]:
    options = {**server.options, "endpoint_url": proxy.endpoint}
    return [
        *setting_list(url, run, 10_000, "--recipe", "inpainting", "--method.width", "8", "--method.bottleneck", "8"),
        *("--method.batch_norm_group", "2", "--training.global_batch", "4", "--training.micro_batch", "4", "--checkpoint.every", "10000"),
        *("--data.storage_options", *(word for pair in options.items() for word in pair)),
        *("--data.cache", "none", "--data.stall_seconds", str(STALL), "--data.retries", "0"),
    ]


def test_one_rank_stops_at_once_and_loses_no_step(s3: SeaweedFS, proxy: Proxy, tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", photographs(24, 140, 160), [12, 12])
    run, log = tmp_path / "run", tmp_path / "log"
    told = settings(upload(s3, tmp_path / "set"), proxy, s3, run)
    launcher = start(1, *told, log=log)
    try:
        wait_until(lambda: len(read_lines(run / "history.jsonl")) >= 3, log)
        proxy.rules = [Rule(Fault.STALL_HEAD, "*.tar")]
        wait_until(lambda: stands_still(run), log)
        for rank in rank_processes(launcher):
            rank.send_signal(signal.SIGTERM)
        assert launcher.wait(60) == 0
    finally:
        if launcher.poll() is None:
            kill_all(launcher)
    done = len(read_lines(run / "history.jsonl"))
    assert f"stopped after step {done} (SIGTERM), saved" in log.read_text()
    checkpoints = CheckpointStore(Store(str(run / "checkpoints")))
    assert checkpoints.steps() == [done]
    assert verify(checkpoints.store, done) > 0
    proxy.rules = []
    again = start(1, *told, "--training.steps", str(done + 2), log=log)
    assert again.wait(120) == 0, log.read_text()[-3000:]
    assert f"continues after step {done} " in log.read_text()
    assert [row["step"] for row in read_lines(run / "history.jsonl")] == list(range(1, done + 3)), "no step was taken twice"


def stands_still(run: Path, seconds: float = 3.0) -> bool:
    """Returns whether no step comes for some seconds."""
    before = len(read_lines(run / "history.jsonl"))
    time.sleep(seconds)
    return len(read_lines(run / "history.jsonl")) == before
