"""What a person sees of a run on the console: a bar where stderr is a terminal, else one plain line at every update.

Plain lines, since a log file full of carriage returns can't be read, and at the same steps in every run, so that two
logs can be compared. A console that can't be written to (the terminal is gone, the disk is full) costs its lines,
never the run.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TextIO

from tqdm import tqdm

_WINDOW = 32  # updates that the speed is measured over: old enough to be steady, new enough to follow a change
_NARROW = 40  # columns; where there are fewer (0: the terminal does not know) lines are printed


class Progress:
    """The console of a run.

    Args:
        total_steps: of the whole run.
        first_step: steps that were done before this attempt.
        enabled: false prints nothing: what ranks other than the first get.
        stream: where to; None is stderr.
        log_every: plain lines are printed at its multiples and at the last step only.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        total_steps: int,
        first_step: int,
        enabled: bool,
        stream: TextIO | None = None,
        log_every: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._enabled, self._log_every, self._clock = total_steps, enabled, log_every, clock
        self._stream = sys.stderr if stream is None else stream
        self._timed: deque[tuple[int, float]] = deque([(first_step, clock())], maxlen=_WINDOW)
        self._bar: Any = None
        if enabled and _is_terminal(self._stream):
            with suppress(OSError, ValueError):
                self._bar = _Bar(
                    total=total_steps,
                    initial=first_step,
                    file=self._stream,
                    dynamic_ncols=True,
                    miniters=1,
                    bar_format="{percentage:3.0f}% |{bar:12}| {desc}",
                    desc=f"step {first_step}/{total_steps}",
                )

    def update(self, step: int, losses: Mapping[str, float], images_per_second: float, data_wait_share: float, epoch: int) -> None:
        """Shows how far the run is.

        Args:
            step: steps that are done.
            losses: by the name to print.
            images_per_second: over all ranks.
            data_wait_share: share of the time that was spent waiting for data, 0 to 1.
            epoch: of the batch, from 0.
        """
        left = self._left(step)
        if not self._enabled:
            return
        parts = [
            f"step {step}/{self._total}",
            f"{_duration(left)} left",  # early, since a narrow terminal cuts the end off
            *(f"{name} {value:.4g}" for name, value in losses.items()),
            f"{images_per_second:.{0 if images_per_second >= 100 else 1}f} images/s",
            f"{data_wait_share:.0%} waiting for data",
            f"epoch {epoch}",
        ]
        if self._bar is not None:
            with suppress(OSError, ValueError):  # ValueError: the stream is closed
                self._bar.n = step
                self._bar.set_description_str(", ".join(parts))  # draws
        elif step % self._log_every == 0 or step == self._total:
            self._print(", ".join(parts))

    def message(self, text: str) -> None:
        """Prints a line of its own, above the bar."""
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.write(text, file=self._stream)
        elif self._enabled:
            self._print(text)

    def close(self) -> None:
        """Leaves the bar as it is and goes to the next line. A second call does nothing."""
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.close()
        self._bar, self._enabled = None, False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _left(self, step: int) -> float | None:
        """Seconds to the end at the speed of the last updates, None while that is unknown."""
        first, began = self._timed[0]
        now = self._clock()
        self._timed.append((step, now))
        return (now - began) / (step - first) * (self._total - step) if step > first else None

    def _print(self, text: str) -> None:
        with suppress(OSError, ValueError):
            print(text, file=self._stream, flush=True)


class _Bar(tqdm):  # type: ignore[type-arg]
    monitor_interval = 0  # no thread that redraws


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty() and os.get_terminal_size(stream.fileno()).columns >= _NARROW
    except (AttributeError, OSError, ValueError):
        return False


def _duration(seconds: float | None) -> str:
    """h:mm:ss, with days before where there are any."""
    if seconds is None:
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days} d {hour}:{minute:02d}:{second:02d}" if days else f"{hour}:{minute:02d}:{second:02d}"
