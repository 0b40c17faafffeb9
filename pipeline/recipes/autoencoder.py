"""Recipe "autoencoder" (table 2's baseline): the features network sees the whole picture and reconstructs it.

Network, data and optimiser are those of the features recipe; there is no mask, and the loss is over every pixel.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from pipeline import objective
from pipeline.recipes.features import FeaturesRecipe
from pipeline.recipes.player import Views


class AutoencoderRecipe(FeaturesRecipe):
    """See the module."""

    name: ClassVar[str] = "autoencoder"
    masked: ClassVar[bool] = False

    def reconstruction(self, painting: Tensor, views: Views) -> Tensor:
        """Computes the reconstruction loss over the whole picture, (n,)."""
        return objective.weighted_reconstruction(painting, views["target"], torch.ones((), device=painting.device), self.method.norm)


RECIPE = AutoencoderRecipe
