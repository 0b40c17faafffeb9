"""`accelerate launch --max_restarts`: a rank that dies is a pause of the run, not its end."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from pipeline.training.record.run_folder import read_lines
from tests import warm
from tests.conftest import ROOT
from tests.launching import (
    clean_environment,
    has_ended,
    kill_all,
    launch,
    losses,
    pretrain_command,
    python,
    rank_processes,
    run_alone,
    run_program,
    setting_list,
    wait_until,
)
from tests.ports import free_port

SETTINGS = [
    *("--recipe", "inpainting", "--method.width", "8", "--method.bottleneck", "16", "--method.batch_norm_group", "2"),
    *("--training.global_batch", "4", "--training.micro_batch", "4", "--checkpoint.every", "4"),
]


@contextmanager
def restarting(log: Path, *settings: str, port: int, real: bool) -> Iterator[subprocess.Popen[bytes]]:
    """A launcher that starts two ranks again as often as they die; whatever is left of it in the end is killed."""
    command = pretrain_command(2, *settings, real=real)
    after = command.index("launch") + 1
    command[after:after] = ["--max_restarts", "25", "--monitor_interval", "0.05"]
    command[-1] = str(port)  # of the metrics
    with open(log, "ab") as file:
        launcher = subprocess.Popen(command, cwd=ROOT, env=clean_environment(), stdout=file, stderr=file, start_new_session=True)
    try:
        yield launcher
    finally:
        if launcher.poll() is None:
            kill_all(launcher)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_crash_is_a_return_and_changes_no_bit(shards: Path, tmp_path: Path, draw: random.Random, long: bool) -> None:
    crashes = 20 if long else 3
    crash(shards, tmp_path, draw, crashes=crashes, steps=8 * crashes, real=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_crash_is_a_return_of_ranks_that_have_everything_to_import(shards: Path, tmp_path: Path, draw: random.Random) -> None:
    crash(shards, tmp_path, draw, crashes=1, steps=16, real=True)


def crash(shards: Path, tmp_path: Path, draw: random.Random, crashes: int, steps: int, real: bool) -> None:
    """Kills a rank of each attempt a moment after its first step, and compares what the last one ends with."""
    expected, run, log = tmp_path / "undisturbed", tmp_path / "run", tmp_path / "log"
    assert launch(2, *setting_list(shards, expected, steps, *SETTINGS)).returncode == 0
    port = free_port(2)
    with restarting(log, *setting_list(shards, run, steps, *SETTINGS), port=port, real=real) as launcher:
        for attempt in range(1, crashes + 1):
            wait_until(lambda attempt=attempt: launcher.poll() is not None or steps_of(run, attempt), log)  # type: ignore[misc]
            assert launcher.poll() is None, log.read_text()[-4000:]
            time.sleep(draw.uniform(0, 0.15))  # the moment is what is drawn
            victims = [rank for rank in rank_processes(launcher) if rank.status() != psutil.STATUS_ZOMBIE]
            kill(draw.choice(victims), launcher, real)
        assert launcher.wait(timeout=280) == 0, log.read_text()[-4000:]
    assert losses(run) == losses(expected)
    events = read_lines(run / "events.jsonl")
    starts = [row for row in events if row["event"] == "start"]
    assert [row["attempt"] for row in starts] == list(range(1, crashes + 2))
    assert [row["restarts"] for row in starts] == list(range(crashes + 1))
    assert [row["restarts"] for row in events if row["event"] == "restart"] == list(range(1, crashes + 1))
    assert events[-1]["reason"] == "finished"
    ledger = run_program("launch/ledger.py", str(run))
    assert ledger.returncode == 0, ledger.stdout + ledger.stderr
    assert "is taken" not in log.read_text(), "every attempt has its metrics on the port that was asked for"
    assert f"http://127.0.0.1:{port}/metrics" in log.read_text()
    assert not (run / "stacks").exists()


def kill(rank: psutil.Process, launcher: subprocess.Popen[bytes], real: bool) -> None:
    """kill -9; what serves the metrics of a rank notices within a second that it is gone. Ranks that import take longer to come back, and
    warm ones have to be kept from being faster."""
    servers, agent = rank.children(recursive=True), warm.behind(psutil.Process(launcher.pid))
    if real:
        rank.kill()
        return
    agent.suspend()
    rank.kill()
    try:
        wait_until(lambda: all(map(has_ended, servers)), seconds=30)
    finally:
        agent.resume()


def steps_of(run: Path, attempt: int) -> int:
    """How many steps an attempt has taken."""
    return sum(row.get("attempt") == attempt for row in read_lines(run / "history.jsonl"))


def test_a_restart_waits_for_the_end_of_the_rank_that_still_holds_the_run_folder(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    settings = setting_list(shards, run, 1, *SETTINGS)
    holder = (
        "import fcntl, sys\nfile = open(sys.argv[1], 'w')\nfcntl.flock(file, fcntl.LOCK_EX)\nprint('held', flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", holder, str(run / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as dying:
        assert dying.stdout
        dying.stdout.readline()
        refused = run_alone(*settings)
        assert (refused.returncode, "another run is writing here" in refused.stderr) == (1, True)
        command = [python(), "launch/pretrain.py", *settings, "--monitoring.port", "0"]
        environment = clean_environment(TORCHELASTIC_RESTART_COUNT="1")
        with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as restarted:
            process = psutil.Process(restarted.pid)
            wait_until(lambda: str(run / ".lock") in [file.path for file in warm.behind(process).open_files()])
            time.sleep(0.5)  # it tries again in this time, and is refused if it does not wait
            assert restarted.poll() is None
            dying.kill()
            _, errors = restarted.communicate(timeout=120)
    assert restarted.returncode == 0, errors
