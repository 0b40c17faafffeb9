"""Starts the real program the way a person does, and reads what it left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from pipeline.training.run_folder import read_lines
from tests.conftest import ROOT

ACCELERATE = str(Path(sys.executable).with_name("accelerate"))
CPU = ROOT / "launch" / "accelerate" / "cpu.yaml"


def pretrain_command(ranks: int, *settings: str) -> list[str]:
    """`accelerate launch launch/pretrain.py`, without a launcher's configuration for one rank, with the CPU file for more."""
    launcher = [ACCELERATE, "launch"]
    if ranks > 1:
        launcher += ["--config_file", str(CPU), "--num_processes", str(ranks)]
    return [*launcher, "launch/pretrain.py", *settings, "--monitoring.port", "0"]


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment without what another launcher may have left in it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "ACCELERATE_", "TORCHELASTIC_"))}
    return {**kept, "TQDM_MININTERVAL": "0", **extra}


def launch(ranks: int, *settings: str, timeout: float = 280, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs to the end."""
    return _run(pretrain_command(ranks, *settings), timeout, environment)


def run_alone(*settings: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program without a launcher: what a rank says and how it ends."""
    return _run([sys.executable, "launch/pretrain.py", *settings, "--monitoring.port", "0"], timeout, environment)


def _run(command: list[str], timeout: float, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    settings = clean_environment(**environment)
    return subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=timeout, check=False)


def start(ranks: int, *settings: str, log: Path, **environment: str) -> subprocess.Popen[bytes]:
    """Starts and returns at once; the launcher leads a process group of its own."""
    with open(log, "ab") as file:
        return subprocess.Popen(
            pretrain_command(ranks, *settings),
            cwd=ROOT,
            env=clean_environment(**environment),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def rank_processes(launcher: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The ranks below a launcher."""
    try:
        children = psutil.Process(launcher.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [child for child in children if "launch/pretrain.py" in " ".join(_command(child))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def wait_until(condition: Callable[[], Any], log: Path, seconds: float = 120) -> None:
    """Waits for a condition; shows the log where it never comes."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain; the log:\n{log.read_text()[-4000:]}"
        time.sleep(0.05)


def kill_all(launcher: subprocess.Popen[bytes]) -> None:
    """kill -9 of the launcher and every rank at once."""
    ranks = rank_processes(launcher)
    os.killpg(launcher.pid, signal.SIGKILL)
    for rank in ranks:  # the launcher starts each in a group of its own
        with suppress(psutil.NoSuchProcess):
            rank.kill()
    launcher.wait()
    psutil.wait_procs(ranks, timeout=20)


def losses(run: Path) -> dict[int, Any]:
    """Step -> losses, gradient norms and the digest of the samples; the later line of a step counts."""
    return {row["step"]: {key: row[key] for key in ("losses", "gradient_norms", "samples")} for row in read_lines(run / "history.jsonl")}


def setting_list(shards: Path | str, run: Path, steps: int, *more: str) -> Sequence[str]:
    """The settings that every run of a test gives."""
    return [
        *("--data.shards", str(shards), "--run", str(run), "--training.steps", str(steps)),
        *("--data.threads", "1", "--training.log_every", "1", "--training.pictures_every", "0", *more),
    ]
