"""One mask for a whole batch, as the released code draws it for random regions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.masking.source import MaskSource


@dataclass(frozen=True)
class OneMask:
    """Makes the loader draw one mask a global batch, from a key of the batch's position, in place of one a sample.

    Attributes:
        source: source of the masks.
    """

    source: MaskSource

    def draw(self, key: int, out: NDArray[np.bool_]) -> None:
        """Fills `out`, bool (H, W), with True where pixels are dropped: a function of the key and the shape."""
        self.source.draw(key, out)
