"""Fills of one picture: from its visible pixels alone, the same in every batch, and refused where nothing is visible."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import recipes
from pipeline.evaluation.inpainting.fills import FILLS, FillError, batches, make_describers, make_fills
from pipeline.evaluation.inpainting.method import Holes, Method
from pipeline.evaluation.painter import Painter, read_painter
from pipeline.masking import RandomBlock
from pipeline.recipes.features import FeaturesSettings
from tests.pipeline.evaluation.runs import write_run

SIDE, BATCH = 128, 4


@pytest.fixture(scope="module")
def painter(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Painter:
    """A small network of the inpainting recipe with a central region."""
    return read_painter(str(made_once("painter inpainting", lambda folder: write_run(folder, "inpainting"))))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of the network of BATCH pictures, which take less time."""
    monkeypatch.setattr(batches, "BATCH", BATCH)


def drawn(draw: random.Random, count: int, side: int = SIDE) -> Holes:
    """Pictures of smooth colours with noise, and holes, half of which touch the border."""
    rng = np.random.default_rng(draw.randrange(1 << 32))
    coarse = torch.from_numpy(rng.uniform(0, 255, (count, 3, 5, 5)))
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear").permute(0, 2, 3, 1).numpy()
    images = (smooth + rng.normal(0, 10, smooth.shape)).clip(0, 255).astype(np.uint8)
    masks = np.zeros((count, side, side), bool)
    for number, mask in enumerate(masks):
        RandomBlock(0.25, 0.1).draw(int(rng.integers(1 << 60)), mask)
        if number % 2:
            corner = rng.integers(0, 2) * (side - side // 4)
            mask[corner : corner + side // 4, : side // 3] = True
    return Holes(images, masks, rng.integers(0, 1 << 60, count), np.arange(count) + 70)


def hidden_as(holes: Holes, values: np.ndarray) -> Holes:
    """The same pictures with other hidden pixels."""
    return replace(holes, images=np.where(holes.masks[..., None], values, holes.images).astype(np.uint8))


def fill_of(name: str, painter: Painter) -> Method:
    (made,) = make_fills([name], painter)
    assert made.name == name
    return made


@pytest.mark.parametrize("name", FILLS)
def test_hidden_pixels_and_the_other_pictures_of_a_batch_do_not_matter(name: str, painter: Painter, draw: random.Random) -> None:
    fill, holes = fill_of(name, painter), drawn(draw, 3, SIDE if name == "context_encoder" else 64)
    filled = fill.fill(hidden_as(holes, np.zeros(3)))
    assert filled.dtype == np.float32
    assert filled.shape == holes.images.shape
    assert 0 <= filled[holes.masks].min() <= filled[holes.masks].max() <= 1
    noise = np.random.default_rng(draw.randrange(1 << 32)).integers(0, 256, holes.images.shape)
    for hidden in (noise, np.full(3, 255)):
        again = fill.fill(hidden_as(holes, hidden))
        assert np.array_equal(again[holes.masks], filled[holes.masks])
    alone = Holes(*(getattr(holes, part)[2:3] for part in ("images", "masks", "keys", "numbers")))
    assert np.array_equal(fill.fill(alone)[0][holes.masks[2]], filled[2][holes.masks[2]])


@pytest.mark.parametrize("name", ["mean", "telea", "navier_stokes", "patchmatch"])
def test_a_hole_in_one_colour_gets_that_colour(name: str, painter: Painter) -> None:
    images = np.full((2, 64, 64, 3), (200, 30, 90), np.uint8)
    masks = np.zeros((2, 64, 64), bool)
    masks[0, 20:40, 25:50] = masks[1, :20, 40:] = True
    holes = hidden_as(Holes(images, masks, np.zeros(2, np.int64), np.arange(2)), np.zeros(3))
    filled = fill_of(name, painter).fill(holes)
    assert np.allclose(
        filled[masks] * 255, (200, 30, 90), atol=10 if name == "telea" else 1e-4
    )  # OpenCV's Telea drifts even where all is one colour


@pytest.mark.parametrize("name", ["telea", "navier_stokes", "patchmatch"])
def test_a_hole_goes_on_with_what_surrounds_it(name: str, painter: Painter, draw: random.Random) -> None:
    holes = drawn(draw, 4)
    edges = np.linspace(0, 255, SIDE)[None, :, None, None] * np.ones((4, 1, SIDE, 3))  # from black at the top to white below
    holes = replace(holes, images=hidden_as(replace(holes, images=edges.astype(np.uint8)), np.zeros(3)).images)
    errors = [np.abs(fill_of(each, painter).fill(holes)[holes.masks] - edges[holes.masks] / 255).mean() for each in (name, "mean")]
    assert errors[0] < errors[1] / 2


def test_mean_fill_is_the_mean_of_the_visible_pixels(painter: Painter, draw: random.Random) -> None:
    holes = drawn(draw, 3)
    filled = fill_of("mean", painter).fill(holes)
    for image, mask, found in zip(holes.images, holes.masks, filled, strict=True):
        assert np.allclose(found, image[~mask].mean(0) / 255, atol=1e-6)


def test_the_network_fills_with_its_painting_and_the_same_in_a_batch_of_any_size(painter: Painter, draw: random.Random) -> None:
    holes = drawn(draw, BATCH + 3, painter.size)  # more than the network sees at once
    masks = np.zeros_like(holes.masks)
    for mask in masks:
        assert painter.recipe.mask is not None
        painter.recipe.mask.draw(0, mask)
    holes = hidden_as(replace(holes, masks=masks), np.zeros(3))
    filled = fill_of("context_encoder", painter).fill(holes)
    painted = painter.paint(*(torch.from_numpy(each) for each in (holes.images, masks, holes.keys))).permute(0, 2, 3, 1).numpy()
    assert np.allclose(filled[masks], painted[masks], atol=1e-5)
    for number in (0, BATCH + 1):
        alone = Holes(*(getattr(holes, part)[number : number + 1] for part in ("images", "masks", "keys", "numbers")))
        assert np.array_equal(fill_of("context_encoder", painter).fill(alone)[0][masks[number]], filled[number][masks[number]])


def test_a_painting_of_another_size_is_resized_without_the_colour_behind_the_hole(draw: random.Random) -> None:
    recipe = recipes.make("features", FeaturesSettings(width=12, target_size=57), 0)
    small = Painter(recipe, recipe.players[0].network, 0, "untrained")
    holes = drawn(draw, 2, small.size)
    fill = fill_of("context_encoder", small)
    filled = fill.fill(hidden_as(holes, np.zeros(3)))
    assert filled.shape == holes.images.shape
    views = recipe.views(torch.from_numpy(holes.images), torch.from_numpy(holes.masks), None, torch.zeros(2, dtype=torch.int64))
    with torch.no_grad():
        shown = recipe.scale.show(recipe.players[0].network(views["context"], views["keys"]))
    large = torch.nn.functional.interpolate(shown, (227, 227), mode="bilinear").permute(0, 2, 3, 1).numpy()
    assert np.allclose(filled, large, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in FILLS if name != "context_encoder"])
def test_a_picture_without_a_visible_pixel_is_refused_by_its_number(name: str, painter: Painter, draw: random.Random) -> None:
    holes = drawn(draw, 3)
    holes.masks[1] = True
    with pytest.raises(FillError, match=r"^picture 71: the hole covers all of it"):
        fill_of(name, painter).fill(holes)


def test_a_network_that_diverged_is_refused(draw: random.Random) -> None:
    recipe = recipes.make("features", FeaturesSettings(width=12), 0)
    diverged = Painter(recipe, recipe.players[0].network, 0, "untrained")
    with torch.no_grad():
        next(diverged.network.parameters()).fill_(torch.nan)
    holes = drawn(draw, 1, diverged.size)
    with pytest.raises(FillError, match="not finite"):
        fill_of("context_encoder", diverged).fill(holes)
    with pytest.raises(FillError, match="not finite"):
        make_describers(["nearest_encoder"], diverged)[0].stored(holes.images)


def test_a_missing_package_is_named(painter: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "patchmatch", None)
    with pytest.raises(FillError, match=r"pypatchmatch: pip install -e '.\[evaluate\]'"):
        make_fills(["mean", "patchmatch"], painter)


def test_an_unknown_method_is_named_with_those_that_there_are(painter: Painter) -> None:
    with pytest.raises(FillError, match=r"'telae' is not a method here. There are: context_encoder, mean, telea"):
        make_fills(["mean", "telae"], painter)
    with pytest.raises(FillError, match=r"'hog' is not a method here. There are: nearest_hog, nearest_encoder"):
        make_describers(["hog"], painter)
