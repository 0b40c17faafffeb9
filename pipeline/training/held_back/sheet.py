"""The pictures of a grid, and the figures beside each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline import figures
from pipeline.recipes.player import Paintings


@dataclass(frozen=True)
class Sheet:
    """Painted pictures for a grid.

    Attributes:
        paintings: pictures of the networks.
        l1: mean absolute error of each picture over its dropped pixels, per cent.
        baseline_l1: the same of the mean colour of its visible part.
        origin: where the pictures come from, for the grid's title.
    """

    paintings: Paintings
    l1: Sequence[float]
    baseline_l1: Sequence[float]
    origin: str


def sheet_of(paintings: Paintings | None, origin: str) -> Sheet | None:
    """Computes the figures of painted pictures; None for a recipe that paints none."""
    if paintings is None:
        return None
    visible = figures.mean_colour(paintings.truth, figures.visible_pixels(paintings.mask))[:, :, None, None]
    baseline = figures.errors(visible.expand_as(paintings.truth), paintings.truth, paintings.mask)
    own = figures.errors(paintings.prediction, paintings.truth, paintings.mask)
    return Sheet(paintings, own.l1.tolist(), baseline.l1.tolist(), origin)
