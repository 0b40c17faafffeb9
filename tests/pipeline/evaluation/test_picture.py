"""A person's picture to the network and back: windows, weights, parts of holes, and pixels that stay as they are."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline import recipes
from pipeline.config import parse
from pipeline.evaluation.painter import Painter, read_painter
from pipeline.evaluation.picture.fill import colours_at, fill, view, without_black
from pipeline.evaluation.picture.hole import MOST_PARTS, Box, HoleInvalid, Part, Stroke, check, of_rectangles, of_strokes, parts_of
from pipeline.evaluation.picture.picture_file import Picture, preview
from pipeline.evaluation.picture.seam import matched
from pipeline.evaluation.picture.window import Window, _cubic, _triangle, shrunk, weights, window_around_centre, window_with_context
from pipeline.mapping import from_mapping
from pipeline.recipes.pixels import resized
from pipeline.training.checkpoint.store import CheckpointStore
from pipeline.training.record.run_folder import checkpoint_store
from tests.pipeline.evaluation.runs import pictures, write_run

OWN = Box(36, 36, 92, 92)


@pytest.fixture(scope="module")
def painters(made_once: Callable[[str, Callable[[Path], object]], Path]) -> dict[str, Painter]:
    """A painter of one central hole, and one of holes anywhere."""
    runs = {
        "inpainting": made_once("inpainting run", lambda folder: write_run(folder, "inpainting")),
        "caffenet": made_once("features run", lambda folder: write_run(folder, "caffenet")),
    }
    return {kind: read_painter(str(run)) for kind, run in runs.items()}


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Picture:
    return Picture(np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8))


@pytest.mark.parametrize("kind", ["inpainting", "caffenet"])
def test_a_painter_paints_what_the_training_shows(
    kind: str, painters: dict[str, Painter], made_once: Callable[[str, Callable[[Path], object]], Path]
) -> None:
    run = made_once("inpainting run" if kind == "inpainting" else "features run", lambda folder: write_run(folder, kind))
    checkpoint = CheckpointStore(checkpoint_store(str(run))).newest(print)
    assert checkpoint is not None
    config, name = checkpoint.facts["config"], checkpoint.facts["recipe"]
    recipe = recipes.make(name, from_mapping(recipes.SETTINGS[name], config["method"], "method"), config["seed"])
    network = next(each.network for each in recipe.players if each.name == recipe.painter).eval()
    network.load_state_dict(checkpoint.tensors[recipe.painter])
    images, keys = pictures(recipe.image_size), torch.arange(3)
    masks = np.empty((3, recipe.image_size, recipe.image_size), np.bool_)
    assert recipe.mask is not None
    for key, mask in enumerate(masks):
        recipe.mask.draw(key, mask)
    with torch.no_grad():
        views = recipe.views(images, torch.from_numpy(masks), None, keys)
        shown = recipe.paintings(views, recipe.paint(views, {recipe.painter: network}))
    painted = painters[kind].paint(images, torch.from_numpy(masks), keys)
    whole = shown.mask.expand_as(painted)
    assert torch.equal(painted[whole], shown.prediction[whole])
    assert torch.equal(painted[~whole], shown.truth[~whole])
    other = torch.where(torch.from_numpy(masks)[..., None], 255 - images, images)
    assert torch.equal(painters[kind].paint(other, torch.from_numpy(masks), keys), painted), "hidden pixels are not seen"


@pytest.mark.parametrize("kind", ["inpainting", "caffenet"])
def test_only_the_hole_changes_whatever_lies_hidden_in_it(kind: str, painters: dict[str, Painter], draw: random.Random) -> None:
    for height, width, channels in ((150, 210, 3), (40, 37, 4), (300, 9, 1), (1, 70, 3))[: 4 if kind == "inpainting" else 2]:
        picture = noise(height, width, channels, draw.randrange(1000))
        x, y, w, h = draw.randrange(width), draw.randrange(height), draw.randint(1, width), draw.randint(1, height)
        hole = of_rectangles([(x - w // 2, y - h // 2, w, h), (0, 0, 1, 1)], height, width)
        if hole.all():
            hole[:, -1] = False
        filled, parts = fill(painters[kind], picture, hole, "hole")
        assert sum(part.box.height * part.box.width for part in parts) >= hole.sum()
        assert np.array_equal(filled.pixels[~hole], picture.pixels[~hole])
        if channels == 4:
            assert np.array_equal(filled.pixels[..., 3], picture.pixels[..., 3])
        other = Picture(picture.pixels.copy())
        other.pixels[..., : 3 if channels >= 3 else 1][hole] ^= 255
        assert np.array_equal(fill(painters[kind], other, hole, "hole")[0].pixels, filled.pixels), "hidden pixels are seen"


def test_a_hole_of_the_networks_own_size_is_filled_with_the_painting_itself(painters: dict[str, Painter]) -> None:
    picture, painter = noise(200, 220), painters["inpainting"]
    hole = of_rectangles([(70, 60, 56, 56)], 200, 220)
    filled, (part,) = fill(painter, picture, hole, "hole", as_painted=True)
    assert part.window == Window(60 - 36, 70 - 36, 128)
    seen = torch.from_numpy(picture.pixels[24 : 24 + 128, 34 : 34 + 128].copy())[None]
    own = painter.own_hole()
    assert own is not None
    painting = painter.paint(seen, torch.from_numpy(own)[None], torch.zeros(1, dtype=torch.int64))[0]
    expected = (painting[:, 36:92, 36:92] * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(filled.pixels[60:116, 70:126], expected)
    assert not np.array_equal(fill(painter, picture, hole, "hole")[0].pixels, filled.pixels), "matched colours differ"


def test_a_large_picture_is_filled_in_little_memory(painters: dict[str, Painter]) -> None:
    pixels = np.zeros((4000, 6000, 3), np.uint8)
    pixels[:, 3000:] = 200
    hole = of_rectangles([(5200, 3000, 4000, 4000)], 4000, 6000)
    tracemalloc.start()
    try:
        filled, (part,) = fill(painters["inpainting"], Picture(pixels), hole, "hole")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * pixels.nbytes, "one copy and less than two for the work"
    assert part.box == Box(3000, 5200, 4000, 6000)
    assert np.array_equal(filled.pixels[:3000], pixels[:3000])
    assert np.array_equal(filled.pixels[3000:, :5200], pixels[3000:, :5200])


def test_the_window_of_a_fixed_hole_is_the_smallest_that_covers(draw: random.Random) -> None:
    for _ in range(300):
        height, width = draw.randint(1, 900), draw.randint(1, 900)
        top, left = draw.randint(-3, 400), draw.randint(-3, 400)
        box = Box(top, left, top + height, left + width)
        window = window_around_centre(box, OWN, 128)
        scale = window.side / 128
        assert window.top + 36 * scale <= box.top
        assert window.left + 36 * scale <= box.left
        assert box.bottom <= window.top + 92 * scale
        assert box.right <= window.left + 92 * scale
        assert 32 <= window.side <= max(32, max(height, width) / 56 * 128 + 6)


def test_the_window_of_a_hole_anywhere_has_context_and_lies_in_the_picture(draw: random.Random) -> None:
    for _ in range(300):
        height, width = draw.randint(100, 900), draw.randint(100, 900)
        h, w = draw.randint(1, height // 2), draw.randint(1, width // 2)
        top, left = draw.randint(0, height - h), draw.randint(0, width - w)
        mask = np.random.default_rng(draw.randrange(1 << 30)).random((h, w)) < 0.7
        window = window_with_context(Part(Box(top, left, top + h, left + w), mask), 0.25, height, width, 64)
        assert window.top <= top
        assert window.left <= left
        assert top + h <= window.top + window.side
        assert left + w <= window.left + window.side
        assert mask.sum() <= 0.25 * window.side**2 or window.side == max(height, width)
        if window.side <= min(height, width):
            assert 0 <= window.top <= height - window.side
            assert 0 <= window.left <= width - window.side


def test_weights_add_up_to_one_and_mirror_what_is_beyond_the_ends() -> None:
    places = np.array([-2.0, -0.25, 1.0, 4.75, 6.0])
    for kernel, radius in ((_triangle, 1), (_cubic, 2)):
        assert np.array_equal(weights(np.arange(5.0), 1.0, 5, kernel, radius), np.eye(5, dtype=np.float32))
        found = weights(places, 1.0, 5, kernel, radius)
        assert np.allclose(found.sum(1), 1)
        assert np.allclose(found[0], np.eye(5)[1]), "-1 is 0 again, -2 is 1"
        assert np.allclose(found[4], np.eye(5)[3])
    assert np.allclose(weights(np.array([1.5]), 4.0, 4, _triangle, 1)[0] * 16, [1.5 + 2.5, 5, 5, 1.5 + 2.5], atol=3)
    assert np.allclose(weights(places, 3.0, 1, _triangle, 1), 1), "a line of one pixel"


def test_shrinking_is_the_mean_of_what_is_visible() -> None:
    pixels = np.full((64, 64, 3), 90, np.uint8)
    hidden = np.zeros((64, 64), np.bool_)
    hidden[20:40, 20:44] = True
    pixels[hidden] = 255
    seen, visible = shrunk(Picture(pixels), hidden, Window(-16, -16, 96), 24)
    assert np.allclose(seen[visible > 0], 90, atol=1e-3)
    assert (visible[10:13, 10:14] == 0).all()
    assert (visible[9:14, 9:15] < 0.25).all()
    assert np.allclose(visible[:7], 1, atol=1e-6)


def test_what_is_hidden_beside_the_networks_own_hole_is_closed_from_what_is_visible(painters: dict[str, Painter]) -> None:
    picture = Picture(np.full((100, 120, 3), 90, np.uint8))
    hidden = of_rectangles([(90, 40, 30, 20), (60, 40, 8, 60)], 100, 120)
    picture.pixels[hidden] = 255
    for kind, hole in (("inpainting", Box(40, 90, 60, 120)), ("caffenet", Box(40, 60, 100, 68))):
        painter = painters[kind]
        own = painter.own_hole()
        window = window_around_centre(hole, OWN, 128) if own is not None else Window(-5, 0, 110)
        image, visible, dropped = view(picture, hidden, window, painter.size, own)
        assert (visible < 1).any()
        assert (image[~dropped] == 90).all()


@pytest.mark.parametrize("side", [129, 227])
def test_the_black_of_dropped_pixels_is_not_mixed_into_a_painting_of_another_size(side: int) -> None:
    settings = ("--recipe", "features", "--method.width", "12", "--method.target_size", str(side))
    config = parse(recipes.SETTINGS, ["--data.shards", "x", *settings])
    recipe = recipes.make(config.recipe, config.method, config.seed)
    painter = Painter(recipe, recipe.players[0].network, 1, "here")
    image = np.full((227, 227, 3), 90, np.uint8)
    dropped = of_rectangles([(50, 61, 80, 71), (150, 20, 33, 40)], 227, 227)
    painting = painter.paint(torch.from_numpy(image)[None], torch.from_numpy(dropped)[None], torch.zeros(1, dtype=torch.int64))[0]
    kept = resized(torch.from_numpy(dropped)[None, None].float(), side)[0, 0] <= 0.5
    assert ((painting[:, kept] * 255 - 90).abs().max() > 5) == (side != 227)
    assert torch.allclose(without_black(painting, dropped)[:, kept] * 255, torch.tensor(90.0), atol=0.01)
    assert torch.equal(without_black(painting, dropped)[:, ~kept], painting[:, ~kept])
    image[dropped] = 0
    colours, unseen = colours_at(side, image, dropped)
    assert np.allclose(colours[~unseen] * 255, 90, atol=0.01)
    assert abs(unseen.mean() - dropped.mean()) < 0.01


@pytest.mark.parametrize("kind", ["inpainting", "caffenet"])
def test_a_window_of_which_nothing_is_visible_is_told(kind: str, painters: dict[str, Painter]) -> None:
    hole = np.ones((60, 400), np.bool_)
    hole[:, :1] = False
    picture = noise(60, 400)
    small = of_rectangles([(20, 20, 12, 9)], 60, 400)
    _, (part,) = fill(painters[kind], picture, small, "hole")
    assert (part.blind, "without context" in part.sentence) == (False, False)
    _, (part,) = fill(painters[kind], picture, hole, "hole")
    assert (part.blind, "without context" in part.sentence) == (kind == "caffenet", kind == "caffenet")
    hidden = np.ones((60, 400), np.bool_)
    _, visible, dropped = view(picture, hidden, Window(0, 0, 60), painters[kind].size, painters[kind].own_hole())
    assert not (visible[~dropped] > 0).any()


def test_a_matched_painting_meets_the_colours_around_it_and_keeps_its_own_pattern() -> None:
    hole = np.zeros((64, 64), np.bool_)
    hole[20:44, 20:44] = True
    pattern = np.random.default_rng(0).normal(0, 0.02, (64, 64, 3)).astype(np.float32)
    seen = np.full((64, 64, 3), 0.7, np.float32)
    found = matched(np.float32(0.3) + pattern, seen, hole)
    assert abs(found[hole].mean() - 0.7) < 0.02
    assert np.corrcoef(found[hole].ravel(), pattern[hole].ravel())[0, 1] > 0.95
    assert np.array_equal(found[~hole], (np.float32(0.3) + pattern)[~hole])


def test_parts_that_lie_apart_are_filled_by_themselves_and_add_up_to_the_hole(draw: random.Random) -> None:
    hole = np.zeros((500, 700), np.bool_)
    for _ in range(6):
        y, x = draw.randrange(490), draw.randrange(690)
        hole[y : y + draw.randint(1, 60), x : x + draw.randint(1, 60)] = True
    parts = parts_of(hole)
    total = np.zeros(hole.shape, np.int64)
    for part in parts:
        total[part.box.top : part.box.bottom, part.box.left : part.box.right] += part.mask
        for edge in (part.mask[0], part.mask[-1], part.mask[:, 0], part.mask[:, -1]):
            assert edge.any(), "the smallest rectangle"
    assert np.array_equal(total, hole.astype(np.int64))
    assert [int(part.mask.sum()) for part in parts] == sorted(int(part.mask.sum()) for part in parts)
    near = of_rectangles([(10, 10, 20, 20), (33, 10, 20, 20), (400, 10, 20, 20)], 500, 700)
    assert len(parts_of(near)) == 2
    dots = np.zeros((1000, 1000), np.bool_)
    dots[::50, ::50] = True
    with pytest.raises(HoleInvalid, match=f"400 parts that lie apart, more than {MOST_PARTS}"):
        parts_of(dots)


def test_strokes_cover_what_a_round_brush_covers() -> None:
    hole = of_strokes([Stroke(10, [(40, 50), (90, 50)]), Stroke(4, [(10.5, 10.5)]), Stroke(0, [(120, 90), (100, 70)])], 100, 130)
    y, x = np.mgrid[:100, :130] + 0.5
    line = np.hypot(x - x.clip(40, 90), y - 50)
    dot = np.hypot(x - 10.5, y - 10.5)
    square: NDArray[np.bool_] = (x > 100) & (x < 120) & (y > 70) & (y < 90)
    assert hole[(line < 9) | (dot < 3) | square].all()
    assert not hole[(line > 11) & (dot > 5) & ~square].any()
    assert of_strokes([Stroke(5, [(-2, -2)])], 9, 9).sum() > 0, "over the border"


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (1, np.uint16), (2, np.uint8), (3, np.uint8), (4, np.uint8)])
def test_a_preview_is_the_picture_at_another_size(channels: int, dtype: type) -> None:
    pixels = np.arange(40 * 60 * channels, dtype=np.float64).reshape(40, 60, channels).astype(dtype) // 2
    small = preview(Picture(pixels, b"profile"), 30)
    assert (small.pixels.shape, small.pixels.dtype, small.profile) == ((20, 30, channels), dtype, b"profile")
    means = pixels.reshape(20, 2, 30, 2, channels).astype(np.float64).mean((1, 3))
    assert np.abs(small.pixels - means).max() <= 0.5
    assert preview(Picture(pixels), 60).pixels is pixels


def test_holes_that_can_not_be_filled_are_refused() -> None:
    with pytest.raises(HoleInvalid, match="mask: is 9 x 8 pixels, and the picture, turned upright, is 8 x 9"):
        check(np.ones((8, 9), np.bool_), 9, 8, "mask")
    with pytest.raises(HoleInvalid, match="mask: nothing is to be filled"):
        check(np.zeros((9, 8), np.bool_), 9, 8, "mask")
    with pytest.raises(HoleInvalid, match="mask: hides the whole picture"):
        check(np.ones((9, 8), np.bool_), 9, 8, "mask")


@pytest.mark.parametrize(
    ("mask", "hole", "most"),
    [
        ((), OWN, 0.25),
        (("--method.image_size", "64", "--method.mask.overlap", "2"), Box(18, 18, 46, 46), 0.25),
        (("--method.mask.kind", "noise_pattern", "--method.mask.overlap", "0"), None, 0.3),
        (
            ("--method.mask.kind", "region", "--method.mask.overlap", "0", "--method.mask.max_fraction", "0.2"),
            None,
            0.2,
        ),
        (("--method.mask.kind", "block", "--method.mask.overlap", "0", "--method.mask.one_per_batch", "True"), None, 0.25),
    ],
    ids=["central", "central of 64", "noise", "region", "one block a batch"],
)
def test_a_painter_knows_which_holes_it_was_trained_on(mask: tuple[str, ...], hole: Box | None, most: float) -> None:
    settings = ("--recipe", "inpainting", "--method.width", "4", "--method.bottleneck", "4")
    config = parse(recipes.SETTINGS, ["--data.shards", "x", *settings, *mask])
    recipe = recipes.make(config.recipe, config.method, config.seed)
    painter = Painter(recipe, recipe.players[-1].network, 1, "here")
    own = painter.own_hole()
    assert (own is None) == (hole is None)
    if own is not None and hole is not None:
        assert own[hole.top : hole.bottom, hole.left : hole.right].all()
        assert own.sum() == hole.height * hole.width
    else:
        assert painter.most_of_picture() == most
