"""The interface of everything that describes pictures for a search of the nearest one."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.inpainting.method import Holes


class Describer(Protocol):
    """A description of pictures as vectors, by which the picture with the most similar context is found.

    Values are whole numbers, and every vector is shorter than 2**12. Sums of products of such values are exact in
    float32, so that a distance has the same bits on every device, for any number of threads and in whatever parts it is computed.

    Attributes:
        name: name in options and files, such as `nearest_hog`.
        title: name in tables, such as `Nearest neighbour (HOG)`.
    """

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...

    def query(self, holes: Holes) -> tuple[NDArray[np.int16], NDArray[np.float32] | None]:
        """Describes the visible part of pictures with holes.

        Returns:
            Vectors int16 (n, D), and weights float32 (n, G) of 0 or 1, each for D / G consecutive values: 0 where the hole is, where the
            values are 0, too. None weighs all values alike.
        """
        ...

    def stored(self, images: NDArray[np.uint8]) -> NDArray[np.int16]:
        """Describes pictures whose patches may fill holes.

        Args:
            images: uint8 (n, H, W, 3), RGB, without holes.

        Returns:
            Vectors int16 (n, D).
        """
        ...
