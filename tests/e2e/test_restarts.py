"""`accelerate launch --max_restarts`: a rank that dies is a pause of the run, not its end."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from pipeline.training.run_folder import read_lines
from tests.conftest import ROOT
from tests.datasets import photographs, write_dataset
from tests.launching import (
    clean_environment,
    kill_all,
    launch,
    losses,
    pretrain_command,
    rank_processes,
    run_alone,
    setting_list,
    wait_until,
)

CRASHES, STEPS = 20, 160
SETTINGS = [
    *("--recipe", "inpainting", "--method.width", "8", "--method.bottleneck", "16", "--method.batch_norm_group", "2"),
    *("--training.global_batch", "4", "--training.micro_batch", "4", "--checkpoint.every", "4"),
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("restarts")
    write_dataset(folder, photographs(60, 140, 160), [25, 30, 5])
    return folder


@contextmanager
def restarting(log: Path, *settings: str, port: int, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A launcher that starts two ranks again as often as they die; whatever is left of it in the end is killed."""
    command = pretrain_command(2, *settings)
    command[2:2] = ["--max_restarts", str(CRASHES + 5), "--monitor_interval", "0.05"]
    command[-1] = str(port)  # of the metrics
    with open(log, "ab") as file:
        launcher = subprocess.Popen(
            command, cwd=ROOT, env=clean_environment(**environment), stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield launcher
    finally:
        if launcher.poll() is None:
            kill_all(launcher)


def two_free_ports() -> int:
    """The first of two that follow each other."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            try:
                other.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_crashes_are_twenty_returns_and_change_no_bit(shards: Path, tmp_path: Path) -> None:
    expected, run, log = tmp_path / "undisturbed", tmp_path / "run", tmp_path / "log"
    assert launch(2, *setting_list(shards, expected, STEPS, *SETTINGS)).returncode == 0
    port, chosen = two_free_ports(), random.SystemRandom()
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path / "compiled")}  # as an installed program has it
    with restarting(log, *setting_list(shards, run, STEPS, *SETTINGS), port=port, **compiled) as launcher:
        for attempt in range(1, CRASHES + 1):
            wait_until(lambda attempt=attempt: launcher.poll() is not None or steps_of(run, attempt), log)  # type: ignore[misc]
            assert launcher.poll() is None, log.read_text()[-4000:]
            time.sleep(chosen.uniform(0, 0.15))
            victims = [rank for rank in rank_processes(launcher) if rank.status() != psutil.STATUS_ZOMBIE]
            chosen.choice(victims).kill()
        assert launcher.wait(timeout=280) == 0, log.read_text()[-4000:]
    assert losses(run) == losses(expected)
    events = read_lines(run / "events.jsonl")
    starts = [row for row in events if row["event"] == "start"]
    assert [row["attempt"] for row in starts] == list(range(1, CRASHES + 2))
    assert [row["restarts"] for row in starts] == list(range(CRASHES + 1))
    assert [row["restarts"] for row in events if row["event"] == "restart"] == list(range(1, CRASHES + 1))
    assert events[-1]["reason"] == "finished"
    ledger = subprocess.run([sys.executable, "launch/ledger.py", str(run)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ledger.returncode == 0, ledger.stdout + ledger.stderr
    assert "is taken" not in log.read_text(), "every attempt has its metrics on the port that was asked for"
    assert f"http://127.0.0.1:{port}/metrics" in log.read_text()
    assert not (run / "stacks").exists()


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
        command = [sys.executable, "launch/pretrain.py", *settings, "--monitoring.port", "0"]
        environment = clean_environment(TORCHELASTIC_RESTART_COUNT="1")
        with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as restarted:
            wait_until_waiting(restarted.pid, run / ".lock")
            assert restarted.poll() is None
            dying.kill()
            _, errors = restarted.communicate(timeout=120)
    assert restarted.returncode == 0, errors


def wait_until_waiting(pid: int, lock: Path) -> None:
    """Until a process has the file open."""
    end = time.monotonic() + 120
    while not any(file.path == str(lock) for file in psutil.Process(pid).open_files()):
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(0.5)  # it tries again in this time, and is refused if it does not wait
