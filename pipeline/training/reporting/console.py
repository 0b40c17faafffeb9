"""The console of a run: a bar if stderr is a terminal, otherwise one plain line with the time of day at every update.

A line stays below 120 columns: parts that do not fit are left out, and are in the history all the same.
Log files get plain lines, because carriage returns make a file unreadable, and at the same steps in every run, so that two logs can be
compared. If the console can't be written (the terminal is gone, the disk is full), its lines are lost and the run goes on.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, TextIO

from tqdm import tqdm

_WINDOW = 32  # updates over which the speed is measured: enough to be steady, few enough to follow a change
_COLUMNS = 119  # of a plain line
_NARROW = 40  # fewest columns of a terminal with a bar; 0 columns mean that the size is unknown


class Progress:
    """The console of a run. Messages can be printed at any time; the bar appears with `begin`.

    Args:
        total_steps: steps of the whole run.
        enabled: whether anything is printed: true on rank 0 alone.
        stream: stream to print to; None is stderr.
        log_every: plain lines are printed at multiples of this number and at the last step.
        clock: clock of monotonic seconds.
        time_of_day: clock of seconds since 1970, for the local time of plain lines.
    """

    def __init__(
        self,
        total_steps: int,
        enabled: bool,
        stream: TextIO | None = None,
        log_every: int = 1,
        clock: Callable[[], float] = time.monotonic,
        time_of_day: Callable[[], float] = time.time,
    ) -> None:
        self._time_of_day = time_of_day
        self._total, self._enabled, self._log_every, self._clock = total_steps, enabled, log_every, clock
        self._stream = sys.stderr if stream is None else stream
        self._timed: deque[tuple[int, float]] = deque([(0, clock())], maxlen=_WINDOW)
        self._bar: Any = None

    def begin(self, first_step: int) -> None:
        """Measures the speed from here on and, on a terminal, draws the bar.

        Args:
            first_step: steps that were done before this attempt.
        """
        self._timed.clear()
        self._timed.append((first_step, self._clock()))
        if self._enabled and _is_terminal(self._stream):
            with suppress(OSError, ValueError):
                self._bar = _Bar(
                    total=self._total,
                    initial=first_step,
                    file=self._stream,
                    dynamic_ncols=True,
                    miniters=1,
                    bar_format="{percentage:3.0f}% |{bar:12}| {desc}",
                    desc=f"step {first_step}/{self._total}",
                )

    def update(
        self,
        step: int,
        losses: Mapping[str, float],
        images_per_second: float,
        wait_fraction: float,
        epoch: int,
        gradient_norms: Collection[float] = (),
        rates: Collection[float] = (),
        utilisation: float = math.nan,
    ) -> None:
        """Shows the progress of the run.

        Args:
            step: steps that are done.
            losses: losses by the name to print.
            images_per_second: images over all ranks.
            wait_fraction: fraction of the time that was spent waiting for data, 0 to 1.
            epoch: epoch of the batch, from 0.
            gradient_norms: gradient norms of the players, before clipping.
            rates: learning rates of the players.
            utilisation: model-FLOP utilisation over all ranks, 0 to 1; NaN if unknown, which prints nothing.
        """
        left = self._left(step)
        if not self._enabled:
            return
        shown = [f"{name} {value:.4g}" for name, value in losses.items()]
        parts = [
            f"step {step}/{self._total}",
            f"{_duration(left)} left",  # early, because a narrow terminal cuts the end off
            *shown[:1],
            *_of_players("grad", gradient_norms),
            *_of_players("lr", rates),
            f"{images_per_second:.{0 if images_per_second >= 100 else 1}f} images/s",
            f"{wait_fraction:.0%} waiting",
            *([f"{utilisation:.0%} of peak"] if math.isfinite(utilisation) else []),
            *shown[1:],
            f"epoch {epoch}",
        ]
        if self._bar is not None:
            with suppress(OSError, ValueError):  # ValueError: the stream is closed
                self._bar.n = step
                self._bar.set_description_str(", ".join(parts))  # draws
        elif step % self._log_every == 0 or step == self._total:
            clock = time.strftime("%H:%M:%S", time.localtime(self._time_of_day()))
            self._print(_fitting(f"{clock} ", parts))

    def message(self, text: str) -> None:
        """Prints a line of its own, above the bar."""
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.write(text, file=self._stream)
        elif self._enabled:
            self._print(text)

    def close(self) -> None:
        """Leaves the bar as it is, moves to the next line and prints nothing further. A second call does nothing."""
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.close()
        self._bar, self._enabled = None, False

    def _left(self, step: int) -> float | None:
        """Returns the seconds to the end at the speed of the last updates; None if the speed is unknown."""
        first, began = self._timed[0]
        now = self._clock()
        self._timed.append((step, now))
        return (now - began) / (step - first) * (self._total - step) if step > first else None

    def _print(self, text: str) -> None:
        with suppress(OSError, ValueError):
            print(text, file=self._stream, flush=True)


def _of_players(name: str, values: Collection[float]) -> list[str]:
    """One part of a line: the values of all players, `lr 0.0001/2e-05`."""
    return [f"{name} {'/'.join(f'{value:.3g}' for value in values)}"] if values else []


def _fitting(line: str, parts: Sequence[str]) -> str:
    """Joins the parts that fit; the first part always does."""
    for number, part in enumerate(parts):
        joined = f"{line}, {part}" if number else f"{line}{part}"
        line = joined if len(joined) <= _COLUMNS or not number else line
    return line


class _Bar(tqdm):  # type: ignore[type-arg]
    monitor_interval = 0  # no thread that redraws


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty() and os.get_terminal_size(stream.fileno()).columns >= _NARROW
    except (AttributeError, OSError, ValueError):
        return False


def _duration(seconds: float | None) -> str:
    """Formats a duration as tqdm does (mm:ss or h:mm:ss), after the number of days if there are any."""
    if seconds is None:
        return "?"
    days, rest = divmod(round(seconds), 86_400)
    return f"{days} d {tqdm.format_interval(rest)}" if days else str(tqdm.format_interval(rest))
