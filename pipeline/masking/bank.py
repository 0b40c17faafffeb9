"""The bank of shapes behind `method.mask.shapes`: read when the first mask is drawn, and simplified so that a mask stays cheap."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.counting import counted
from shards.errors import StoreError
from shards.shapes.bank import BankMissing, ShapeBank, read_bank
from shards.shapes.silhouette import Silhouette
from shards.store import Options
from shards.urls import redacted, scheme

MOST_SHAPES = 1 << 17
"""Shapes that the random bits of a mask can choose from."""
_GRID, _TOLERANCE = 1024, 16  # outlines are simplified on a grid of this many points per side of unit area, by at most so many


class Bank:
    """A bank of shapes at a URL. It is read when it is first needed, because a run's networks can be used without its masks.

    Args:
        url: URL or path of the file.

    Attributes:
        options: options of the store, as in fsspec; to be set before the bank is read, and not used for a path of this machine.
        setting: name, for messages, of the setting that gives the URL, if `options` are those of the pictures' store.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.options: Options | None = None
        self.setting = ""

    def __repr__(self) -> str:
        return f"Bank({redacted(self.url)!r})"

    @functools.cached_property
    def content(self) -> ShapeBank:
        """The bank as it was read.

        Raises:
            ShapesError: no bank, or a damaged one; the message names the file.
            StoreError: the store does not answer.
        """
        try:
            return read_bank(self.url, self.options if scheme(self.url) else None)
        except BankMissing as error:
            if not self.setting:
                raise
            raise BankMissing(f"{self.setting}: give the bank's new place if it has moved. {error}") from error
        except StoreError as error:
            if not (self.setting and self.options and scheme(self.url)):
                raise
            raise type(error)(
                f"{self.setting}: {error}. The bank is read with the options of the pictures' store; if it lies in another store, copy the "
                "bank to this machine"
            ) from error

    @functools.cached_property
    def silhouettes(self) -> tuple[Silhouette, ...]:
        """The shapes to paste.

        Raises:
            ValueError: more shapes than masks can be drawn from.
        """
        if len(self.content.silhouettes) > MOST_SHAPES:
            raise ValueError(
                f"shapes: {self.content.url} holds {counted(len(self.content.silhouettes), 'shape')}, and masks are drawn from at most "
                f"{MOST_SHAPES:,}. Make the bank with a larger --min-pixels, or of fewer pictures"
            )
        return tuple(map(simplified, self.content.silhouettes))


def simplified(silhouette: Silhouette) -> Silhouette:
    """Leaves out vertices, and contours that become a line, so that the outline moves by less than a fiftieth of the shape's side.

    A traced outline turns at almost every pixel, and filling one costs more than reading the picture allows. The search works on integers,
    so that it finds the same vertices on every CPU.
    """
    grid = np.rint(silhouette.outline * _GRID).astype(np.int32)
    contours = [cv2.approxPolyDP(piece, _TOLERANCE, closed=True)[:, 0] for piece in np.split(grid, silhouette.breaks)]
    try:
        return Silhouette.of(_closed(contours))
    except ValueError:  # nothing is left that encloses an area, or a needle has become longer than can be pasted
        return silhouette


def _closed(contours: Sequence[NDArray[np.int32]]) -> list[NDArray[np.int32]]:
    return [contour for contour in contours if len(contour) > 2]
