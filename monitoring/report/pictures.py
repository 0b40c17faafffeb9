"""The picture grids of a run as JPEGs inside the page: the newest and a few before it, and single pictures followed through many grids.

A grid's PNG names the places of its cells (`monitoring.run_files.GRID_TEXT`). Rows of several grids show the same picture where they have
the same digest of the true picture. Grids without places, or with places that can't be right, are shown whole and followed nowhere.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from monitoring.report.lines import integer, number
from monitoring.run_files import GRID_TEXT

MOST_PICTURES = 6
"""Largest number of pictures on a page."""
LARGEST = 300_000
"""Largest size of a JPEG in bytes."""
_WIDEST, _TALLEST = 1200, 2400  # pixels
_MOST_PIXELS = 64_000_000  # pixels of the largest file that is opened
_QUALITIES = (85, 70, 55)
MOST_FOLLOWED, MOST_STEPS = 4, 7
"""Largest number of pictures that are followed, and of grids through which they are."""
LARGEST_CUT = 16_000
"""Largest size of a JPEG of one picture in bytes."""
_WIDEST_CUT = 256  # pixels
_MOST_ROWS, _MOST_COLUMNS, _LONGEST_PLACES = 64, 16, 1 << 16
_FOLLOWED = ("pasted", "prediction")  # columns of which the first one that a grid has is followed
_DIGEST = re.compile(r"[0-9a-f]{8}")


@dataclass(frozen=True)
class Picture:
    """One grid.

    Attributes:
        step: step at which the grid was drawn.
        url: data URL of the JPEG; empty where the file can't be read.
        width, height: size in pixels.
        problem: reason why the file can't be read.
    """

    step: int
    url: str = ""
    width: int = 0
    height: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Cut:
    """One picture, cut out of a grid.

    Attributes:
        url: data URL of the JPEG.
        width, height: size in pixels.
        l1: mean absolute error that stands beside the picture in the grid, in per cent; NaN for none.
    """

    url: str
    width: int
    height: int
    l1: float = math.nan


@dataclass
class Followed:
    """One picture through the steps of a run.

    Attributes:
        column: name of the column that is followed.
        context, truth: input of the network, and the picture as it is; None where the grid has no such column.
        steps: step of a grid -> painting of the network, by step.
    """

    column: str
    context: Cut | None
    truth: Cut | None
    steps: dict[int, Cut] = field(default_factory=dict)


@dataclass(frozen=True)
class _Places:
    """Places of the cells of a grid, checked against its size.

    Attributes:
        width, height: size of a cell.
        lefts: name of a column -> its left edge.
        rows: digest of the true picture -> top edge of its row, and the error that stands beside it.
    """

    width: int
    height: int
    lefts: Mapping[str, int]
    rows: Mapping[str, tuple[int, float]]


def chosen(pictures: Sequence[tuple[int, Path]], most: int = MOST_PICTURES) -> list[tuple[int, Path]]:
    """Chooses the newest picture and others back to the first one, evenly spaced in steps. Returns the newest first.

    Args:
        pictures: (step, file) pairs, sorted by step.
        most: largest number of pictures to choose.
    """
    if len(pictures) <= most:
        return list(reversed(pictures))
    first, last = pictures[0][0], pictures[-1][0]
    wanted = [last - (last - first) * number / (most - 1) for number in range(most)]
    found: list[tuple[int, Path]] = []
    for step in wanted:
        nearest = min((each for each in pictures if each not in found), key=lambda each: abs(each[0] - step))
        found.append(nearest)
    return sorted(found, reverse=True)


def load(pictures: Sequence[tuple[int, Path]]) -> list[Picture]:
    """Reads and shrinks files. A damaged file becomes a `Picture` with its problem."""
    return [_load(step, path) for step, path in pictures]


def follow(pictures: Sequence[tuple[int, Path]]) -> list[Followed]:
    """Follows the first pictures of the newest grid through the grids before it; returns those that at least two grids show.

    Args:
        pictures: (step, file) pairs, sorted by step.
    """
    found: dict[str, Followed] = {}
    for place, (step, path) in enumerate(chosen(pictures, MOST_STEPS)):  # the newest first, one of them in memory at a time
        try:
            grid, places = _opened(path)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue  # the whole grids name the problem
        column = next((name for name in _FOLLOWED if places is not None and name in places.lefts), None)
        if places is None or column is None:
            continue
        if place == 0:
            for digest in list(places.rows)[:MOST_FOLLOWED]:
                found[digest] = Followed(column, _cut(grid, places, "context", digest), _cut(grid, places, "truth", digest))
        for digest, each in found.items():
            if (cut := _cut(grid, places, each.column, digest)) is not None:
                each.steps[step] = cut
    for each in found.values():
        each.steps = dict(sorted(each.steps.items()))
    return [each for each in found.values() if len(each.steps) > 1]


def _load(step: int, path: Path) -> Picture:
    try:
        pixels, _ = _opened(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return Picture(step, problem=f"{path.name} can't be shown ({' '.join(str(error).split())})")
    pixels.thumbnail((_WIDEST, _TALLEST), Image.Resampling.LANCZOS)
    return Picture(step, *_encoded(pixels, LARGEST))


def _opened(path: Path) -> tuple[Image.Image, _Places | None]:
    """Reads a grid and the places of its cells.

    Raises:
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: the file is no picture that a page shows.
    """
    if not path.is_file():
        raise OSError("it is not a file")
    with Image.open(path, formats=("PNG",)) as image:
        if image.width * image.height > _MOST_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are more than a page shows")
        return image.convert("RGB"), _places(image.info.get(GRID_TEXT), image.width, image.height)


def _places(content: object, width: int, height: int) -> _Places | None:
    """Reads the places of the cells in a grid of a width and a height; None where there are none or one of them can't be right."""
    if not isinstance(content, str) or len(content) > _LONGEST_PLACES:
        return None
    try:
        text = json.loads(content)
        cell_width, cell_height = text["cell"]
        lefts = {str(column["name"]): column["left"] for column in text["columns"][:_MOST_COLUMNS]}
        rows = {str(row["truth"]): (row["top"], _error(row.get("l1"))) for row in text["rows"][:_MOST_ROWS]}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    sides = [(cell_width, left, width) for left in lefts.values()] + [(cell_height, top, height) for top, _ in rows.values()]
    if not sides or not all(map(_DIGEST.fullmatch, rows)) or not all(_fits(*each) for each in sides):
        return None
    return _Places(cell_width, cell_height, lefts, rows)


def _fits(length: Any, begin: Any, whole: int) -> bool:
    return bool(integer(length)) and integer(begin) is not None and begin + length <= whole


def _error(value: object) -> float:
    found = number(value)
    return found if found is not None and abs(found) < 1e6 else math.nan


def _cut(grid: Image.Image, places: _Places, column: str, digest: str) -> Cut | None:
    if column not in places.lefts or digest not in places.rows:
        return None
    left, (top, l1) = places.lefts[column], places.rows[digest]
    pixels = grid.crop((left, top, left + places.width, top + places.height))
    pixels.thumbnail((_WIDEST_CUT, _WIDEST_CUT), Image.Resampling.LANCZOS)
    return Cut(*_encoded(pixels, LARGEST_CUT), l1)


def _encoded(pixels: Image.Image, largest: int) -> tuple[str, int, int]:
    """Returns the data URL of a JPEG of at most `largest` bytes, and its width and height, which are smaller if need be."""
    while True:
        for quality in _QUALITIES:
            data = io.BytesIO()
            pixels.save(data, "JPEG", quality=quality, optimize=True)
            if data.tell() <= largest:
                return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}", pixels.width, pixels.height
        pixels = pixels.resize((max(1, pixels.width * 3 // 4), max(1, pixels.height * 3 // 4)), Image.Resampling.LANCZOS)
