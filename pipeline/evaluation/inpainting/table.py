"""Figures of all pictures and methods as one table: plain values for JSON, rows for CSV, and lines for a person."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.inpainting.metrics import FIGURES, LARGEST_PSNR
from pipeline.evaluation.inpainting.settings import NETWORK
from pipeline.evaluation.probe.intervals import mean
from shards.counting import counted

LPIPS = "lpips"
DEFINITIONS = {
    "l1": "mean absolute error over the dropped pixels, per cent of the range",
    "l2": "mean squared error over the dropped pixels, per cent of the squared range",
    "psnr": f"PSNR over the dropped pixels in dB, peak 1, averaged over pictures; {LARGEST_PSNR:g} for a perfect fill",
    "ssim": "SSIM (Wang et al. 2004) of the whole picture: Gaussian window 11 x 11, sigma 1.5, range 1, population covariance",
    "whole_l1": "mean absolute error over the whole picture, the fill pasted into it, per cent",
    "whole_l2": "mean squared error over the whole picture, per cent",
    "whole_psnr": f"PSNR over the whole picture in dB; {LARGEST_PSNR:g} for a perfect fill",
    LPIPS: "LPIPS 0.1 with AlexNet of the whole picture",
}
_COLUMNS = {
    "l1": ("L1 %", 2), "l2": ("L2 %", 2), "psnr": ("PSNR dB", 2), "ssim": ("SSIM", 4),
    "whole_l1": ("L1 % whole", 2), "whole_l2": ("L2 % whole", 2), "whole_psnr": ("PSNR whole", 2), LPIPS: ("LPIPS", 4),
}  # fmt: skip
_LOWER_IS_BETTER = ("l1", "l2", LPIPS)
_COMPARED = ("l1", "l2", "psnr", "ssim", LPIPS)


def names_of(figures: NDArray[np.float64]) -> tuple[str, ...]:
    """The names of the columns of figures, (n, 7) or with LPIPS (n, 8)."""
    return FIGURES if figures.shape[1] == len(FIGURES) else (*FIGURES, LPIPS)


def methods_of(figures: Mapping[str, NDArray[np.float64]], titles: Mapping[str, str]) -> list[dict[str, Any]]:
    """The rows of the table: means with intervals, and what the checkpoint's figures are less than the method's.

    Args:
        figures: figures of each method, float64 (pictures, figures), in the order of the table.
        titles: title of each method.
    """
    own, rows = figures[NETWORK], list[dict[str, Any]]()
    for name in figures:
        columns = dict(zip(names_of(own), figures[name].T, strict=True))
        row: dict[str, Any] = {"name": name, "title": titles[name], "figures": {key: _interval(values) for key, values in columns.items()}}
        if name != NETWORK:
            mine = dict(zip(names_of(own), own.T, strict=True))
            row["checkpoint_less_method"] = {key: _interval(mine[key] - columns[key]) for key in columns}
        rows.append(row)
    return rows


def _interval(values: NDArray[np.float64]) -> dict[str, float]:
    """The mean of finite values over pictures, and its interval."""
    found = mean(values)
    return {"mean": found.value, "lower": found.lower, "upper": found.upper}


def as_text(table: Mapping[str, Any]) -> str:
    """Lines for a terminal."""
    pictures = counted(table["pictures"], "picture")
    methods = table["methods"]
    shown = [key for key in _COLUMNS if key in methods[0]["figures"]]
    head = ["method", *(_COLUMNS[key][0] for key in shown)]
    rows = [[each["title"], *(_shown(each["figures"][key], _COLUMNS[key][1]) for key in shown)] for each in methods]
    lines = [
        f"{table['run']}, step {table['step']:,} ({table['recipe']}): {pictures} of {table['side']} x {table['side']} pixels from "
        f"{table['judged']}, masks {table['mask']}",
        *_aligned([head, *rows]),
        "mean ± half of the 95 % interval over pictures; L1, L2, PSNR on the dropped pixels, SSIM and `whole` on the whole picture",
    ]
    others = [each for each in methods if "checkpoint_less_method" in each]
    if others:
        compared = [key for key in _COMPARED if key in shown]
        rows = [[each["title"], *(_verdict(key, each["checkpoint_less_method"][key]) for key in compared)] for each in others]
        lines += ["", *_aligned([["the checkpoint less", *(_COLUMNS[key][0] for key in compared)], *rows])]
        lines += ["mean of the differences picture by picture, with its 95 % interval; + better, - worse, ~ not distinguishable"]
    return "\n".join([*lines, *table["notes"], _time(table["seconds"])])


def _shown(found: Mapping[str, float | None], digits: int) -> str:
    value, upper = found["mean"], found["upper"]
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.{digits}f}" + (f" ± {upper - value:.{digits}f}" if upper is not None and math.isfinite(upper) else "")


def _verdict(key: str, found: Mapping[str, float | None]) -> str:
    value, lower, upper = found["mean"], found["lower"], found["upper"]
    digits = _COLUMNS[key][1]
    if value is None or lower is None or upper is None or not math.isfinite(upper - lower):
        return "-"
    good = upper < 0 if key in _LOWER_IS_BETTER else lower > 0
    bad = lower > 0 if key in _LOWER_IS_BETTER else upper < 0
    return f"{value:+.{digits}f} [{lower:+.{digits}f}, {upper:+.{digits}f}] {'+' if good else '-' if bad else '~'}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]) for row in rows
    ]


def _time(seconds: Mapping[str, float]) -> str:
    """The line that says where the time went."""
    total = sum(seconds.values())
    if not total:
        return "time: none was taken"
    ways = sorted(seconds.items(), key=lambda each: -each[1])
    shown = ", ".join(f"{name} {100 * value / total:.0f} %" for name, value in ways)
    decoded = sum(value for name, value in seconds.items() if name.startswith(("decode", "network")))
    return f"time: {total:,.0f} s of work on all cores: {shown}. Network and decoder together: {100 * decoded / total:.0f} %"


def table_csv(table: Mapping[str, Any]) -> bytes:
    """One line a method: name, title, and mean, lower and upper of each figure; empty where there is none, as of one picture's interval."""
    keys = list(table["methods"][0]["figures"])
    head = ["method", "title", *(f"{key}{end}" for key in keys for end in ("", "_lower", "_upper"))]
    rows = [
        [each["name"], each["title"], *(_cell(each["figures"][key][end]) for key in keys for end in ("mean", "lower", "upper"))]
        for each in table["methods"]
    ]
    return _csv([head, *rows])


def pictures_csv(numbers: NDArray[np.int64], samples: Sequence[int], figures: Mapping[str, NDArray[np.float64]]) -> bytes:
    """One line a picture and method: number in the choice, sample id, method, figures."""
    names = names_of(next(iter(figures.values())))
    rows = [
        [number, sample, method, *map(_cell, row)]
        for place, (number, sample) in enumerate(zip(numbers.tolist(), samples, strict=True))
        for method, values in figures.items()
        for row in [values[place].tolist()]
    ]
    return _csv([["picture", "sample_id", "method", *names], *rows])


def _cell(value: float | None) -> str:
    return repr(value) if value is not None and math.isfinite(value) else ""


def _csv(rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
