"""A trained painter for use: the network of a run's checkpoint that fills holes, on whole pictures of its own size."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline import recipes
from pipeline.evaluation.architecture import EncoderInvalid
from pipeline.evaluation.of_run import checkpoint_of
from pipeline.mapping import ConfigError, from_mapping, with_places
from pipeline.masking import CentralRegion, OneMask
from pipeline.masking.source import MaskSource
from pipeline.recipes.player import PaintingRecipe
from shards.store import Options

PAPERS_FRACTION = 0.25
"""Largest fraction of a picture that the paper drops."""


class Painter:
    """A trained painter.

    Args:
        recipe: recipe of the run.
        network: network of the recipe's painter with trained weights, on its device.
        step: step of the checkpoint.
        where: the checkpoint as messages name it.

    Attributes:
        size: side of the square pictures that the painter sees, in pixels.
    """

    def __init__(self, recipe: PaintingRecipe, network: nn.Module, step: int, where: str) -> None:
        self.recipe, self.network, self.step, self.where = recipe, network.eval(), step, where
        self.size = recipe.image_size

    def own_hole(self) -> NDArray[np.bool_] | None:
        """The only hole that the network fills, bool (size, size); None where it fills holes of any shape at any place."""
        if not isinstance(self._masks, CentralRegion):
            return None
        hole = np.empty((self.size, self.size), np.bool_)
        self._masks.draw(0, hole)
        return hole

    def most_of_picture(self) -> float:
        """The largest fraction of a picture that the network was trained to fill."""
        return float(getattr(self._masks, "max_fraction", PAPERS_FRACTION))

    @property
    def _masks(self) -> MaskSource | None:
        masks = self.recipe.mask
        return masks.source if isinstance(masks, OneMask) else masks

    @torch.no_grad()
    def paint(self, images: Tensor, masks: Tensor, keys: Tensor) -> Tensor:
        """Fills the dropped pixels of pictures.

        Args:
            images: uint8 (n, size, size, 3), RGB; the values of dropped pixels do not matter.
            masks: bool (n, size, size), True where pixels are dropped; with a central region those of the recipe's own hole.
            keys: int64 (n,), random keys for all that the network draws per sample.

        Returns:
            float32 (n, 3, S, S) in [0, 1] on the network's device, the prediction in the dropped pixels and the picture elsewhere, where
            S is the side of the recipe's paintings.
        """
        device = next(self.network.parameters()).device
        images, masks, keys = images.to(device), masks.to(device), keys.to(device)
        views = self.recipe.views(images.masked_fill(masks.unsqueeze(3), 0), masks, None, keys)
        painting = self.recipe.paint(views, {self.recipe.painter: self.network})
        shown = self.recipe.paintings(views, painting)
        return torch.where(shown.mask, shown.prediction, shown.truth)


def read_painter(run: str, options: Options | None = None, step: int | None = None, device: str | torch.device = "cpu") -> Painter:
    """Reads the painter of a checkpoint.

    Args:
        run: run folder, or the URL of its checkpoints.
        options: options of the store, as in fsspec.
        step: step of the checkpoint; None takes the newest that verifies.
        device: device of the network.

    Raises:
        CheckpointInvalid: no checkpoint verifies.
        EncoderInvalid: the run's recipe is not here, does not know the run's settings, or fills no holes.
        StoreError: the store does not answer.
    """
    checkpoint, where = checkpoint_of(run, options, step)
    config, name = checkpoint.facts["config"], str(checkpoint.facts["recipe"])
    if name not in recipes.RECIPES:
        raise EncoderInvalid(f"{where}: the recipe {name!r} is not in pipeline/recipes. There are: {', '.join(sorted(recipes.RECIPES))}")
    try:
        with torch.random.fork_rng(devices=[]):
            method = with_places(from_mapping(recipes.SETTINGS[name], config["method"], "method"), ("*.shapes",), "method")
            recipe = recipes.make(name, method, int(config["seed"]), options, draws_masks=False)
    except ConfigError as error:
        raise EncoderInvalid(f"{where}: the settings of another version of this package? {error}") from error
    if not isinstance(recipe, PaintingRecipe) or recipe.mask is None:
        raise EncoderInvalid(f"{where}: the recipe {name!r} does not learn to fill holes")
    network = next(each.network for each in recipe.players if each.name == recipe.painter)
    try:
        network.load_state_dict(checkpoint.tensors.get(recipe.painter, {}))
    except RuntimeError as error:
        raise EncoderInvalid(f"{where}: the weights do not fit the recipe's network. {' '.join(str(error).split())}") from error
    return Painter(recipe, network.to(device), checkpoint.step, where)
