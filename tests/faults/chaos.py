"""A launcher whose ranks start in a moment, for tests that start dozens of runs and kill them.

The process imports what the program needs, once, and forks a launcher for every line on stdin; the launcher forks the ranks, each of which
runs launch/pretrain.py with an empty state of its own. Like `accelerate launch` it ends the others when a rank fails, passes SIGTERM on,
and leaves the ranks alone when it is killed itself.

python -m tests.faults.chaos reads {"arguments": [...], "environment": {...}, "ranks": 2, "port": n, "log": FILE}, prints {"pid": n} and
{"code": n}.
"""

from __future__ import annotations

import json
import os
import queue
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from tests import warm
from tests.conftest import ROOT
from tests.launching import clean_environment
from tests.ports import free_port

_PATIENCE = 30.0  # seconds that ranks have to end before the launcher kills them


class Launchers:
    """Starts attempts, one at a time, from a warm process of its own."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._answers: queue.Queue[dict[str, int]] = queue.Queue()
        self.ranks: list[psutil.Process] = []
        self.launcher: psutil.Process | None = None
        self.started: list[int] = []

    def __enter__(self) -> Launchers:
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.chaos"],
                cwd=ROOT,
                env=clean_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()

    def start(self, ranks: int, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        """Starts an attempt; `ranks` and `launcher` are its processes."""
        task = {"arguments": list(arguments), "environment": dict(environment), "ranks": ranks, "port": free_port(), "log": str(self.log)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(task).encode() + b"\n")
        self._process.stdin.flush()
        self.launcher = psutil.Process(self._answers.get(timeout=120)["pid"])
        self.ranks = []
        end = time.monotonic() + 60
        while len(self.ranks) < ranks and self.launcher.is_running() and time.monotonic() < end:
            self.ranks = self.launcher.children()
            time.sleep(0.005)
        self.started += [self.launcher.pid, *(rank.pid for rank in self.ranks)]

    def ended(self) -> int | None:
        """The launcher's exit code; None while it runs."""
        try:
            return self._answers.queue[0]["code"]
        except IndexError:
            return None

    def wait(self, seconds: float = 120) -> int:
        """Waits until launcher and ranks are gone; returns the launcher's exit code."""
        code = self._answers.get(timeout=seconds)["code"]
        _, alive = psutil.wait_procs(self.ranks, timeout=seconds)
        assert not alive, f"orphans: {alive}"
        self.launcher = None
        return code

    def kill(self) -> None:
        """kill -9 of the launcher and every rank at once."""
        for process in [*([self.launcher] if self.launcher else []), *self.ranks]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(json.loads(line))


def main() -> None:
    """Forks a launcher for every line, until stdin ends."""
    warm.preload()
    for line in sys.stdin:
        task = json.loads(line)
        pid = os.fork()
        if pid == 0:
            return _launch(task)
        print(json.dumps({"pid": pid}), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)
    return None


def _launch(task: Mapping[str, Any]) -> None:
    log = os.open(task["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, target in enumerate((nothing, log, log)):
        os.dup2(target, number)
    port = task["port"]
    ranks: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: _tell(ranks, number))
    for rank in range(task["ranks"]):
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            return _run(task, rank, port)
        ranks.append(pid)
    result = 0
    deadline = float("inf")
    while ranks:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            ranks.remove(pid)
            if (code := os.waitstatus_to_exitcode(status)) and not result:
                result, deadline = abs(code), time.monotonic() + _PATIENCE
                _tell(ranks, signal.SIGTERM)
        elif time.monotonic() > deadline:
            _tell(ranks, signal.SIGKILL)
        else:
            time.sleep(0.01)
    os._exit(result)


def _tell(ranks: Sequence[int], number: int) -> None:
    for pid in ranks:
        os.kill(pid, number)


def _run(task: Mapping[str, Any], rank: int, port: int) -> None:
    os.environ.update(task["environment"])
    size = str(task["ranks"])
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=size, LOCAL_WORLD_SIZE=size)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="chaos", ACCELERATE_USE_CPU="true")
    del os.pidfd_open  # no guard, because it knows ranks by the environment that a process begins with, and a fork has that of this one
    sys.argv = ["launch/pretrain.py", *task["arguments"]]
    runpy.run_path("launch/pretrain.py", run_name="__main__")


if __name__ == "__main__":
    main()
