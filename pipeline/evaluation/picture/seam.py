"""The seam of a filled hole: a painting takes over the colours around its hole, so that its border is seen less."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float32]
_REACH = 1 / 16  # deviation of the Gaussian, as a fraction of the side


def matched(painted: Values, seen: Values, hole: NDArray[np.bool_]) -> Values:
    """Shifts the colours of a painting so that they meet those around the hole.

    The difference of the two colours is taken along the border, and every pixel of the hole gets the mean of the differences near it,
    weighted by a Gaussian: what a network misses in colour is mended, and what it paints inside stays.

    Args:
        painted: painting of a window, float32 (S, S, 3) in [0, 1].
        seen: colours of the same window, float32 (S, S, 3) in [0, 1]; only visible pixels are read.
        hole: bool (S, S), True for the pixels of the person's hole.

    Returns:
        float32 (S, S, 3) in [0, 1]: the matched painting in the hole, `painted` elsewhere.
    """
    inside = hole.astype(np.float32)
    around, has_around = _mean_nearby(seen, 1 - inside)
    own, has_own = _mean_nearby(painted, inside)
    border = (has_around & has_own).astype(np.float32)
    deviation = len(hole) * _REACH
    weight = _blurred(border, deviation)
    shift = _blurred((around - own) * border[..., None], deviation) / np.maximum(weight, 1e-12)[..., None]
    return np.where(hole[..., None], (painted + shift).clip(0, 1), painted).astype(np.float32)


def _mean_nearby(values: Values, chosen: Values) -> tuple[Values, NDArray[np.bool_]]:
    """Means over the chosen pixels of 3 x 3, and where there is one."""
    count = cv2.blur(chosen, (3, 3), borderType=cv2.BORDER_CONSTANT)
    total = cv2.blur(values * chosen[..., None], (3, 3), borderType=cv2.BORDER_CONSTANT)
    return np.asarray(total / np.maximum(count, 1e-6)[..., None], np.float32), np.asarray(count > 0.01)


def _blurred(values: Values, deviation: float) -> Values:
    """A Gaussian mean that reaches every pixel of the picture."""
    side = 2 * len(values) + 1
    return np.asarray(cv2.GaussianBlur(values, (side, side), deviation, borderType=cv2.BORDER_CONSTANT), np.float32)
