"""The newest picture grid of a run and a few before it, as JPEGs inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

MOST_PICTURES = 6
"""Largest number of pictures on a page."""
LARGEST = 300_000
"""Largest size of a JPEG in bytes."""
_WIDEST, _TALLEST = 1200, 2400  # pixels
_MOST_PIXELS = 64_000_000  # pixels of the largest file that is opened
_QUALITIES = (85, 70, 55)


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


def _load(step: int, path: Path) -> Picture:
    try:
        if not path.is_file():
            raise OSError("it is not a file")
        with Image.open(path, formats=("PNG",)) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are more than a page shows")
            pixels = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return Picture(step, problem=f"{path.name} can't be shown ({' '.join(str(error).split())})")
    pixels.thumbnail((_WIDEST, _TALLEST), Image.Resampling.LANCZOS)
    while True:
        for quality in _QUALITIES:
            data = io.BytesIO()
            pixels.save(data, "JPEG", quality=quality, optimize=True)
            if data.tell() <= LARGEST:
                url = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
                return Picture(step, url, pixels.width, pixels.height)
        pixels = pixels.resize((max(1, pixels.width * 3 // 4), max(1, pixels.height * 3 // 4)), Image.Resampling.LANCZOS)
