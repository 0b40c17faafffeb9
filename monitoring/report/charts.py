"""Curves as inline SVG that fits any width without a script: positions along the steps are fractions of the width, text keeps its size.

A line is the mean of each bucket, and the band behind it goes from the least to the greatest value. Steps that a later attempt took back
are dotted. A level is a dashed line across the plot, such as a baseline. The page's script shows the values under the pointer, which it
reads from the result of `Drawing.data`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from monitoring.report.axes import axis, figure, is_wide, percent, short, ticks, with_levels, without_start
from monitoring.report.curves import Bucket, Buckets, Curve, Curves, extremes, finite, pieces

HEIGHT = 168
"""Height of a plot in pixels, without the labels below it."""
_TOP, _LABELS, _SCALE = 8, 20, 46  # room above the highest line, below the plot, and beside it
_WIDTH = 1000.0  # width of a plot in its own coordinates
_EARLY = 0.05  # part of the steps whose values may lie beyond the axis, where a chart asks for that
_TABLE_ROWS = 12
_MOST_MARKS = 200
_FULL_MARKS = 12  # restarts that are drawn through the whole plot; more of them become ticks at its top
_MOST_POINTS = 60
_LABEL = 14  # height of the label of a level


@dataclass(frozen=True)
class Line:
    """One curve of a chart.

    Attributes:
        name: name in the legend; empty where the title says it.
        curve: values of the curve.
        has_points: each value is a point of its own, as those of evaluations are.
    """

    name: str
    curve: Curve
    has_points: bool = False


@dataclass(frozen=True)
class Level:
    """A value that the curves of a chart are compared with.

    Attributes:
        name: name of the level.
        value: value of the level, finite.
    """

    name: str
    value: float


@dataclass(frozen=True)
class Chart:
    """Curves with one axis of values.

    Attributes:
        title: name of the quantity that is drawn.
        lines: curves, at least one.
        is_fraction: the values are fractions from 0 to 1, written as percentages on an axis from 0 to 100 %.
        may_be_log: the axis is logarithmic where the values differ much.
        from_zero: the axis begins at 0 and ends near the greatest value, even that of fractions.
        levels: levels across the plot, the most important one first, which is always on the axis.
        skips_start: values of the first steps may lie beyond the axis, where they would take more than half of it.
    """

    title: str
    lines: Sequence[Line]
    is_fraction: bool = False
    may_be_log: bool = False
    from_zero: bool = False
    levels: Sequence[Level] = ()
    skips_start: bool = False


class Drawing:
    """A chart as SVG, on the axis of steps that all charts of a page have.

    Args:
        chart: chart to draw.
        curves: all curves of the run, for the width of a bucket and the range of steps.
        restarts: steps after which a later attempt began.
        taken_back: (first, last) of each range of steps that a later attempt took back.
        number: number of the chart on its page.
    """

    def __init__(self, chart: Chart, curves: Curves, restarts: Sequence[int], taken_back: Sequence[tuple[int, int]], number: int) -> None:
        self._chart, self._curves, self._restarts, self._taken_back, self._number = chart, curves, restarts, taken_back, number
        self.first, self.last = span(curves)
        buckets = [(index, bucket) for line in chart.lines for index, bucket in finite(line.curve.counted)]
        buckets = buckets or [(index, bucket) for line in chart.lines for index, bucket in finite(line.curve.undone)]
        levels = [level.value for level in chart.levels]
        least, greatest = extremes([bucket for _, bucket in buckets])
        if chart.skips_start:
            early = self.first + _EARLY * (self.last - self.first)
            settled = extremes([bucket for index, bucket in buckets if curves.steps(index)[0] > early] or [each for _, each in buckets])
            least, greatest = without_start((least, greatest), with_levels(settled, levels))
        least, greatest = with_levels((least, greatest), levels)
        is_log = chart.may_be_log and is_wide(least, greatest)
        least = min(0.0, least) if chart.from_zero else least
        whole = chart.is_fraction and least >= 0 and greatest <= 1 and not chart.from_zero
        self._axis = axis(least, greatest, is_log=is_log, whole=whole)
        self._beyond = self._values_beyond([bucket for _, bucket in buckets])

    def text(self, value: float) -> str:
        """Writes a value of this chart."""
        return percent(value) if self._chart.is_fraction else figure(value)

    def html(self) -> str:
        """Returns the figure with its legend, its plot and its table."""
        return (
            f'<figure class="chart" id="chart-{self._number}"><figcaption><h3>{escape(self._chart.title)}'
            f"{' <small>log scale</small>' if self._axis.is_log else ''}</h3>{self._legend()}</figcaption>"
            f'<div class="drawing">{self._scale()}'
            f'<div class="plot" tabindex="0" role="img" aria-label="{escape(self._summary())}">{self._plot()}</div></div>'
            f"{self._note()}{self._table()}</figure>"
        )

    def data(self) -> dict[str, Any]:
        """Returns the values that the page's script shows, as JSON without NaN."""
        wide = self._curves.width > 1
        lines = []
        for line in self._chart.lines:
            buckets = finite(line.curve.counted)
            entry: dict[str, Any] = {"i": [index for index, _ in buckets], "m": [_rounded(bucket.mean) for _, bucket in buckets]}
            if line.has_points:
                entry["p"] = 1
            elif wide:
                entry["l"] = [_rounded(bucket.least) for _, bucket in buckets]
                entry["h"] = [_rounded(bucket.greatest) for _, bucket in buckets]
            lines.append(entry)
        low, high, is_log = self._axis.low, self._axis.high, self._axis.is_log
        return {"low": low, "high": high, "log": is_log, "share": self._chart.is_fraction, "lines": lines}

    def _legend(self) -> str:
        keys = []
        for number, line in enumerate(self._chart.lines):
            name = f"<dt>{escape(line.name)}</dt>" if line.name else '<dt class="unseen">latest</dt>'
            buckets = finite(line.curve.counted)
            latest = self.text(buckets[-1][1].mean if buckets else math.nan)
            keys.append(f'<div class="key series-{number % 4}">{name}<dd>{latest}</dd></div>')
        return f'<dl class="legend">{"".join(keys)}</dl>'

    def _scale(self) -> str:
        texts = "".join(
            f'<text x="{_SCALE - 8}" y="{self._y(tick) + 4:.1f}">{percent(tick) if self._chart.is_fraction else short(tick)}</text>'
            for tick in self._axis.ticks
        )
        return f'<svg class="scale" width="{_SCALE}" height="{HEIGHT + _LABELS}" aria-hidden="true">{texts}</svg>'

    def _plot(self) -> str:
        parts = [f'<line class="grid" x1="0" x2="100%" y1="{self._y(tick):.1f}" y2="{self._y(tick):.1f}"/>' for tick in self._axis.ticks]
        for tick in ticks(self.first, self.last, 4):
            fraction = self._x(tick) / _WIDTH
            side = " start" if fraction < 0.03 else " end" if fraction > 0.94 else ""
            parts.append(f'<text class="step{side}" x="{fraction:.2%}" y="{HEIGHT + 15}">{short(tick)}</text>')
        lines, names = self._levels()
        parts += [*self._marks(), *lines]
        curves = []
        for number, line in enumerate(self._chart.lines):
            name = f"series-{number % 4}"
            if self._curves.width > 1:
                curves.append(f'<path class="band {name}" d="{self._band(line.curve.counted)}"/>')
            kind = "line points" if line.has_points else "line"
            curves.append(f'<path class="{kind} {name}" d="{self._line(line.curve.counted)}"/>')
            if line.curve.undone:
                curves.append(f'<path class="undone" d="{self._line(line.curve.undone)}"/>')
        parts.append(
            f'<svg class="curves" width="100%" height="{HEIGHT}" viewBox="0 0 {_WIDTH:.0f} {HEIGHT}" preserveAspectRatio="none">'
            f"{''.join(curves)}</svg>"
        )
        parts += [*self._points(), *names]
        return f'<svg width="100%" height="{HEIGHT + _LABELS}" aria-hidden="true">{"".join(parts)}</svg>'

    def _marks(self) -> Iterator[str]:
        # the width is cut into _MOST_MARKS pieces, and marks in the same piece are drawn once
        pieces = {self._piece(first): 0 for first, _ in self._taken_back}
        for first, last in self._taken_back:
            pieces[self._piece(first)] = max(pieces[self._piece(first)], self._piece(last))
        for left, right in pieces.items():
            yield f'<rect class="back" x="{left / _MOST_MARKS:.2%}" width="{max(1, right - left) / _MOST_MARKS:.2%}" height="{HEIGHT}"/>'
        pieces_with_restart = sorted({self._piece(step) for step in self._restarts if self.first <= step <= self.last})
        bottom = HEIGHT if len(pieces_with_restart) <= _FULL_MARKS else _TOP
        for piece in pieces_with_restart:
            yield f'<line class="restart" x1="{piece / _MOST_MARKS:.2%}" x2="{piece / _MOST_MARKS:.2%}" y1="0" y2="{bottom}"/>'
        broken = {index for line in self._chart.lines for index, bucket in line.curve.counted.items() if bucket.nonfinite}
        for index in sorted(broken):
            fraction = self._x(self._centre(index)) / _WIDTH
            yield f'<line class="nonfinite" x1="{fraction:.2%}" x2="{fraction:.2%}" y1="{HEIGHT - 8}" y2="{HEIGHT}"/>'

    def _levels(self) -> tuple[list[str], list[str]]:
        """Draws the levels that are on the axis: their lines, and their names at the right, above the line unless another name is there."""
        lines, names, taken = list[str](), list[str](), list[float]()
        for level in sorted(self._chart.levels, key=lambda level: -level.value):
            if 0 <= self._axis.fraction(level.value) <= 1:
                height = self._y(level.value)
                foot = next((foot for foot in (height - 4, height + 12) if all(abs(foot - other) >= _LABEL for other in taken)), height - 4)
                taken.append(foot)
                lines.append(f'<line class="level" x1="0" x2="100%" y1="{height:.1f}" y2="{height:.1f}"/>')
                names.append(f'<text class="level" x="100%" y="{foot:.1f}">{escape(level.name)} {self.text(level.value)}</text>')
        return lines, names

    def _points(self) -> Iterator[str]:
        """Draws a point at the end of each line, and at each value of the lines that have points."""
        for number, line in enumerate(self._chart.lines):
            buckets = finite(line.curve.counted)
            for index, bucket in buckets if line.has_points and len(buckets) <= _MOST_POINTS else buckets[-1:]:
                if -0.01 <= self._axis.fraction(bucket.mean) <= 1.01:
                    fraction = self._x(self._centre(index)) / _WIDTH
                    yield f'<circle class="series-{number % 4}" cx="{fraction:.2%}" cy="{self._y(bucket.mean):.1f}" r="3"/>'

    def _values_beyond(self, buckets: Sequence[Bucket]) -> list[str]:
        """Names the values that the axis leaves out."""
        least, greatest = extremes(buckets)
        found = [f"values of the first steps, up to {self.text(greatest)}"] if self._axis.fraction(greatest) > 1.001 else []
        found += [f"values of the first steps, down to {self.text(least)}"] if self._axis.fraction(least) < -0.001 else []
        return found + [
            f"{level.name}, {self.text(level.value)}" for level in self._chart.levels if not 0 <= self._axis.fraction(level.value) <= 1
        ]

    def _note(self) -> str:
        return f'<p class="beyond">Beyond this axis: {escape("; ".join(self._beyond))}.</p>' if self._beyond else ""

    def _line(self, buckets: Buckets) -> str:
        parts = []
        for piece in pieces(buckets):
            points = [f"{self._x(self._centre(index)):.1f} {self._y(bucket.mean):.1f}" for index, bucket in piece]
            parts.append(f"M{'L'.join(points)}" if len(points) > 1 else f"M{points[0]}h.1")
        return "".join(parts)

    def _band(self, buckets: Buckets) -> str:
        parts = []
        for piece in pieces(buckets):
            upper = [f"{self._x(self._centre(index)):.1f} {self._y(bucket.greatest):.1f}" for index, bucket in piece]
            lower = [f"{self._x(self._centre(index)):.1f} {self._y(bucket.least):.1f}" for index, bucket in reversed(piece)]
            parts.append(f"M{'L'.join(upper + lower)}z")
        return "".join(parts)

    def _table(self) -> str:
        """Returns a table of a few rows, for readers who can't see the curves or want to copy the figures."""
        indexes = sorted({index for line in self._chart.lines for index in line.curve.counted})
        if len(indexes) > _TABLE_ROWS:
            indexes = [indexes[round(number * (len(indexes) - 1) / (_TABLE_ROWS - 1))] for number in range(_TABLE_ROWS)]
        head = "".join(f'<th scope="col">{escape(line.name or self._chart.title)}</th>' for line in self._chart.lines)
        rows = []
        for index in indexes:
            cells = "".join(f"<td>{self._cell(line.curve.counted.get(index))}</td>" for line in self._chart.lines)
            rows.append(f'<tr><th scope="row">{self._steps(index)}</th>{cells}</tr>')
        return (
            f'<details class="values"><summary>Values<span class="unseen"> of {escape(self._chart.title)}</span></summary>'
            f'<div class="wide"><table><thead><tr><th scope="col">steps</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
            "</details>"
        )

    def _cell(self, bucket: Bucket | None) -> str:
        if bucket is None or not bucket.count:
            return "not finite" if bucket else ""
        if bucket.count == 1:
            return self.text(bucket.mean)
        return f"{self.text(bucket.mean)} <small>{self.text(bucket.least)} to {self.text(bucket.greatest)}</small>"

    def _steps(self, index: int) -> str:
        first, last = self._curves.steps(index)
        first = min(last, max(0 if any(line.has_points for line in self._chart.lines) else 1, first))  # 0 is the random start
        return f"{first:,}" if first == last else f"{first:,} to {last:,}"

    def _summary(self) -> str:
        said = []
        for line in self._chart.lines:
            if buckets := finite(line.curve.counted):
                (first, begin), (last, end) = buckets[0], buckets[-1]
                name = f"{line.name}: " if line.name else ""
                said.append(
                    f"{name}{self.text(begin.mean)} at step {self._steps(first)}, {self.text(end.mean)} at step {self._steps(last)}"
                )
        said += [f"{level.name}: {self.text(level.value)}" for level in self._chart.levels]
        return f"{self._chart.title} over the steps. {'; '.join(said) or 'No finite value'}. The values are in the table below."

    def _centre(self, index: int) -> float:
        return sum(self._curves.steps(index)) / 2

    def _x(self, step: float) -> float:
        return max(0.0, min(_WIDTH, _WIDTH * (step - self.first) / (self.last - self.first)))

    def _piece(self, step: int) -> int:
        return round(self._x(step) * _MOST_MARKS / _WIDTH)

    def _y(self, value: float) -> float:
        return max(-9999.0, min(9999.0, HEIGHT - self._axis.fraction(value) * (HEIGHT - _TOP)))


def span(curves: Curves) -> tuple[int, int]:
    """Returns the first and the last step of every chart's axis: from 0, unless the record begins much later."""
    first = 0 if curves.first <= 0.2 * curves.last else curves.first
    return first, max(curves.last, first + 1)


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
