"""Descriptions of pictures by the trained encoder, for nearest-neighbour inpainting "with the context encoder's own features".

The paper does not give the details. Chosen here: the encoder's output (pool5 of the features recipe, the last maps before the bottleneck
of the inpainting recipe) as one vector, compared by cosine, because a hole lowers the activations, and a plain distance would then prefer
stored pictures with little contrast. The cosine is that of vectors of length SCALE, rounded to whole numbers.

A query is the picture with its hole, as the network sees it. With a central region the same hole is cut out of every stored picture, so
that both are described alike; with random masks stored pictures are described whole, because one vector serves every query.
"""

from __future__ import annotations

from typing import ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.evaluation.inpainting.fills.batches import in_batches
from pipeline.evaluation.inpainting.method import Holes
from pipeline.evaluation.painter import Painter

SCALE = 4000.0
"""Length of a vector before it is rounded: below 2**12 after it, for up to 36,864 values."""


class EncoderDescriber:
    """Describes pictures by the encoder of a checkpoint.

    Args:
        painter: trained network, on its device.
    """

    name: ClassVar[str] = "nearest_encoder"
    title: ClassVar[str] = "Nearest neighbour (own features)"

    def __init__(self, painter: Painter) -> None:
        self._painter = painter

    def query(self, holes: Holes) -> tuple[NDArray[np.int16], None]:
        """Describes the visible part of pictures with holes: vectors int16 (n, D); all values weigh alike.

        Raises:
            FillError: the features are not finite.
        """
        return self._describe(holes.images, holes.masks), None

    def stored(self, images: NDArray[np.uint8]) -> NDArray[np.int16]:
        """Describes pictures uint8 (n, H, W, 3): vectors int16 (n, D).

        Raises:
            FillError: the features are not finite.
        """
        hole = self._fixed_hole(images.shape[1:3])
        return self._describe(images, np.repeat(hole[None], len(images), axis=0))

    def _fixed_hole(self, size: tuple[int, ...]) -> NDArray[np.bool_]:
        """The hole of the recipe if its masks do not depend on their keys, as a central region's do not; else no hole."""
        first, second = np.zeros(size, bool), np.zeros(size, bool)
        if self._painter.recipe.mask is not None:
            for key, mask in enumerate((first, second)):
                self._painter.recipe.mask.draw(key, mask)
        return first if np.array_equal(first, second) else np.zeros(size, bool)

    def _describe(self, images: NDArray[np.uint8], masks: NDArray[np.bool_]) -> NDArray[np.int16]:
        values = in_batches(self._encode, images, masks).astype(np.float64)
        lengths = np.sqrt(np.square(values).sum(1, keepdims=True))
        scaled: NDArray[np.float64] = values * (SCALE / np.maximum(lengths, 1e-30))
        return scaled.round().astype(np.int16)

    @torch.no_grad()
    def _encode(self, images: Tensor, masks: Tensor) -> Tensor:
        recipe, network = self._painter.recipe, self._painter.network
        device = next(network.parameters()).device
        images, masks = images.to(device), masks.to(device)
        keys = torch.zeros(len(images), dtype=torch.int64, device=device)
        views = recipe.views(images.masked_fill(masks.unsqueeze(3), 0), masks, None, keys)
        features: Tensor = cast(nn.Module, network.encoder)(views["context"])
        return features.flatten(1)
