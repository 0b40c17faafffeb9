"""Starts the real program the way a person does, and reads what it left.

Launcher and ranks are run by the warm interpreter of tests/warm.py, unless a test asks for a real one because the start itself, a parent's
death or what `ps` says of a rank is its point.
"""

from __future__ import annotations

import json
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

from pipeline.training.record.run_folder import read_lines
from tests import warm
from tests.conftest import ROOT

ACCELERATE = str(Path(sys.executable).with_name("accelerate"))
CPU = ROOT / "launch" / "accelerate" / "cpu.yaml"


def python(real: bool = False) -> str:
    """The interpreter that runs programs: one that has imported everything already, or the one that runs the tests."""
    return sys.executable if real else warm.interpreter()


def pretrain_command(ranks: int, *settings: str, real: bool = False) -> list[str]:
    """`accelerate launch launch/pretrain.py`, without a launcher's configuration for one rank, with the CPU file for more."""
    launcher = [python(real), ACCELERATE, "launch"]
    if ranks > 1:
        launcher += ["--config_file", str(CPU), "--num_processes", str(ranks)]
    return [*launcher, "launch/pretrain.py", *settings, "--monitoring.port", "0"]


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment without what another launcher may have left in it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "ACCELERATE_", "TORCHELASTIC_"))}
    return {**kept, "TQDM_MININTERVAL": "0", **extra}


def launch(ranks: int, *settings: str, timeout: float = 280, real: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs to the end."""
    return _run(pretrain_command(ranks, *settings, real=real), timeout, environment)


def run_alone(*settings: str, timeout: float = 120, real: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program without a launcher: what a rank says and how it ends."""
    return _run([python(real), "launch/pretrain.py", *settings, "--monitoring.port", "0"], timeout, environment)


def run_program(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS`: another program of the repository, to its end."""
    return _run([python(), *arguments], 120, environment)


def _run(command: list[str], timeout: float, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    settings = clean_environment(**environment)
    return subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=timeout, check=False)


def start(ranks: int, *settings: str, log: Path, real: bool = False, **environment: str) -> subprocess.Popen[bytes]:
    """Starts and returns at once; the launcher leads a process group of its own."""
    with open(log, "ab") as file:
        return subprocess.Popen(
            pretrain_command(ranks, *settings, real=real),
            cwd=ROOT,
            env=clean_environment(**environment),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def ranks_of(launcher: subprocess.Popen[bytes]) -> dict[int, psutil.Process]:
    """Rank -> its process, of those below a launcher."""
    found = {}
    for child in _started_ranks(launcher):
        with suppress(psutil.Error, KeyError):
            found[int(child.environ()["RANK"])] = warm.behind(child)
    return found


def rank_processes(launcher: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The ranks below a launcher."""
    return [warm.behind(child) for child in _started_ranks(launcher)]


def _started_ranks(launcher: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes that a launcher has started as ranks."""
    try:
        children = warm.behind(psutil.Process(launcher.pid)).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    ranks = {child.pid: child for child in children if "launch/pretrain.py" in " ".join(_command(child))}
    return [rank for rank in ranks.values() if _parent(rank) not in ranks]  # a rank's child has its command until it is another program


def _parent(process: psutil.Process) -> int:
    try:
        return process.ppid()
    except psutil.Error:
        return 0


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def wait_until(condition: Callable[[], Any], log: Path | None = None, seconds: float = 120, pause: float = 0.05) -> Any:
    """Waits until a condition gives something, and returns that.

    Args:
        condition: condition that is asked again and again.
        log: file whose end is shown where the condition is never met.
        seconds: longest wait, which only a failure takes: a busy machine is none.
        pause: seconds between two questions.
    """
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited in vain; the log:\n{log.read_text()[-4000:]}" if log else "waited in vain"
        time.sleep(pause)
    return found


def has_ended(process: psutil.Process) -> bool:
    """Returns whether a process has ended. The one that inherits it may take a moment to collect it, or do so between two questions."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def train_in_turn(folder: Path, ranks: int, commands: list[list[str]]) -> None:
    """Trains one configuration after another in one start of the ranks (tests/e2e/train_in_turn.py).

    Args:
        folder: folder for the list of commands.
        ranks: number of ranks.
        commands: settings of each run.
    """
    (folder / "runs.json").write_text(json.dumps([[*command, "--monitoring.enabled", "False"] for command in commands]))
    launcher = [python(), ACCELERATE, "launch", *(["--config_file", str(CPU), "--num_processes", str(ranks)] if ranks > 1 else [])]
    done = _run([*launcher, "tests/e2e/train_in_turn.py", str(folder / "runs.json")], 1500, {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-4000:]


def kill_all(launcher: subprocess.Popen[bytes]) -> None:
    """kill -9 of the launcher and every rank at once."""
    processes = [warm.behind(psutil.Process(launcher.pid)), *rank_processes(launcher)]
    os.killpg(launcher.pid, signal.SIGKILL)
    for process in processes:  # the launcher starts each in a group of its own
        with suppress(psutil.NoSuchProcess):
            process.kill()
    launcher.wait()
    psutil.wait_procs(processes, timeout=20)


def losses(run: Path) -> dict[int, Any]:
    """Step -> losses, gradient norms and the digest of the samples; the later line of a step counts."""
    return {row["step"]: {key: row[key] for key in ("losses", "gradient_norms", "samples")} for row in read_lines(run / "history.jsonl")}


def setting_list(shards: Path | str, run: Path, steps: int, *more: str) -> Sequence[str]:
    """The settings that every run of a test gives."""
    return [
        *("--data.shards", str(shards), "--run", str(run), "--training.steps", str(steps)),
        *("--data.threads", "1", "--training.log_every", "1", "--training.pictures_every", "0", *more),
    ]
