"""Measures how much abuse of a run's metrics endpoint slows its training down.

One process trains the features recipe and publishes its metrics as a rank does, and is pinned to the first core. The abusers of
benchmarks/abusers.py (200 concurrent scrapes, wrong tokens, garbage, half requests, clients that drip, never read or leave) are pinned to
the second core. They slow the first core down by themselves, because the two cores may share caches and more. So the abusers never rest,
and attack by turns the endpoint of the run and the endpoint of a process that has nothing to do with it. Prints one Markdown table.

    python -m benchmarks.endpoint_abuse
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path

import psutil
import torch

from benchmarks.checkpoint_blocking import Training
from benchmarks.machine import measured_here
from monitoring import MonitoringConfig, Publication, RankIdentity, RunMetrics

ROOT = Path(__file__).resolve().parents[1]
TARGET = 0.01
_QUIET_SECONDS = 60.0
_SCRAPE_SECONDS = 10.0  # Prometheus's default time-out


@dataclass
class Block:
    """Steps one after the other.

    Attributes:
        wall: duration of each step, in seconds.
        processor: CPU time of the training process in each step, in seconds, all its threads.
        answers: CPU time of the training process for answers to its endpoint, in the whole block.
        endpoint: CPU time of the endpoint's own process, in the whole block.
    """

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    answers: float = 0.0
    endpoint: float = 0.0


@dataclass
class Figures:
    """Measurements of one line of the table.

    Attributes:
        pairs: pairs of blocks, first with the abusers elsewhere, then with the abusers at the run.
        answers: answers that the abusers got, and how often.
        beside: duration of honest scrapes during the abuse, in seconds; None where Prometheus would have given up.
        after: duration of honest scrapes that begin when the abuse ends, in seconds.
    """

    pairs: list[tuple[Block, Block]] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    beside: list[float | None] = field(default_factory=list)
    after: list[float] = field(default_factory=list)


class Endpoint:
    """An endpoint that a rank has opened, in this process or another one."""

    def __init__(self, url: str, pid: int, token: Path) -> None:
        self.url, self.process, self.token = url, psutil.Process(pid), token

    def pin(self, core: int) -> None:
        """Pins the threads of the endpoint to a core; threads that they start inherit it."""
        for thread in self.process.threads():
            os.sched_setaffinity(thread.id, [core])

    def scrape(self, timeout: float = 60) -> float:
        """Scrapes as a Prometheus on another host than the abusers would; the duration in seconds.

        Raises:
            OSError: the scrape takes longer than the time-out.
        """
        host = self.url.removeprefix("http://").removesuffix("/metrics")
        began = time.perf_counter()
        with closing(HTTPConnection(host, timeout=timeout, source_address=("127.0.0.2", 0))) as connection:
            connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {self.token.read_text()}"})
            assert b"context_encoder_rank_up" in connection.getresponse().read()
        return time.perf_counter() - began


def publish(folder: Path) -> tuple[RunMetrics, Publication, Endpoint]:
    """Opens the metrics and the endpoint of a rank."""
    folder.mkdir()
    token = folder / "token"
    token.write_text("benchmark")
    metrics = RunMetrics("benchmark", 0, 1, "node")
    metrics.heartbeat(lambda: 0.0)
    identity = RankIdentity(folder / "run", "benchmark", "node", 0, 1, 0, 1, 1)
    published = Publication(metrics.registry, MonitoringConfig(port=0, token_file=str(token)), identity, folder / "targets")
    assert published.process is not None
    assert published.process.pid is not None
    return metrics, published, Endpoint(published.url, published.process.pid, token)


class Run:
    """A rank that trains and publishes its metrics."""

    def __init__(self, folder: Path, batch: int) -> None:
        self.training, self.batch = Training(batch, 1), batch
        self.metrics, self.publication, self.endpoint = publish(folder)
        (answering,) = (thread for thread in threading.enumerate() if thread.name == "metrics")
        assert answering.ident is not None
        self._answering = time.pthread_getcpuclockid(answering.ident)
        self._steps = 0

    def block(self, steps: int) -> Block:
        """Takes steps."""
        found, endpoint, answers = Block(), self.endpoint.process.cpu_times(), time.clock_gettime(self._answering)
        for _ in range(steps):
            self._steps += 1
            wall, processor = time.perf_counter(), time.process_time()
            seconds = self.training.step()
            self.metrics.step(
                step=self._steps, epoch=0, progress=self._steps / 1e6, seconds=seconds, images=self.batch, data_wait_seconds=0.0
            )
            found.wall.append(time.perf_counter() - wall)
            found.processor.append(time.process_time() - processor)
        after = self.endpoint.process.cpu_times()
        found.endpoint = after.user + after.system - endpoint.user - endpoint.system
        found.answers = time.clock_gettime(self._answering) - answers
        return found


@contextmanager
def other_endpoint(folder: Path, core: int) -> Iterator[Endpoint]:
    """Runs the endpoint of a rank that does nothing, pinned to a core."""
    program = (
        "import sys; from pathlib import Path; from benchmarks.endpoint_abuse import publish;"
        "_, published, endpoint = publish(Path(sys.argv[1])); print(endpoint.url, endpoint.process.pid, flush=True); sys.stdin.read();"
        "published.close()"
    )
    command = ["taskset", "--cpu-list", str(core), sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        url, pid = process.stdout.readline().split()
        try:
            yield Endpoint(url, int(pid), folder / "token")
        finally:
            process.stdin.close()


@contextmanager
def abuse(endpoint: Endpoint, core: int, answers: Counter[str]) -> Iterator[None]:
    """Runs the abusers. The block begins when the endpoint is busy."""
    quiet = endpoint.process.num_fds()
    target = endpoint.url.removeprefix("http://").removesuffix("/metrics")
    command = [sys.executable, "-m", "benchmarks.abusers", target, "--token-file", str(endpoint.token), "--seconds", "100000"]
    pinned = ["taskset", "--cpu-list", str(core), *command]
    with subprocess.Popen(pinned, cwd=ROOT, stdout=subprocess.PIPE, text=True) as abusers:
        assert abusers.stdout is not None
        assert abusers.stdout.readline().endswith("clients\n")
        _wait_until(lambda: endpoint.process.num_fds() > quiet + 10)
        try:
            yield
        finally:
            abusers.terminate()
            for kind, counted in json.loads(abusers.stdout.read()).items():
                answers.update({f"{kind}: {answer}": count for answer, count in counted.items()})


def measure(run: Run, other: Endpoint, rounds: int, steps: int, core: int, seconds: float) -> Figures:
    """Takes blocks by turns, each kind first in every other round. No round begins after the given time, but two are always taken."""
    found, end = Figures(), time.monotonic() + seconds
    for number in range(rounds):
        if number > 1 and time.monotonic() > end:
            break
        blocks = {}
        for at_run in (False, True) if number % 2 == 0 else (True, False):
            quiet = run.endpoint.process.num_fds()
            with abuse(run.endpoint if at_run else other, core, found.answers if at_run else Counter()):
                blocks[at_run] = run.block(steps)
                if at_run:
                    try:
                        found.beside.append(run.endpoint.scrape(_SCRAPE_SECONDS))
                    except OSError:
                        found.beside.append(None)
            if at_run:
                found.after.append(run.endpoint.scrape())
                _wait_until(lambda quiet=quiet: run.endpoint.process.num_fds() <= quiet)
        found.pairs.append((blocks[False], blocks[True]))
    return found


def _wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + _QUIET_SECONDS
    while not condition():
        assert time.monotonic() < end, "the endpoint did not come to that"
        time.sleep(0.1)


def _changes(pairs: Sequence[tuple[Block, Block]], kind: str) -> list[float]:
    return [statistics.median(getattr(on, kind)) / statistics.median(getattr(off, kind)) - 1 for off, on in pairs]


def _milliseconds(blocks: Sequence[Block], kind: str) -> str:
    return f"{statistics.median(value for block in blocks for value in getattr(block, kind)) * 1000:.1f}"


def _error(changes: Sequence[float]) -> float:
    """Standard error of the median."""
    return 1.253 * statistics.stdev(changes) / len(changes) ** 0.5 if len(changes) > 1 else math.nan


def _change(changes: Sequence[float]) -> str:
    return f"{statistics.median(changes):+.2%} ({_error(changes):.2%})"


def _shown(changes: Sequence[float]) -> str:
    """Judges whether the changes show that a step takes at most 1 % longer, as far as their standard error allows."""
    middle, error = statistics.median(changes), _error(changes)
    if middle + 2 * error <= TARGET:
        return "yes"
    return "no" if middle - 2 * error > TARGET else "not shown"


def _row(name: str, found: Figures, shared: bool) -> str:
    """One line of the table.

    Args:
        name: name of the core that the endpoint's process is pinned to.
        found: measurements of the line.
        shared: whether that is the training's core, so that the training loses the endpoint's CPU time.
    """
    off, on = [pair[0] for pair in found.pairs], [pair[1] for pair in found.pairs]
    answers = sum(block.answers for block in on) / sum(sum(block.wall) for block in on)
    endpoint = [sum(block.endpoint for block in each) / sum(sum(block.wall) for block in each) for each in (off, on)]
    taken = answers + (endpoint[1] if shared else 0.0)
    cells = [name, str(len(found.pairs))]
    for kind in ("wall", "processor"):
        cells += [_milliseconds(off, kind), _milliseconds(on, kind), _change(_changes(found.pairs, kind))]
    cells += [_shown(_changes(found.pairs, "wall")), f"{answers:.2%}", *(f"{share:.2%}" for share in endpoint)]
    cells += [f"{taken:.2%}", "yes" if taken <= TARGET else "no"]
    answered = [seconds for seconds in found.beside if seconds is not None]
    cells += [f"{len(answered)} of {len(found.beside)}", f"{statistics.median(found.after):.1f} (to {max(found.after):.1f})"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="A training step with and without abuse of its endpoint.")
    parser.add_argument("--rounds", type=int, default=8, help="pairs of blocks a line")
    parser.add_argument("--minutes", type=float, default=6.5, help="no pair begins after this time, but two are always measured")
    parser.add_argument("--steps", type=int, default=60, help="steps a block")
    parser.add_argument("--batch", type=int, default=1, help="pictures a step")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("two cores are needed: one for the training, one for the abusers")
    torch.set_num_threads(1)
    rows, answers, began = list[str](), Counter[str](), time.monotonic()
    with tempfile.TemporaryDirectory() as folder, other_endpoint(Path(folder) / "other", cores[1]) as other:
        os.sched_setaffinity(0, cores[:1])  # threads and processes that are started from here on inherit it
        run = Run(Path(folder) / "run", arguments.batch)
        try:
            run.block(2)
            run.endpoint.scrape()
            other.scrape()
            for name, core in (("another core", cores[1]), ("the training's core", cores[0])):
                run.endpoint.pin(core)
                left = (began + 60 * arguments.minutes - time.monotonic()) / (2 - len(rows))
                found = measure(run, other, arguments.rounds, arguments.steps, cores[1], left)
                rows.append(_row(name, found, shared=core == cores[0]))
                answers += found.answers
        finally:
            run.publication.close()
    print(f"{measured_here()}; torch {torch.__version__}, 1 thread, blocks of {arguments.steps} steps\n")
    print(
        "| endpoint on | pairs | step ms | abused ms | change | processor ms a step | abused ms | change | change at most 1 % "
        "| answers' share of the training's core | endpoint's share of a core | abused | taken from the training's core | at most 1 % "
        "| scrapes answered meanwhile | scrape afterwards s |"
    )
    print(f"|{'---|' * 16}")
    print("\n".join(rows))
    print("\n| what the abusers got | times |\n|---|---|")
    for answer, count in sorted(answers.items()):
        print(f"| {answer} | {count} |")


if __name__ == "__main__":
    main()
