"""The interface of everything that fills holes: a network, a filter, or the patch of another picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Holes:
    """A batch of pictures with holes.

    The hidden pixels are not here: whoever makes a batch overwrites them, so that no method can see them.

    Attributes:
        images: uint8 (n, H, W, 3), RGB; dropped pixels have one constant colour.
        masks: bool (n, H, W), True where pixels are dropped; neither empty nor full.
        keys: int64 (n,), random keys for all that a method draws per picture.
        numbers: int64 (n,), places of the pictures in the evaluation's order, from 0.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    keys: NDArray[np.int64]
    numbers: NDArray[np.int64]


class Method(Protocol):
    """A way to fill holes. A picture's fill depends on that picture alone, never on the others of its batch.

    Attributes:
        name: name in options and files, such as `telea`.
        title: name in tables, such as `Telea (OpenCV)`.
    """

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...

    def fill(self, holes: Holes) -> NDArray[np.float32]:
        """Fills holes.

        Returns:
            float32 (n, H, W, 3) in [0, 1], RGB. Only the values at dropped pixels are read.
        """
        ...
