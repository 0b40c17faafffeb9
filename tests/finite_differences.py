"""Gradients of a float64 function by central differences, for equations that are written out in the tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


def differences(function: Callable[[Numbers], float], at: Numbers, step: float = 1e-5) -> Numbers:
    """The gradient of a function at a point, of the point's shape."""
    found, point = np.zeros_like(at), at.copy()
    for place in np.ndindex(at.shape):
        point[place] = at[place] + step
        above = function(point)
        point[place] = at[place] - step
        found[place] = (above - function(point)) / (2 * step)
        point[place] = at[place]
    return found
