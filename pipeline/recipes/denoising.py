"""Recipe "denoising": the features network sees a corrupted picture and reconstructs the whole clean one (Vincent et al., JMLR 2010).

Network, data and optimiser are those of the autoencoder; the corruption is drawn on the device from the sample's key, anew in each epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Gt
from torch import Tensor

from pipeline.mapping import ConfigError
from pipeline.model.sample_random import keyed_normals, keyed_uniforms
from pipeline.recipes.autoencoder import AutoencoderRecipe
from pipeline.recipes.features import FeaturesSettings
from pipeline.recipes.player import Views

_CORRUPTION = 16  # purpose of random numbers, beside those of the network


@dataclass(frozen=True)
class DenoisingSettings(FeaturesSettings):
    """The denoising recipe."""

    corruption: Literal["masking", "gaussian"] = "masking"
    """Corruption of the input: masking, single pixels become the mean colour; gaussian, normal noise is added to every value."""
    amount: Annotated[float, Gt(0)] = 0.25
    """Amount of the corruption: the probability that a pixel is masked, below 1; or the standard deviation of the noise, where 1 is white
    for black."""

    def check(self) -> None:
        """Refuses settings that contradict each other.

        Raises:
            ConfigError: naming the setting.
        """
        super().check()
        if self.corruption == "masking" and self.amount >= 1:
            raise ConfigError(f"method.amount: a probability of {self.amount:g} masks every pixel; give less than 1")


class DenoisingRecipe(AutoencoderRecipe):
    """See the module."""

    name: ClassVar[str] = "denoising"
    settings: ClassVar[type] = DenoisingSettings
    method: DenoisingSettings

    def views(self, images: Tensor, masks: Tensor, labels: Tensor | None, keys: Tensor) -> Views:
        """Gives context, the corrupted picture, and the views of the autoencoder."""
        clean = super().views(images, masks, labels, keys)
        return {**clean, "context": self._corrupted(clean["context"], keys)}

    def whole(self, images: Tensor, keys: Tensor) -> Views:
        """Gives the views of the autoencoder, whose context is the picture as it is."""
        return super().views(images, torch.zeros(images.shape[:3], dtype=torch.bool, device=images.device), None, keys)

    def _corrupted(self, pictures: Tensor, keys: Tensor) -> Tensor:
        if self.method.corruption == "masking":
            drawn = keyed_uniforms(keys, pictures[0, 0].numel(), _CORRUPTION).view(-1, 1, *pictures.shape[2:])
            return pictures.masked_fill(drawn < self.method.amount, 0.0)
        noise = keyed_normals(keys, pictures[0].numel(), _CORRUPTION).view(pictures.shape)
        return pictures + noise * (self.method.amount * 255 / self.scale.divisor)


RECIPE = DenoisingRecipe
