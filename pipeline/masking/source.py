"""The interface of mask generators: recipes make them, and the stream draws from them without importing a recipe."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class MaskSource(Protocol):
    """Draws the mask of one sample."""

    def draw(self, key: int, out: NDArray[np.bool_]) -> None:
        """Fills `out`, bool (H, W), with True where pixels are dropped: a pure function of the key and the shape."""
        ...
