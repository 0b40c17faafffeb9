"""Banks of shapes for tests: a few outlines drawn by hand, or the objects of real label pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shards.shapes.bank import Provenance, ShapeBank, make_bank, write_bank

OUTLINES = (
    [[0, 0], [40, 0], [40, 12], [14, 12], [14, 40], [0, 40]],
    [[10, 0], [50, 6], [44, 30], [30, 18], [12, 44], [0, 20]],
    [[0, 0], [60, 0], [30, 30]],
)


def bank_file(path: Path, *outlines: list[list[int]]) -> str:
    """Writes a bank of outlines, by default of three, and returns its path."""
    write_bank(str(path), bank(*outlines))
    return str(path)


def bank(*outlines: list[list[int]]) -> ShapeBank:
    """A bank of outlines, by default of three."""
    shapes = [[np.array(points, np.int16)] for points in outlines or OUTLINES]
    return make_bank(shapes, Provenance("a test", objects=len(shapes)))
