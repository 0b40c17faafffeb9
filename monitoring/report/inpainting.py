"""The newest table of inpainting in a run folder, which `launch/evaluate.py inpainting` wrote, as a part of the page.

Nothing in the files is trusted: a row or a figure that is not as it should be is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from monitoring.report import pictures
from monitoring.report.lines import integer, number
from monitoring.report.markup import figure_cell, row, section, table, text
from monitoring.report.pictures import Picture
from monitoring.run_files import INPAINTING, TABLE, TABLE_GRID, step_of_name
from shards.counting import counted

_LARGEST = 1 << 20  # bytes of a table that is read
_MOST_METHODS, _MOST_NOTES = 32, 8
_COLUMNS = {
    "l1": ("L1, %", 2),
    "l2": ("L2, %", 2),
    "psnr": ("PSNR, dB", 2),
    "ssim": ("SSIM", 4),
    "whole_l1": ("L1 whole, %", 2),
    "whole_psnr": ("PSNR whole, dB", 2),
    "lpips": ("LPIPS", 4),
}


@dataclass(frozen=True)
class Inpainting:
    """A table of inpainting.

    Attributes:
        step: step of the checkpoint.
        count: pictures that were judged on.
        judged: data set of these pictures; empty where the table does not say it.
        mask: kind of the masks; empty where the table does not say it.
        methods: rows of the table.
        notes: sentences of the table.
        grid: picture grid; None where there is none.
    """

    step: int
    count: int
    methods: Sequence[Mapping[str, Any]]
    judged: str = ""
    mask: str = ""
    notes: Sequence[str] = field(default_factory=tuple)
    grid: Picture | None = None


def read(folder: Path, problems: list[str]) -> Inpainting | None:
    """Reads the table of the highest step in a run folder; None where there is none.

    Args:
        folder: run folder.
        problems: gets a sentence for a table that can't be read.
    """
    try:
        steps = sorted((step, each) for each in (folder / INPAINTING).iterdir() if (step := step_of_name(each.name)) is not None)
    except OSError:
        return None
    for step, place in reversed(steps):
        if (place / TABLE).exists():
            try:
                return _read(step, place)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                problems.append(f"{INPAINTING}/{place.name}/{TABLE} can't be read ({' '.join(str(error).split())[:200]}).")
    return None


def _read(step: int, place: Path) -> Inpainting:
    with open(place / TABLE, "rb") as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise ValueError("it is larger than tables are")
    found = json.loads(content)
    methods = [each for each in islice(found["methods"], _MOST_METHODS) if isinstance(each.get("figures"), Mapping)]
    grid = pictures.load([(step, place / TABLE_GRID)])[0] if (place / TABLE_GRID).exists() else None
    notes = [str(each) for each in found["notes"][:_MOST_NOTES]]
    judged, mask = (str(found.get(name, "")) for name in ("judged", "mask"))
    return Inpainting(step, integer(found.get("pictures")) or 0, methods, judged, mask, notes, grid)


def inpainting_section(found: Inpainting | None) -> str:
    """Returns the part of the page; empty where there is no table."""
    if found is None or not found.methods:
        return ""
    shown = [key for key in _COLUMNS if any(_mean(each, key) is not None for each in found.methods)]
    rows = [row(text(each.get("title", "unknown"), 80), *(figure_cell(_cell(each, key)) for key in shown)) for each in found.methods]
    lead = (
        f"What the checkpoint of step {found.step:,} paints into the holes of {counted(found.count, 'picture')}, beside other methods on "
        "the same pictures and holes. Means ± half of the 95 % interval over pictures; L1, L2 and PSNR are of the dropped pixels."
    )
    if found.judged or found.mask:
        lead += f" Pictures: {text(found.judged or 'unknown', 300)}. Masks: {text(found.mask or 'unknown', 80)}."
    notes = "".join(f'<p class="hint">{text(each, 500)}</p>' for each in found.notes)
    content = table(["method", *(f">{_COLUMNS[key][0]}" for key in shown)], rows, "Errors of the fills") + notes + _grid(found.grid)
    return section("inpainting", "Inpainting", content, lead)


def _grid(grid: Picture | None) -> str:
    if grid is None:
        return ""
    if grid.problem:
        return f'<figure class="grid broken"><p>{text(grid.problem)}</p></figure>'
    return (
        '<div class="strip"><figure class="grid whole">'
        '<button type="button" class="enlarge" aria-label="Enlarge the fills of every method">'
        f'<img src="{grid.url}" width="{grid.width}" height="{grid.height}" alt="Fills of every method beside the truth"></button>'
        "<figcaption>a column a method</figcaption></figure></div>"
    )


def _mean(method: Mapping[str, Any], key: str, end: str = "mean") -> float | None:
    found = method["figures"].get(key)
    return number(found.get(end)) if isinstance(found, Mapping) else None


def _cell(method: Mapping[str, Any], key: str) -> str:
    value, upper, digits = _mean(method, key), _mean(method, key, "upper"), _COLUMNS[key][1]
    if value is None:
        return "–"  # noqa: RUF001
    return f"{value:.{digits}f}" + ("" if upper is None else f" ± {upper - value:.{digits}f}")
