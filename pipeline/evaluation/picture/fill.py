"""Fills the hole of a person's picture, part by part, with a trained painter."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.evaluation.painter import Painter
from pipeline.evaluation.picture.hole import Box, Hole, Part, check, parts_of
from pipeline.evaluation.picture.picture_file import Picture
from pipeline.evaluation.picture.seam import matched
from pipeline.evaluation.picture.window import Values, Window, put_back, shrunk, window_around_centre, window_with_context
from pipeline.recipes.pixels import resized

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
        blind: True if the network saw nothing of the window, and so painted without any context.
    """

    box: Box
    window: Window
    scale: float
    fraction: float
    blind: bool

    @property
    def sentence(self) -> str:
        """The part, its window and the scale, for a person."""
        box, window = self.box, self.window
        blind = ", and nothing of it is visible: the network painted without context. Leave more of the picture" if self.blind else ""
        return (
            f"hole {box.width} x {box.height} at {box.left},{box.top}: window {window.side} x {window.side} at {window.left},{window.top}, "
            f"{self.scale:.2f} pixels for one of the network's, {self.fraction:.0%} of the window dropped{blind}"
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
    image, visible, dropped = view(picture, hidden, window, painter.size, own)
    key = torch.tensor([seed], dtype=torch.int64)
    painting = painter.paint(torch.from_numpy(image)[None], torch.from_numpy(dropped)[None], key)[0]
    painting = without_black(painting, dropped)
    painted: Values = painting.permute(1, 2, 0).contiguous().cpu().numpy()
    if not as_painted:
        painted = matched(painted, *colours_at(len(painted), image, visible < _SEEN))
    put_back(painted, part, window, picture)
    return FilledPart(part.box, window, window.side / painter.size, float(dropped.mean()), not (visible[~dropped] > 0).any())


def _window(painter: Painter, own: Hole | None, picture: Picture, part: Part) -> Window:
    if own is None:
        return window_with_context(part, painter.most_of_picture(), picture.height, picture.width, painter.size)
    rows, columns = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
    centre = Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
    return window_around_centre(part.box, centre, painter.size)


def view(picture: Picture, hidden: Hole, window: Window, size: int, own: Hole | None) -> tuple[NDArray[np.uint8], Values, Hole]:
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
        The window, uint8 (size, size, 3); the fraction of its pixels that is visible, float32 (size, size); and what the network is told
        to fill, bool (size, size).
    """
    seen, visible = shrunk(picture, hidden, window, size)
    unseen, nothing = visible < _SEEN, visible <= 0
    dropped = unseen if own is None else own
    image = np.rint(seen).clip(0, 255).astype(np.uint8)
    if (nothing & ~dropped).any():
        image = np.asarray(cv2.inpaint(image, nothing.view(np.uint8), _RADIUS, cv2.INPAINT_NS), np.uint8)
    return image, visible, dropped


def without_black(painting: Tensor, dropped: Hole) -> Tensor:
    """Takes the black of dropped pixels out of a painting of another size than the window, which mixes it into the pixels around a hole.

    Args:
        painting: painting of the window, float32 (3, S, S), as `Painter.paint` gives it.
        dropped: what the network was told to fill, bool (size, size).
    """
    share = resized(torch.from_numpy(dropped).to(painting.device, torch.float32)[None, None], painting.shape[-1])[0]
    return torch.where(share > 0.5, painting, painting / (1 - share))  # above a half the painting is the network's own


def colours_at(side: int, image: NDArray[np.uint8], unseen: Hole) -> tuple[Values, Hole]:
    """Brings the visible colours of a window to the side of a painting.

    Args:
        side: side of the painting in pixels.
        image: the window, uint8 (size, size, 3).
        unseen: where a part of it is hidden, bool (size, size).

    Returns:
        The means of the pixels of which nothing is hidden, float32 (side, side, 3) in [0, 1]; and where most are hidden, bool (side, side).
    """
    seen = 1 - unseen.astype(np.float32)
    share, total = (
        cv2.resize(values, (side, side), interpolation=cv2.INTER_AREA) for values in (seen, image.astype(np.float32) * seen[..., None])
    )
    return np.asarray(total / 255 / np.maximum(share, 1e-6)[..., None], np.float32), np.asarray(share < 0.5)
