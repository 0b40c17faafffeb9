"""Axes with round numbers (ticks at 1, 2 or 5 times a power of ten), and figures as people write them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

UNKNOWN = "–"  # noqa: RUF001 (a dash in a table)
_SUFFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_LOG_FROM = 50.0  # greatest over least value above which an axis is logarithmic


@dataclass(frozen=True)
class Axis:
    """The axis of a chart's values.

    Attributes:
        low, high: ends of the axis.
        ticks: values with a line and a label.
        is_log: distances on the axis are those of the logarithms.
    """

    low: float
    high: float
    ticks: Sequence[float]
    is_log: bool = False

    def fraction(self, value: float) -> float:
        """Returns the place of a value: 0 at the lower end, 1 at the upper one, and beyond these for values outside."""
        if self.is_log:
            return math.log(max(value, self.low * 1e-3) / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def is_wide(least: float, greatest: float) -> bool:
    """Returns whether values differ so much that only a logarithmic axis shows them all."""
    return least > 0 and greatest > _LOG_FROM * least


def axis(least: float, greatest: float, *, is_log: bool = False, whole: bool = False) -> Axis:
    """Returns the axis of a range of values.

    Args:
        least, greatest: ends of the values, finite.
        is_log: make it logarithmic; the values are above 0.
        whole: the values are fractions from 0 to 1 on an axis from 0 to 1.
    """
    if whole:
        return Axis(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0))
    if is_log:
        (low, high), marks = decades(least, greatest)
        return Axis(low, high, marks, is_log=True)
    low, high = domain(least, greatest)
    return Axis(low, high, ticks(low, high))


def ticks(least: float, greatest: float, most: int = 5) -> list[float]:
    """Returns round values at equal distances between two others.

    Args:
        least, greatest: ends of the range, finite, the second above the first.
        most: largest number of distances, at least 2.
    """
    distance = _nice((greatest - least) / most)
    first, last = math.ceil(least / distance - 1e-9), math.floor(greatest / distance + 1e-9)
    return [round(number * distance, 12 - math.floor(math.log10(distance))) for number in range(first, last + 1)]


def domain(least: float, greatest: float) -> tuple[float, float]:
    """Widens a range to round numbers, and down to 0 where 0 is near."""
    if 0 <= least < 0.4 * greatest:
        least = 0.0
    if greatest - least <= 1e-9 * max(abs(least), abs(greatest), 1e-20):
        half = abs(least) * 0.1 if abs(least) > 1e-20 else 1.0
        least, greatest = least - half, greatest + half
    distance = _nice((greatest - least) / 4)
    return math.floor(least / distance + 1e-9) * distance, math.ceil(greatest / distance - 1e-9) * distance


def decades(least: float, greatest: float, most: int = 5) -> tuple[tuple[float, float], list[float]]:
    """Returns the ends of a logarithmic axis, both powers of ten, and its ticks.

    Args:
        least, greatest: ends of the values, above 0.
        most: largest number of ticks.
    """
    first = math.floor(math.log10(least) + 1e-9)
    last = max(first + 1, math.ceil(math.log10(greatest) - 1e-9))
    return (10.0**first, 10.0**last), [10.0**power for power in range(first, last + 1, math.ceil((last - first + 1) / most))]


def with_levels(values: tuple[float, float], levels: Sequence[float]) -> tuple[float, float]:
    """Widens a range to the first level, and to the others that do not more than double it."""
    least, greatest = values
    for place, level in enumerate(levels):
        extent = greatest - least
        if place == 0 or least - extent <= level <= greatest + extent:
            least, greatest = min(least, level), max(greatest, level)
    return least, greatest


def without_start(values: tuple[float, float], settled: tuple[float, float]) -> tuple[float, float]:
    """Cuts a range of values to the range after the start, on each side where the start would more than double the latter."""
    least, greatest, extent = min(values[0], settled[0]), max(values[1], settled[1]), settled[1] - settled[0]
    return settled[0] if settled[0] - least > extent else least, settled[1] if greatest - settled[1] > extent else greatest


def figure(value: float, digits: int = 4) -> str:
    """Writes a number with about `digits` significant digits."""
    if math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"  # noqa: RUF001 (a minus sign)
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if -4 <= size < 6:
        text = f"{value:,.{max(0, digits - 1 - size)}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
        text = f"{mantissa.rstrip('0').rstrip('.')}e{int(power)}"
    return text.replace("-", "−")  # noqa: RUF001


def short(value: float) -> str:
    """Writes a tick: 20k, 1.5M, 0.05."""
    for size, suffix in _SUFFIXES:
        if abs(value) >= size and not (size == 1e3 and abs(value) < 1e4):
            return f"{figure(value / size)}{suffix}"
    return figure(value)


def percent(fraction: float) -> str:
    """Writes a fraction as a percentage: 12 %, 0.4 %."""
    if not math.isfinite(fraction):
        return UNKNOWN
    return f"{figure(100 * fraction, 2 if abs(fraction) < 0.1 else 3)} %"


def duration(seconds: float) -> str:
    """Writes a duration: 8 s, 12 min, 3 h 05 min, 2 d 4 h."""
    if not math.isfinite(seconds) or abs(seconds) > 1e11:
        return UNKNOWN
    if seconds < 10:
        return f"{figure(seconds, 2)} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours = round(minutes / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def size(amount: float) -> str:
    """Writes an amount of bytes: 47 MB, 1.2 GB."""
    if not math.isfinite(amount):
        return UNKNOWN
    for power, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if amount >= power:
            return f"{figure(amount / power, 3)} {unit}"
    return f"{amount:.0f} B"


def moment(seconds: float) -> str:
    """Writes a Unix time (seconds since 1970) in UTC: 2026-11-26 01:52:02."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
    except (ValueError, OverflowError, OSError):
        return UNKNOWN


def _nice(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return float(next((factor for factor in (1, 2, 5, 10) if value <= factor * power * (1 + 1e-9)), 10) * power)
