"""Runs that hang, starve or collapse, through the real launcher: they end or they say so."""

from __future__ import annotations

import re
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from launch.local.object_store import SeaweedFS
from pipeline.training.record.run_folder import read_lines
from pipeline.training.supervision.watchdog import STALLED
from tests.conftest import ROOT
from tests.datasets import upload
from tests.faults.proxy import Fault, Proxy, Rule
from tests.faults.shaping import Shape
from tests.launching import has_ended, kill_all, launch, ranks_of, run_alone, setting_list, start, wait_until
from tests.ports import free_port

SMALL = [
    *("--recipe", "inpainting", "--method.width", "8", "--method.bottleneck", "16", "--method.batch_norm_group", "2"),
    *("--training.global_batch", "4", "--training.micro_batch", "4", "--checkpoint.every", "100000"),
]
ENDLESS = 100_000
STALL = 10 / 60  # minutes; a busy machine takes a step of these in much less


@contextmanager
def running(log: Path, *settings: str, real: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """Two ranks; whatever is left of them in the end is killed."""
    launcher = start(2, *settings, log=log, real=real)
    try:
        yield launcher
    finally:
        if launcher.poll() is None:
            kill_all(launcher)


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in read_lines(run / "events.jsonl") if row["event"] == kind]


def has_steps(run: Path, launcher: subprocess.Popen[bytes], steps: int = 5) -> bool:
    return launcher.poll() is not None or len(read_lines(run / "history.jsonl")) >= steps


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_where_a_rank_stands_still_the_other_says_so_and_the_run_ends(shards: Path, tmp_path: Path, victim: int) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    other = 1 - victim
    settings = setting_list(
        shards, run, ENDLESS, *SMALL, "--watchdog.stall_minutes", str(STALL), "--watchdog.checkpoint_minutes", str(STALL)
    )
    with running(log, *settings) as launcher:
        wait_until(lambda: has_steps(run, launcher), log)
        ranks = ranks_of(launcher)
        ranks[victim].send_signal(signal.SIGSTOP)
        assert launcher.wait(timeout=150) != 0
        wait_until(lambda: has_ended(ranks[victim]), log)  # its parent may be gone before it
    (stall,) = events(run, "stall")
    assert (stall["rank"], stall["stage"]) == (other, "step")
    text = log.read_text()
    assert text.count("hangs, in step") == 1
    assert f"error (rank {other}): hangs, in step {stall['step']}, computing or waiting for another rank" in text
    assert f"exitcode: {STALLED}" in text or f"exitcode  : {STALLED}" in text
    written = (run / "stacks" / f"rank_{other}_attempt_1.txt").read_text()
    assert f"in step {stall['step']}" in written
    assert "loop.py" in written, "where the main thread is"
    assert not (run / "stacks" / f"rank_{victim}_attempt_1.txt").read_text()


@contextmanager
def store_behind(s3: SeaweedFS, folder: Path, name: str) -> Iterator[tuple[Proxy, list[str]]]:
    """The data set in a real store, a proxy before it, and the settings that read it through the proxy."""
    bucket = f"watchdogs-{name}"
    upload(s3, bucket, folder)
    with Proxy(s3.endpoint) as proxy:
        options = {**s3.options, "endpoint_url": proxy.endpoint}
        yield proxy, ["--data.cache", "none", "--data.storage_options", *(word for pair in options.items() for word in pair)]


@pytest.mark.slow
def test_a_loader_that_hangs_is_told_from_ranks_that_wait_for_it(s3: SeaweedFS, shards: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    with store_behind(s3, shards, "hang") as (proxy, options):
        settings = [*setting_list("s3://watchdogs-hang/set", run, ENDLESS, *SMALL, *options), "--data.stall_seconds", "600"]
        with running(log, *settings, "--watchdog.stall_minutes", str(STALL)) as launcher:
            wait_until(lambda: has_steps(run, launcher), log)
            proxy.rules = [Rule(Fault.STALL_HEAD, count=1)]  # one request, so of one rank
            assert launcher.wait(timeout=200) != 0
    stalls = {stall["stage"]: stall for stall in events(run, "stall")}
    assert stalls.keys() == {"data", "step"}, log.read_text()[-3000:]
    assert {stall["rank"] for stall in stalls.values()} == {0, 1}
    assert f"error (rank {stalls['data']['rank']}): hangs, waiting for data for step" in log.read_text()
    assert "loader.py" in (run / "stacks" / f"rank_{stalls['data']['rank']}_attempt_1.txt").read_text()


@pytest.mark.slow
def test_a_store_that_is_down_and_tried_again_is_no_stall(s3: SeaweedFS, shards: Path, tmp_path: Path) -> None:
    """One request is tried again for twice as long as a stall may last."""
    run = tmp_path / "run"
    with store_behind(s3, shards, "retries") as (proxy, options):
        proxy.rules = [Rule(Fault.STALL_HEAD, first=60, count=6)]  # the pause behind a seventh may be longer than a stall
        patient = ["--data.requests", "1", "--data.ready_batches", "1", "--data.retries", "20", "--data.stall_seconds", "3"]
        settings = setting_list("s3://watchdogs-retries/set", run, 30, *SMALL, *options, *patient)
        done = run_alone(*settings, "--watchdog.stall_minutes", str(STALL))
    assert done.returncode == 0, done.stderr[-3000:]
    assert proxy.rules[0].hits == 6
    assert events(run, "stall") == []


@pytest.mark.slow
def test_a_rank_that_never_joins_is_named(shards: Path, tmp_path: Path) -> None:
    port = free_port()
    environment = {"WORLD_SIZE": "3", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    run = tmp_path / "run"
    done = run_alone(*setting_list(shards, run, 1, *SMALL), "--watchdog.startup_minutes", "0.25", **environment)
    assert done.returncode == STALLED, done.stderr
    assert f"hangs, start-up, waiting for ranks 1, 2 of 3 to join at 127.0.0.1:{port} for" in done.stderr
    (stall,) = events(run, "stall")
    assert stall["stage"] == "start-up"
    assert "rendezvous.py" in (run / "stacks" / "rank_0_attempt_1.txt").read_text()
    done = run_alone(*setting_list(shards, run, 1, *SMALL), "--training.timeout_minutes", "0.05", **environment)
    assert done.returncode == 1
    assert done.stderr.count("error") == 1
    assert f"ranks 1, 2 of 3 did not join at 127.0.0.1:{port} in 0.05 minutes" in done.stderr


@pytest.mark.slow
def test_a_rank_that_stands_still_before_it_joined_is_named_by_the_other(shards: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    with running(log, *setting_list(shards, run, 1, *SMALL), "--watchdog.startup_minutes", "0.25", real=True) as launcher:
        wait_until(lambda: len(ranks_of(launcher)) == 2 or launcher.poll() is not None, log)
        ranks_of(launcher)[1].send_signal(signal.SIGSTOP)  # while it imports
        wait_until(lambda: "hangs, start-up, waiting for rank 1 of 2 to join at" in log.read_text(), log)
        wait_until(lambda: events(run, "stall"), log)


@pytest.mark.slow
def test_the_stacks_of_a_live_run_can_be_asked_for(shards: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    with running(log, *setting_list(shards, run, ENDLESS, *SMALL), real=True) as launcher:
        wait_until(lambda: has_steps(run, launcher), log)
        ranks = ranks_of(launcher)
        for process in ranks.values():
            command = " ".join(process.cmdline())
            for document in ("watchdogs.md", "operations.md"):  # the command that they give finds ranks, and nothing that it would end
                (pattern,) = re.findall(r"pkill -USR2 -f '([^']+)'", (ROOT / "docs" / document).read_text())
                assert re.search(pattern, command), command
                assert re.search(pattern, command.replace(" launch/", f" {ROOT}/launch/"))
                assert not re.search(pattern, " ".join(psutil.Process(launcher.pid).cmdline()))
            process.send_signal(signal.SIGUSR2)
        files = [run / "stacks" / f"rank_{rank}_attempt_1.txt" for rank in ranks]
        wait_until(lambda: all("loop.py" in file.read_text() for file in files), log)
        before = len(read_lines(run / "history.jsonl"))
        wait_until(lambda: has_steps(run, launcher, before + 5), log)
        ranks[0].terminate()
        assert launcher.wait(timeout=100) == 0, log.read_text()
    assert re.search(r"^stopped after step", log.read_text(), re.MULTILINE)
    assert events(run, "stall") == []


def metric(run: Path, rank: int, name: str) -> float:
    """Value of a rank's metric at the node's endpoint."""
    target = re.findall(r'"(127[^"]+)"', (run / "targets" / "rank0.json").read_text())[0]
    text = urllib.request.urlopen(f"http://{target}/metrics", timeout=20).read().decode()
    (found,) = re.findall(rf'^context_encoder_{name}\{{.*rank="{rank}".*\}} (\S+)$', text, re.MULTILINE)
    return float(found)


@pytest.mark.slow
def test_a_run_that_starves_says_so_once_and_when_it_recovers(s3: SeaweedFS, shards: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    with store_behind(s3, shards, "starve") as (proxy, options):
        settings = [*setting_list("s3://watchdogs-starve/set", run, ENDLESS, *SMALL, *options), "--watchdog.starving_seconds", "4"]
        with running(log, *settings, "--data.ready_batches", "1") as launcher:
            wait_until(lambda: has_steps(run, launcher), log)
            assert events(run, "starving") == []
            proxy.shape = Shape(latency_ms=3000)
            wait_until(lambda: launcher.poll() is not None or events(run, "starving"), log)
            wait_until(lambda: metric(run, 0, "data_starving") == 1 or metric(run, 1, "data_starving") == 1, log)
            steps = len(read_lines(run / "history.jsonl"))
            wait_until(lambda: has_steps(run, launcher, steps + 5), log)
            proxy.shape = Shape()
            wait_until(lambda: launcher.poll() is not None or events(run, "starving_over"), log)
            assert metric(run, 0, "data_starving") == 0
    (starving,) = events(run, "starving")
    assert 0.5 <= starving["share"] <= 1
    assert starving["ranks"] in (1, 2)
    assert (
        len(re.findall(r"^step \d+: [12] of 2 ranks wait for data \d+% of the time\. .*data\.threads", log.read_text(), re.MULTILINE)) == 1
    )
    assert log.read_text().count("no rank starves for data now") == 1


@pytest.mark.slow
def test_a_discriminator_that_has_collapsed_is_reported_once(shards: Path, tmp_path: Path) -> None:
    """A generator that does not learn, and a discriminator that does."""
    run, log = tmp_path / "run", tmp_path / "log"
    unequal = ["--method.optimiser.learning_rate", "1e-12", "--method.discriminator_optimiser.learning_rate", "5e-3"]
    with running(log, *setting_list(shards, run, ENDLESS, *SMALL, *unequal), "--watchdog.collapse_steps", "20") as launcher:
        wait_until(lambda: launcher.poll() is not None or events(run, "collapse"), log)
        assert metric(run, 0, "collapsed") == metric(run, 1, "collapsed") == 1
        steps = len(read_lines(run / "history.jsonl"))
        wait_until(lambda: has_steps(run, launcher, steps + 30), log)
    reported = [row["player"] for row in read_lines(run / "events.jsonl") if row["event"] in ("collapse", "collapse_over")]
    assert reported[0] == "discriminator"
    said = re.findall(r"^step \d+: the discriminator has (collapsed|recovered)", log.read_text(), re.MULTILINE)
    assert said[0] == "collapsed"
    assert len(said) == len(reported) <= 3, "each change once"
    means = events(run, "collapse")[0]["means"]
    assert means["adversarial"] <= 0.01 or min(means["accuracy_real"], means["accuracy_generated"]) >= 0.999
    assert "discriminator_optimiser.learning_rate" in log.read_text()


@pytest.mark.slow
def test_gradients_that_are_not_finite_are_events_and_one_last_line(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = setting_list(shards, run, 30, *SMALL, "--training.max_nonfinite_steps", "3", "--method.reconstruction_weight", "1e38")
    done = launch(2, *settings)
    assert done.returncode != 0
    assert done.stderr.count("error: 4 steps in a row gave a gradient that is not finite") == 1
    assert done.stderr.count("error (rank") == 0
    first, *more = events(run, "nonfinite")
    assert (more, first["players"]) == ([], ["generator"])
    (end,) = events(run, "end")
    assert end["reason"] == "NonFiniteError"
    assert "lower the learning rate" in end["message"]
