"""Fills the hole of a person's picture, part by part, with a trained painter."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.evaluation.painter import Painter
from pipeline.evaluation.picture.hole import Box, Hole, Part, check, parts_of
from pipeline.evaluation.picture.picture_file import Picture
from pipeline.evaluation.picture.seam import matched
from pipeline.evaluation.picture.window import Values, Window, put_back, shrunk, window_around_centre, window_with_context

_SEEN = 0.999  # fraction of a pixel of the window above which nothing of it is hidden
_RADIUS = 3.0  # of OpenCV's filter, in pixels


@dataclass(frozen=True)
class FilledPart:
    """A part of a hole that was filled.

    Attributes:
        box: rectangle around the part.
        window: window that the network saw.
        scale: pixels of the picture for one of the network.
        fraction: fraction of the window that was dropped.
    """

    box: Box
    window: Window
    scale: float
    fraction: float

    @property
    def sentence(self) -> str:
        """The part, its window and the scale, for a person."""
        box, window = self.box, self.window
        return (
            f"hole {box.width} x {box.height} at {box.left},{box.top}: window {window.side} x {window.side} at {window.left},{window.top}, "
            f"{self.scale:.2f} pixels for one of the network's, {self.fraction:.0%} of the window dropped"
        )


def fill(
    painter: Painter,
    picture: Picture,
    hole: Hole,
    name: str,
    seed: int = 0,
    as_painted: bool = False,
) -> tuple[Picture, list[FilledPart]]:
    """Fills a hole.

    Args:
        painter: painter to fill with.
        picture: picture to fill, which stays as it is.
        hole: pixels to fill, bool (H, W).
        name: name of the hole, for errors.
        seed: seed of what the network draws.
        as_painted: keep the colours of the painting, instead of matching them to those around the hole.

    Returns:
        The filled picture, which differs in the hole alone; and its parts in the order in which they were filled.

    Raises:
        HoleInvalid: the hole can't be filled.
    """
    check(hole, picture.height, picture.width, name)
    done = []
    filled, hidden = Picture(picture.pixels.copy(), picture.profile), hole.copy()
    for part in parts_of(hole):
        done.append(_fill_part(painter, filled, part, hidden, seed, as_painted))
        box = part.box
        hidden[box.top : box.bottom, box.left : box.right] &= ~part.mask
    return filled, done


def _fill_part(painter: Painter, picture: Picture, part: Part, hidden: Hole, seed: int, as_painted: bool) -> FilledPart:
    """Fills one part in place; hidden pixels of other parts are not seen."""
    own = painter.own_hole()
    window = _window(painter, own, picture, part)
    image, unseen, dropped = view(picture, hidden, window, painter.size, own)
    key = torch.tensor([seed], dtype=torch.int64)
    painting = painter.paint(torch.from_numpy(image)[None], torch.from_numpy(dropped)[None], key)[0]
    painted: Values = painting.permute(1, 2, 0).contiguous().cpu().numpy()
    if not as_painted:
        size = (len(painted), len(painted))
        colours = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        painted = matched(painted, colours, cv2.resize(unseen.view(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0)
    put_back(painted, part, window, picture)
    return FilledPart(part.box, window, window.side / painter.size, float(dropped.mean()))


def _window(painter: Painter, own: Hole | None, picture: Picture, part: Part) -> Window:
    if own is None:
        return window_with_context(part, painter.most_of_picture(), picture.height, picture.width, painter.size)
    rows, columns = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
    centre = Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
    return window_around_centre(part.box, centre, painter.size)


def view(picture: Picture, hidden: Hole, window: Window, size: int, own: Hole | None) -> tuple[NDArray[np.uint8], Hole, Hole]:
    """Makes what the network sees of a window.

    What is hidden beside a network's own hole, such as another part of the person's hole or its mirror image beyond the border, is closed
    from what is visible around it (Navier-Stokes; Telea changes a picture of one colour at its border).

    Args:
        picture: picture of the window.
        hidden: pixels that must not be seen, of the picture's size.
        window: window of the picture.
        size: side of what the network sees.
        own: only hole that the network fills, bool (size, size); None where it fills holes anywhere.

    Returns:
        The window, uint8 (size, size, 3); where a part of it is hidden, and what the network is told to fill, bool (size, size).
    """
    seen, visible = shrunk(picture, hidden, window, size)
    unseen, nothing = visible < _SEEN, visible <= 0
    dropped = unseen if own is None else own
    image = np.rint(seen).clip(0, 255).astype(np.uint8)
    if (nothing & ~dropped).any():
        image = np.asarray(cv2.inpaint(image, nothing.view(np.uint8), _RADIUS, cv2.INPAINT_NS), np.uint8)
    return image, unseen, dropped
