"""Two sides that take turns: each a process of its own, the one that does not measure stopped in its tracks.

Stopping (SIGSTOP to the process group) keeps the workers of one side from filling their queues at the other's expense, and spares a start
for each measurement. All sides run on the same two cores.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
_ANSWER = 600.0  # seconds; conversions are the longest
_ERROR = re.compile(r"[A-Za-z_.]+(Error|Exception|Corrupt|Mismatch|Interrupt): ")
_END = 10.0  # seconds to end by itself


class SideFailed(Exception):
    """A side ended or did not answer. The message is the last line that it wrote."""


class Side:
    """One side of a comparison, started and stopped.

    Args:
        python: the interpreter that has the side's packages.
        module: module of this folder.
        arguments: command line of the module.

    Raises:
        SideFailed: the side could not start; the message is the reason that it gave.
    """

    def __init__(self, python: Path, module: str, arguments: Sequence[str]) -> None:
        self._errors = TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed by close()
        self._process = subprocess.Popen(
            [str(python), "-m", f"benchmarks.peers.{module}", *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
        )
        try:
            self.versions: dict[str, str] = self._answer()["versions"]
        except BaseException:
            self.close()
            raise
        self._signal(signal.SIGSTOP)

    def measure(self, images: int) -> float:
        """Images a second over at least `images` images.

        Raises:
            SideFailed: it ended.
        """
        self._signal(signal.SIGCONT)
        try:
            if self._process.stdin is None:
                raise SideFailed("has no input")
            with suppress(BrokenPipeError):  # the answer that is missing says why
                print(json.dumps({"images": images}), file=self._process.stdin, flush=True)
            answer = self._answer()
            return float(answer["images"] / answer["seconds"])
        finally:
            self._signal(signal.SIGSTOP)

    def close(self) -> None:
        """Ends the side and the processes that it started: first by the end of its requests, so that it frees its shared memory itself."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        self._signal(signal.SIGCONT)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END)
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._errors.close()

    def __enter__(self) -> Side:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _answer(self) -> dict[str, Any]:
        if self._process.stdout is None:
            raise SideFailed("has no output")
        late = threading.Timer(_ANSWER, self._signal, [signal.SIGKILL])
        late.start()
        try:
            line = self._process.stdout.readline()
        finally:
            late.cancel()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self._errors.seek(0)
        lines = [text.strip() for text in self._errors if text.strip()]
        errors = [text for text in lines if _ERROR.match(text)] or lines  # warnings may follow the error
        raise SideFailed(errors[-1] if errors else f"ended, or gave no answer in {_ANSWER:.0f} s, without a word")


@dataclass(frozen=True)
class Comparison:
    """Rates of two sides, round by round, in images a second."""

    ours: tuple[float, ...]
    peer: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """Ours over the peer's, a round each, sorted."""
        return sorted(a / b for a, b in zip(self.ours, self.peer, strict=True))


def compare(ours: Side, peer: Side, seconds: float, rounds: int) -> Comparison:
    """Measures the sides in turns, the same number of images each time: as many as take about `seconds` on average.

    Args:
        ours: one side.
        peer: the other.
        seconds: rough duration of a measurement; at least two groups of batches are measured.
        rounds: measurements of each side. Which one begins alternates, so that a drift of the machine favours neither.

    Raises:
        SideFailed: one of them ended.
    """
    first = [side.measure(1) for side in (ours, peer)]  # also brings the files into the page cache and the clocks up
    rough = [side.measure(max(1, int(rate * seconds / 5))) for side, rate in zip((ours, peer), first, strict=True)]
    images = max(1, int(seconds * 2 / (1 / rough[0] + 1 / rough[1])))
    rates: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for index in (0, 1) if number % 2 == 0 else (1, 0):
            rates[index].append((ours, peer)[index].measure(images))
    return Comparison(tuple(rates[0]), tuple(rates[1]))
