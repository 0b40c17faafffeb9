"""Descriptions for nearest neighbours: HOG is scikit-image's, and nothing that a query is compared by depends on hidden pixels."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.feature

from pipeline import recipes
from pipeline.evaluation.inpainting.fills import DESCRIBERS, FillError, batches, make_describers, nearest
from pipeline.evaluation.inpainting.fills.hog import HogDescriber, block_weights, hog
from pipeline.evaluation.inpainting.method import Holes
from pipeline.evaluation.painter import Painter, read_painter
from pipeline.masking import MaskConfig, RandomRegion
from pipeline.recipes.inpainting import InpaintingSettings
from tests.pipeline.evaluation.runs import write_run

BATCH = 4


@pytest.fixture(scope="module")
def painter(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Painter:
    """A small network of the inpainting recipe with a central region."""
    return read_painter(str(made_once("painter inpainting", lambda folder: write_run(folder, "inpainting"))))


@pytest.fixture(scope="module")
def random_masks() -> Painter:
    """A small network of the inpainting recipe with random regions."""
    recipe = recipes.make("inpainting", InpaintingSettings(width=8, bottleneck=16, mask=MaskConfig()), 0)
    return Painter(recipe, next(each.network for each in recipe.players if each.name == recipe.painter), 0, "untrained")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of the network of BATCH pictures, which take less time."""
    monkeypatch.setattr(batches, "BATCH", BATCH)


def pictures(draw: random.Random, count: int, side: int) -> np.ndarray:
    """Pictures with edges of many orientations."""
    rng = np.random.default_rng(draw.randrange(1 << 32))
    rows, columns = np.mgrid[:side, :side] / side
    waves = [np.sin(rows * rng.uniform(-30, 30) + columns * rng.uniform(-30, 30) + rng.uniform(0, 6)) for _ in range(3 * count)]
    smooth = np.array(waves).reshape(count, 3, side, side).transpose(0, 2, 3, 1)
    return (smooth * 100 + 128 + rng.normal(0, 5, smooth.shape)).astype(np.uint8)


def with_holes(images: np.ndarray, masks: np.ndarray, hidden: object) -> Holes:
    count = len(images)
    shown = np.where(masks[..., None], hidden, images).astype(np.uint8)
    return Holes(shown, masks, np.zeros(count, np.int64), np.arange(count))


def drawn_masks(draw: random.Random, count: int, side: int) -> np.ndarray:
    masks = np.zeros((count, side, side), bool)
    for mask in masks:
        RandomRegion(0.25, 0.1).draw(draw.randrange(1 << 60), mask)
    return masks


@pytest.mark.parametrize("side", [64, 128, 227])
def test_hog_is_scikit_image_s(side: int, draw: random.Random) -> None:
    (image,) = pictures(draw, 1, side)
    image[: side // 3, : side // 2] = 77  # blocks without a gradient
    cell = side // 16
    theirs = skimage.feature.hog(
        image[: 16 * cell + 1, : 16 * cell + 1], pixels_per_cell=(cell, cell), cells_per_block=(2, 2), channel_axis=-1, feature_vector=False
    )
    ours = hog(image[: 16 * cell + 1, : 16 * cell + 1], cell)
    assert np.allclose(ours, theirs[:15, :15], atol=1e-6)
    vector = HogDescriber().stored(image[None])
    assert np.abs(vector / 256 - hog(image, cell).ravel()).max() <= 0.5 / 256


def test_blocks_that_count_are_those_that_no_hidden_pixel_reaches(draw: random.Random) -> None:
    images, masks = pictures(draw, 3, 64), drawn_masks(draw, 3, 64)
    masks[0] = False
    masks[0, 31, 16] = True  # one pixel, in the first column of a cell: gradients of the cell before it see it
    describer = HogDescriber()
    noise = np.random.default_rng(draw.randrange(1 << 32)).integers(0, 256, images.shape)
    whole, other = (describer.stored(np.where(masks[..., None], hidden, images).astype(np.uint8)) for hidden in (images, noise))
    differing = (whole != other).reshape(3, 225, 36).any(2)
    weights = block_weights(masks)
    assert not differing[weights > 0].any()
    assert differing[weights == 0].mean() > 0.8  # hardly a block is left out without need: a pixel may touch a block in no bin
    assert 0.1 < weights.mean() < 0.99


@pytest.mark.parametrize("name", DESCRIBERS)
@pytest.mark.parametrize("kind", ["central", "random"])
def test_a_query_does_not_depend_on_hidden_pixels_and_finds_its_own_picture(
    name: str, kind: str, painter: Painter, random_masks: Painter, draw: random.Random
) -> None:
    trained = painter if kind == "central" else random_masks
    (describer,) = make_describers([name], trained)
    assert describer.name == name
    images = pictures(draw, 6, trained.size)
    masks = drawn_masks(draw, 6, trained.size)
    if kind == "central":
        assert trained.recipe.mask is not None
        trained.recipe.mask.draw(0, masks[0])
        masks[:] = masks[0]
    noise = np.random.default_rng(draw.randrange(1 << 32)).integers(0, 256, images.shape)
    values, weights = describer.query(with_holes(images, masks, 0))
    again, _ = describer.query(with_holes(images, masks, noise))
    assert np.array_equal(values, again)
    assert values.any()
    stored = describer.stored(images)
    distances, ids = nearest(values, weights, stored, 0)
    assert ids.tolist() == [0, 1, 2, 3, 4, 5]
    if name == "nearest_hog" or kind == "central":
        assert not distances.any()  # the visible part is described alike on both sides
    else:
        assert distances.all()  # stored pictures are whole here, queries have holes


@pytest.mark.parametrize("name", DESCRIBERS)
def test_a_picture_is_described_alike_alone_and_among_others(name: str, painter: Painter, draw: random.Random) -> None:
    (describer,) = make_describers([name], painter)
    images = pictures(draw, BATCH + 3, painter.size)
    together = describer.stored(images)
    for number in (0, BATCH - 1, BATCH + 1):
        assert np.array_equal(describer.stored(images[number : number + 1])[0], together[number])


def test_pictures_too_small_for_the_cells_are_refused() -> None:
    with pytest.raises(FillError, match="pictures of 30 pixels are too small for 16 x 16 cells"):
        HogDescriber().stored(np.zeros((1, 30, 30, 3), np.uint8))
