"""Fills that table 1 compares: the trained network, fills that need no training, and the patch of the most similar training picture.

In: `Holes`, a batch of pictures with holes. Out: filled pictures, or, for the nearest neighbours, vectors by which the training picture
with the most similar context is found. None of them reads a hidden pixel.

network            the checkpoint's own painting
mean               the mean colour of the visible part
opencv             Telea's and the Navier-Stokes fill
patchmatch         the content-aware fill
describer          the interface of everything that describes pictures for the search
hog                histograms of oriented gradients of the visible part
encoder_features   the features of the checkpoint's encoder
neighbours         the exact search of the nearest vector, chunk by chunk
batches, visible, errors   the network's fixed batches, the visible part of pictures, the error of all fills
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from pipeline.evaluation.inpainting.fills.describer import Describer
from pipeline.evaluation.inpainting.fills.encoder_features import EncoderDescriber
from pipeline.evaluation.inpainting.fills.errors import FillError
from pipeline.evaluation.inpainting.fills.hog import HogDescriber
from pipeline.evaluation.inpainting.fills.mean import MeanFill
from pipeline.evaluation.inpainting.fills.neighbours import merge, nearest
from pipeline.evaluation.inpainting.fills.network import NetworkFill
from pipeline.evaluation.inpainting.fills.opencv import NAVIER_STOKES, TELEA
from pipeline.evaluation.inpainting.fills.patchmatch import PatchMatchFill
from pipeline.evaluation.inpainting.method import Method
from pipeline.evaluation.painter import Painter

__all__ = ["DESCRIBERS", "FILLS", "Describer", "FillError", "make_describers", "make_fills", "merge", "nearest"]

FILLS: Mapping[str, Callable[[Painter], Method]] = {
    NetworkFill.name: NetworkFill,
    MeanFill.name: lambda _: MeanFill(),
    TELEA.name: lambda _: TELEA,
    NAVIER_STOKES.name: lambda _: NAVIER_STOKES,
    PatchMatchFill.name: lambda _: PatchMatchFill(),
}
"""Makers of the fills of one picture, by the fill's name, in the order of a table."""
DESCRIBERS: Mapping[str, Callable[[Painter], Describer]] = {
    HogDescriber.name: lambda _: HogDescriber(),
    EncoderDescriber.name: EncoderDescriber,
}
"""Makers of the descriptions by which nearest neighbours are found, by the method's name, in the order of a table."""
_Made = TypeVar("_Made")


def make_fills(names: Sequence[str], painter: Painter) -> list[Method]:
    """Makes the fills of one picture that are named, in this order.

    Args:
        names: names of fills, keys of FILLS.
        painter: trained network, on its device.

    Raises:
        FillError: a name is unknown, or a package is missing.
    """
    return _make(names, FILLS, painter)


def make_describers(names: Sequence[str], painter: Painter) -> list[Describer]:
    """Makes the descriptions of pictures for the nearest-neighbour methods that are named, in this order.

    Args:
        names: names of methods, keys of DESCRIBERS.
        painter: trained network, on its device.

    Raises:
        FillError: a name is unknown.
    """
    return _make(names, DESCRIBERS, painter)


def _make(names: Sequence[str], makers: Mapping[str, Callable[[Painter], _Made]], painter: Painter) -> list[_Made]:
    unknown = [name for name in names if name not in makers]
    if unknown:
        raise FillError(f"{unknown[0]!r} is not a method here. There are: {', '.join(makers)}")
    return [makers[name](painter) for name in names]
