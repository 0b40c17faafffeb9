"""Pretext tasks, one file each: the views of a picture, the players that learn from them, and their losses.

In: a recipe's name, its settings and a seed. Out: a `Recipe` (see `player`) with its networks. Public names: `RECIPES`, `SETTINGS`, `make`.

A recipe's file ends in `RECIPE`, the recipe's class, whose `settings` is the frozen dataclass behind `--method.*`. Files are found
automatically: a new pretext task is one file here and nothing else. docs/extending.md shows one.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import numpy as np
import torch

from pipeline.mapping import ConfigError
from pipeline.recipes.player import Recipe


def _find() -> dict[str, Any]:
    found = {}
    for module in pkgutil.iter_modules(__path__):
        recipe = getattr(importlib.import_module(f"{__name__}.{module.name}"), "RECIPE", None)
        if recipe is not None:
            found[recipe.name] = recipe
    return found


RECIPES: dict[str, Any] = _find()
"""Recipe classes by name."""
SETTINGS: dict[str, type] = {name: recipe.settings for name, recipe in RECIPES.items()}
"""The dataclass of each recipe's settings by the recipe's name."""


def make(name: str, method: Any, seed: int) -> Recipe:
    """Makes a recipe with its players; the initial weights follow from the seed.

    Args:
        name: key of RECIPES.
        method: instance of SETTINGS[name].
        seed: seed of the run.

    Raises:
        ConfigError: settings that contradict each other, or that no network or mask can be made with.
    """
    torch.manual_seed(seed)
    try:
        recipe: Recipe = RECIPES[name](method)
        if recipe.mask is not None:
            recipe.mask.draw(0, np.empty((recipe.image_size, recipe.image_size), np.bool_))
    except ConfigError:
        raise
    except ValueError as error:  # networks and masks refuse their own arguments
        raise ConfigError(f"method: {error}") from error
    return recipe
