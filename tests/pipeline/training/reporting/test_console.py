"""The console of a run, as a log file and on a real terminal."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TextIO

import pytest

from pipeline.training.reporting.console import Progress, _Bar

NOON = time.mktime((2026, 1, 31, 12, 0, 0, 0, 0, 0))


class Clock:
    """Ten seconds a step of ten."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def terminal(columns: int) -> Iterator[tuple[TextIO, Callable[[], str]]]:
    """A terminal to write to, and what was written to it."""
    screen, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24 if columns else 0, columns, 0, 0))
    received = bytearray()

    def read() -> None:
        while True:
            try:
                data = os.read(screen, 65536)
            except OSError:  # the other side is closed
                return
            received.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    stream = os.fdopen(side, "w", encoding="utf-8")

    def written() -> str:
        stream.close()
        reader.join(10)
        return received.decode()

    try:
        yield stream, written
    finally:
        stream.close()
        reader.join(10)
        os.close(screen)


def to_nowhere(stream: TextIO) -> None:
    """So that closing it can flush what could not be written."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def run(stream: TextIO, log_every: int = 1, enabled: bool = True) -> None:
    """Fifty steps of a hundred with an update at every tenth, one second a step."""
    clock = Clock()
    with closing(Progress(100, enabled, stream, log_every, clock, lambda: NOON + clock.now)) as progress:
        progress.begin(0)
        progress.message("50 pictures in 2 shards")
        for step in range(10, 60, 10):
            clock.now += 10
            progress.update(step, {"reconstruction": 0.123456, "adversarial": 12.5}, 812.34, 0.04, 3, [0.98765, 11], [1e-4, 2e-5])
            if step == 30:
                progress.message("step 30: checkpoint saved")


def test_a_log_file_gets_plain_lines() -> None:
    stream = io.StringIO()
    run(stream)
    rest = "reconstruction 0.1235, grad 0.988/11, lr 0.0001/2e-05, 812 images/s, 4% waiting"
    assert stream.getvalue().splitlines() == [
        "50 pictures in 2 shards",
        f"12:00:10 step 10/100, 01:30 left, {rest}",
        f"12:00:20 step 20/100, 01:20 left, {rest}",
        f"12:00:30 step 30/100, 01:10 left, {rest}",
        "step 30: checkpoint saved",
        f"12:00:40 step 40/100, 01:00 left, {rest}",
        f"12:00:50 step 50/100, 00:50 left, {rest}",
    ]
    assert "\r" not in stream.getvalue()


def test_the_part_of_the_peak_is_shown_where_it_is_known() -> None:
    stream = io.StringIO()
    with closing(Progress(9, True, stream)) as progress:
        progress.update(1, {}, 10.0, 0.0, 0)
        progress.update(2, {}, 10.0, 0.25, 0, utilisation=0.414)
    first, second = stream.getvalue().splitlines()
    assert "peak" not in first
    assert second.endswith(", 25% waiting, 41% of peak, epoch 0")


def test_lines_come_at_the_same_steps_however_often_there_is_news() -> None:
    stream = io.StringIO()
    with closing(Progress(25, True, stream, log_every=10)) as progress:
        progress.begin(0)
        for step in range(1, 26):
            progress.update(step, {}, 10.0, 0.0, 0)
    assert [line.split(",")[0][9:] for line in stream.getvalue().splitlines()] == ["step 10/25", "step 20/25", "step 25/25"]


def test_other_ranks_print_nothing() -> None:
    stream = io.StringIO()
    run(stream, enabled=False)
    assert stream.getvalue() == ""
    with terminal(120) as (screen, written):
        run(screen, enabled=False)
        assert written() == ""


def test_the_time_left_follows_the_speed_of_late_and_not_of_earlier_attempts() -> None:
    stream, clock = io.StringIO(), Clock()
    with closing(Progress(100_000, True, stream, clock=clock)) as progress:
        progress.begin(50_000)
        progress.update(50_000, {}, 1.0, 0.0, 0)
        assert "? left" in stream.getvalue()
        for step in range(50_001, 50_101):  # slow: 100 s a step
            clock.now += 100
            progress.update(step, {}, 1.0, 0.0, 0)
        assert "57 d 18:" in stream.getvalue().splitlines()[-1]
        for step in range(50_101, 50_201):  # then fast: 1 s a step
            clock.now += 1
            progress.update(step, {}, 1.0, 0.0, 0)
        assert "13:50:00 left" in stream.getvalue().splitlines()[-1]


def test_non_finite_losses_and_standstill_can_be_shown() -> None:
    stream = io.StringIO()
    with closing(Progress(10, True, stream, clock=Clock())) as progress:
        progress.begin(0)
        progress.update(1, {"loss": float("nan")}, 0.0, 1.0, 0)
    assert stream.getvalue()[9:] == "step 1/10, 00:00 left, loss nan, 0.0 images/s, 100% waiting, epoch 0\n"


LONG = "loss of a recipe whose name is longer than any line of a console may ever be" * 2


@pytest.mark.parametrize(
    ("losses", "steps", "left_out"),
    [
        (["reconstruction"], 100, "none"),
        (["reconstruction", "adversarial", "discriminator adversarial", "discriminator accuracy_real"], 500_000, "accuracy_real"),
        ([LONG], 500_000, LONG),
        (["reconstruction", "adversarial"], 10**9, "epoch"),
    ],
)
def test_a_line_stays_below_120_columns_and_leaves_out_what_does_not_fit(losses: list[str], steps: int, left_out: str) -> None:
    stream = io.StringIO()
    with closing(Progress(steps, True, stream)) as progress:
        progress.update(steps - 1, dict.fromkeys(losses, 0.012345678), 8123.4, 0.99, 123, [0.98765, 11.0], [1e-4, 2e-5])
    (line,) = stream.getvalue().splitlines()
    assert len(line) < 120
    assert re.match(rf"\d\d:\d\d:\d\d step {steps - 1}/{steps}, ", line)
    assert ", grad 0.988/11, lr 0.0001/2e-05, 8123 images/s" in line
    assert left_out not in line


def test_a_terminal_gets_one_bar_that_is_drawn_over_itself() -> None:
    with terminal(160) as (screen, written):
        run(screen)
        shown = written()
    assert shown.count("\n") == 3, "two messages and the end"
    drawn = [part.strip() for part in re.split(r"[\r\n]+", shown) if part.strip()]
    assert "step 0/100" in drawn[0]
    assert drawn[-1].startswith("50% |██████      | step 50/100, 00:50 left, reconstruction 0.1235, grad 0.988/11, ")
    assert drawn[-1].endswith("812 images/s, 4% waiting, adversarial 12.5, epoch 3")


def test_messages_stand_above_the_bar_on_lines_of_their_own() -> None:
    with terminal(160) as (screen, written):
        run(screen)
        lines = written().split("\r\n")
    for line, message in zip(lines, ("50 pictures in 2 shards", "step 30: checkpoint saved"), strict=False):
        assert line.split("\r")[-1] == message
        assert line.split("\r")[-2].strip() == "", "the bar was wiped away first"
    assert "step 30/100" in lines[2].split("\r")[1], "and drawn again below"


@pytest.mark.parametrize("columns", [41, 80])
def test_the_bar_never_breaks_a_narrow_terminal(columns: int) -> None:
    with terminal(columns) as (screen, written):
        run(screen)
        parts = re.split(r"[\r\n]+", written())
    assert max(len(part) for part in parts) < columns
    assert any("step 50/100, 00:" in part for part in parts)


def test_a_terminal_of_unknown_size_gets_lines() -> None:
    with terminal(0) as (screen, written):
        run(screen)
        assert len(written().splitlines()) == 7


def test_no_thread_is_left_behind() -> None:
    before = set(threading.enumerate())
    with terminal(100) as (screen, _):
        progress = Progress(10, True, screen)
        progress.begin(0)
        progress.update(1, {}, 1.0, 0.0, 0)
        assert len(set(threading.enumerate()) - before) == 1, "the reader of this test"
        assert "monitor" not in vars(_Bar), "tqdm's own thread"
        progress.close()
        progress.close()


def test_a_console_that_is_gone_costs_lines_and_not_the_run() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", buffering=1) as broken:
        run(broken)
        with pytest.raises(BrokenPipeError):
            print("still broken", file=broken, flush=True)
        to_nowhere(broken)
    closed = io.StringIO()
    closed.close()
    run(closed)
    with open("/dev/full", "w") as full:
        run(full)
        to_nowhere(full)


def test_a_terminal_that_hangs_up_costs_the_bar_and_not_the_run() -> None:
    screen, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    stream = os.fdopen(side, "w", encoding="utf-8")
    progress = Progress(10, True, stream)
    progress.begin(0)
    os.close(screen)
    progress.update(1, {}, 1.0, 0.0, 0)
    progress.message("nobody reads this")
    progress.close()
    to_nowhere(stream)
    stream.close()
