"""A PNG of 64 masks with their statistics, for a person."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.masking.source import MaskSource
from shards.keyed import key_of
from shards.local_files import whole_file

_ROWS = 8
_LARGEST = 112  # side in pixels that a mask is shown with
_GAP, _TEXT, _LINE = 6, 15, 21
_PAPER, _KEPT, _DROPPED, _INK = 0, 1, 2, 3
_COLOURS = (255, 255, 255, 214, 214, 214, 24, 60, 110, 0, 0, 0)


def draw_sheet(path: Path, source: MaskSource, size: int, lines: Sequence[str]) -> None:
    """Draws the masks of the keys `key_of(0)` to `key_of(63)` in rows of eight below some lines of text.

    Args:
        path: path of the PNG, which appears whole or not at all.
        source: source of the masks.
        size: side of the masks in pixels. Large masks are shown smaller.
        lines: lines of text.

    Raises:
        ValueError, ShapesError, StoreError: the source can't draw.
        OSError: the file can't be written.
    """
    side = min(size, _LARGEST)
    picked = (np.arange(side) * 2 + 1) * size // (2 * side)  # the nearest pixel, so that the PNG keeps to few colours
    top, pitch = _GAP + _LINE * len(lines), side + _GAP
    sheet = np.full((top + _GAP + _ROWS * pitch, _GAP + _ROWS * pitch), _PAPER, np.uint8)
    mask = np.empty((size, size), np.bool_)
    for number in range(_ROWS * _ROWS):
        source.draw(key_of(number), mask)
        row, column = divmod(number, _ROWS)
        y, x = top + _GAP + row * pitch, _GAP + column * pitch
        sheet[y : y + side, x : x + side] = np.where(mask[np.ix_(picked, picked)], _DROPPED, _KEPT)
    image = Image.fromarray(sheet, "P")
    image.putpalette(_COLOURS)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(_TEXT)
    pen.fontmode = "1"  # no grey edges, which the palette lacks
    for number, line in enumerate(lines):
        pen.text((_GAP, _GAP + number * _LINE), line, _INK, font)
    with whole_file(path) as file:
        image.save(file, "PNG", optimize=True)
