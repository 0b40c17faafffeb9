"""The trained network itself, as one more way to fill holes."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.evaluation.inpainting.fills.batches import in_batches
from pipeline.evaluation.inpainting.method import Holes
from pipeline.evaluation.painter import Painter
from pipeline.recipes.pixels import resized


class NetworkFill:
    """Fills holes with the painting of a checkpoint.

    Args:
        painter: trained network, on its device.
    """

    name: ClassVar[str] = "context_encoder"
    title: ClassVar[str] = "Context encoder"

    def __init__(self, painter: Painter) -> None:
        self._painter = painter

    def fill(self, holes: Holes) -> NDArray[np.float32]:
        """Fills holes: float32 (n, H, W, 3) in [0, 1]. A painting of another size than the pictures is resized to theirs.

        Raises:
            FillError: the painting is not finite.
        """
        painted = in_batches(self._paint, holes.images, holes.masks, holes.keys)
        return np.ascontiguousarray(painted.transpose(0, 2, 3, 1))

    @torch.no_grad()
    def _paint(self, images: Tensor, masks: Tensor, keys: Tensor) -> Tensor:
        """Paints float32 (n, 3, H, W) in [0, 1]: the prediction alone, because resizing would mix what stands beside it into the hole."""
        recipe, network = self._painter.recipe, self._painter.network
        device = next(network.parameters()).device
        images, masks, keys = images.to(device), masks.to(device), keys.to(device)
        views = recipe.views(images.masked_fill(masks.unsqueeze(3), 0), masks, None, keys)
        painting = recipe.paint(views, {recipe.painter: network})
        return resized(recipe.paintings(views, painting).prediction, images.shape[1])
