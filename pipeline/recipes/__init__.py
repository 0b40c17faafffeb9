"""Pretext tasks, one file each: the views of a picture, the players that learn from them, and their losses.

In: a recipe's name, its settings and a seed. Out: a `Recipe` (see `player`) with its networks. Public names: `RECIPES`, `SETTINGS`, `make`,
`check_labels`.

A recipe's file ends in `RECIPE`, the recipe's class, whose `settings` is the frozen dataclass behind `--method.*`. Files are found
automatically: a new pretext task is one file here and nothing else. docs/extending.md shows one.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipeline.mapping import ConfigError
from pipeline.masking import MaskConfig, bank_of
from pipeline.recipes.player import LabelledRecipe, Recipe
from shards.dataset.manifest import Manifest
from shards.store import Options


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


def make(name: str, method: Any, seed: int, storage_options: Options | None = None, draws_masks: bool = True) -> Recipe:
    """Makes a recipe with its players; the initial weights follow from the seed.

    Args:
        name: key of RECIPES.
        method: instance of SETTINGS[name].
        seed: seed of the run.
        storage_options: options of the store that a bank of shapes is read from.
        draws_masks: draw a mask now, to refuse settings that no mask can be drawn with, and to read the bank of shapes. False for uses of
            the networks alone, which must not fail because the bank is gone.

    Raises:
        ConfigError: settings that contradict each other, or that no network or mask can be made with.
        ShapesError: the bank of shapes can't be read.
        StoreError: the store of the bank does not answer.
    """
    torch.manual_seed(seed)
    try:
        recipe: Recipe = RECIPES[name](method)
        if (bank := bank_of(recipe.mask)) is not None:
            bank.options, bank.setting = storage_options, "method.mask.shapes"
        if recipe.mask is not None and draws_masks:
            recipe.mask.draw(0, np.empty((recipe.image_size, recipe.image_size), np.bool_))
    except ConfigError:
        raise
    except ValueError as error:  # networks and masks refuse their own arguments
        of_mask = str(error).partition(":")[0] in {each.name for each in dataclasses.fields(MaskConfig)}
        raise ConfigError(f"method{'.mask.' if of_mask else ': '}{error}") from error
    return recipe


def check_labels(recipe: Recipe, manifests: Sequence[Manifest]) -> None:
    """Refuses data sets whose labels a recipe can't learn from; a recipe that needs no labels takes all.

    Raises:
        ConfigError: naming the data set.
    """
    if isinstance(recipe, LabelledRecipe):
        recipe.check_labels(manifests)
