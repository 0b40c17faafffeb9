"""The sheet of a picture grid: the places of its cells, and the text around them.

Headers are large against the pictures, because pages show grids much smaller than they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont

_PAPER, _INK, _SOFT, _BETTER, _WORSE = (255, 255, 255), (0, 0, 0), (96, 96, 96), (22, 110, 60), (176, 32, 32)
_SMALLEST_FONT, _LARGEST_FONT, _SMALLEST_NOTE = 12, 40, 10  # pixels
_BASELINE = "visible mean"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class GridLayout:
    """Places and sizes of a grid, in pixels.

    Args:
        notes: line below the name of each column, by name.
        rows: number of rows, at least 1.
        height, width: size of a picture.
        has_figures: a column of figures stands beside the rows.
        title: line above the columns; empty for none.

    Attributes:
        gap: distance between two pictures, and around all of them.
        lefts: left edges of the columns.
        tops: top edges of the rows.
    """

    def __init__(self, notes: Mapping[str, str], rows: int, height: int, width: int, has_figures: bool, title: str) -> None:
        self._notes, self._has_figures, self._title = notes, has_figures, title
        self._large = _largest_font(max(notes, key=len), width)
        self._small = _font(max(_SMALLEST_NOTE, round(0.5 * _line(self._large))))
        self.gap = max(4, width // 20)
        self._width = max(width, *(_extent(name, self._large) for name in notes), *(_extent(note, self._small) for note in notes.values()))
        self.lefts = [self.gap + column * (self._width + self.gap) for column in range(len(notes))]
        self._figures_left = self.lefts[-1] + self._width + self.gap
        figures = max(_extent(_BASELINE, self._small), _extent("100.0 %", self._large)) + self.gap if has_figures else 0
        right = max(self._figures_left + figures, _extent(title, self._small) + 2 * self.gap)
        self._title_font = self._large if _extent(title, self._large) + 2 * self.gap <= right else self._small
        self._header_top = self.gap + (_line(self._title_font) + self.gap // 2 if title else 0)
        first = self._header_top + _line(self._large) + _line(self._small) + self.gap
        pitch = max(height, _line(self._large) + 3 * _line(self._small) if has_figures else 0) + self.gap
        self.tops = [first + row * pitch for row in range(rows)]
        self._size = right, self.tops[-1] + pitch

    def sheet(self, scale: Image.Image, end: str) -> Image.Image:
        """Draws the empty sheet with its title and headers.

        Args:
            scale: colours of the column `error` from 0 to its end, drawn below the column's name.
            end: value at the end of the scale.
        """
        sheet = Image.new("RGB", self._size, _PAPER)
        draw, below = ImageDraw.Draw(sheet), self._header_top + _line(self._large)
        draw.text((self.gap, self.gap), self._title, fill=_INK, font=self._title_font)
        for (name, note), left in zip(self._notes.items(), self.lefts, strict=True):
            draw.text((left, self._header_top), name, fill=_INK, font=self._large)
            draw.text((left, below), note, fill=_SOFT, font=self._small)
            if name == "error":
                begin, stop = left + _extent("0 ", self._small), left + self._width - _extent(f" {end}", self._small)
                draw.text((left, below), "0", fill=_SOFT, font=self._small)
                draw.text((stop, below), f" {end}", fill=_SOFT, font=self._small)
                bar = scale.resize((max(1, stop - begin), max(4, _line(self._small) // 2)))
                sheet.paste(bar, (begin, below + _line(self._small) // 4))
        if self._has_figures:
            draw.text((self._figures_left, self._header_top), "L1", fill=_INK, font=self._large)
        return sheet

    def draw_figures(self, sheet: Image.Image, top: int, l1: float, baseline_l1: float) -> None:
        """Draws the figures beside a row: its error, that of its visible mean, and how much better or worse the painting is.

        Args:
            sheet: sheet to draw on.
            top: top edge of the row.
            l1: mean absolute error of the painting, in per cent; NaN where it is not known or no number.
            baseline_l1: mean absolute error of the mean colour of the visible part, in per cent; NaN for none.
        """
        draw, middle, line = ImageDraw.Draw(sheet), top + _line(self._large), _line(self._small)
        draw.text((self._figures_left, top), f"{l1:.1f} %", fill=_INK, font=self._large)
        if math.isnan(baseline_l1):
            return
        draw.text((self._figures_left, middle), _BASELINE, fill=_SOFT, font=self._small)
        draw.text((self._figures_left, middle + line), f"{baseline_l1:.1f} %", fill=_SOFT, font=self._small)
        if baseline_l1 > 0 and math.isfinite(l1):
            gain = 1 - l1 / baseline_l1
            word, colour = ("better", _BETTER) if gain > 0 else ("worse", _WORSE)
            draw.text((self._figures_left, middle + 2 * line), f"{abs(100 * gain):.0f} % {word}", fill=colour, font=self._small)


def _largest_font(longest: str, width: int) -> Font:
    """Returns the largest font in which the longest name fits above a picture."""
    size = min(_LARGEST_FONT, width // 5)
    while size > _SMALLEST_FONT and _extent(longest, _font(size)) > width:
        size -= 1
    return _font(max(_SMALLEST_FONT, size))


def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def _extent(text: str, font: Font) -> int:
    return math.ceil(font.getlength(text))


def _line(font: Font) -> int:
    """Returns the height of a line."""
    return math.ceil(1.15 * font.getbbox("Mg")[3])
