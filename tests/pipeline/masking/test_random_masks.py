"""The promises of both random generators: a mask is a pure function of key and shape, within its limits, and anywhere in the image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.masking import RandomBlock, RandomRegion
from pipeline.masking.coverage import draw_rectangle
from shards.keyed import key_of

Generator = RandomRegion | RandomBlock
Make = Callable[..., Generator]
both = pytest.mark.parametrize("make", [RandomRegion, RandomBlock])
sides = st.integers(8, 512)
keys = st.integers(0, 2**64 - 1)


def draw(generator: Generator, key: int, height: int, width: int) -> np.ndarray:
    out = np.random.default_rng(key % 1000).random((height, width)) < 0.5  # whatever was there before
    generator.draw(key, out)
    return out


@both
@settings(max_examples=20, deadline=None)
@given(height=sides, width=sides, key=keys, most=st.floats(0.05, 0.5), least=st.floats(0.05, 1))
def test_coverage_stays_within_the_limits_for_any_shape(make: Make, height: int, width: int, key: int, most: float, least: float) -> None:
    generator = make(most, most / 2 * least)
    for offset in range(4):
        dropped = int(draw(generator, (key + offset) % 2**64, height, width).sum())
        assert max(1, int(most / 2 * least * height * width)) <= dropped <= int(most * height * width)


@both
@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 8), (8, 512), (227, 227), (512, 16)])
def test_coverage_stays_within_the_default_limits_for_many_keys(make: Make, height: int, width: int) -> None:
    generator, pixels = make(), height * width
    covered = [int(draw(generator, key_of(key), height, width).sum()) for key in range(300)]
    assert int(0.1 * pixels) <= min(covered) <= max(covered) <= pixels // 4
    assert max(covered) > 0.22 * pixels  # the limit is approached, not only kept
    assert np.mean(covered) > 0.16 * pixels


@both
def test_the_least_is_kept_where_overlap_and_border_leave_less_than_it_often(make: Make) -> None:
    generator = make(0.5, 0.25)
    covered = [int(draw(generator, key_of(key), 40, 40).sum()) for key in range(500)]
    assert 400 <= min(covered) <= max(covered) <= 800


@both
@settings(max_examples=15, deadline=None)
@given(height=sides, width=sides, key=keys)
def test_a_mask_is_a_function_of_its_key_and_shape(make: Make, height: int, width: int, key: int) -> None:
    used = make()
    draw(used, key ^ 1, height, width)
    assert np.array_equal(draw(used, key, height, width), draw(make(), key, height, width))


@both
def test_threads_that_share_a_fresh_generator_draw_what_one_alone_draws(make: Make) -> None:
    shared, alone = make(), make()
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(lambda key: draw(shared, key, 64, 48), range(64)))
    assert all(np.array_equal(mask, draw(alone, key, 64, 48)) for key, mask in enumerate(drawn))


@both
def test_a_mask_fills_its_own_row_of_a_batch_and_nothing_else(make: Make) -> None:
    batch = np.zeros((3, 40, 40), np.bool_)
    make().draw(5, batch[1])
    assert batch[1].any()
    assert not batch[0].any()
    assert not batch[2].any()


@both
def test_different_keys_give_different_masks(make: Make) -> None:
    generator = make()
    assert len({draw(generator, key, 227, 227).tobytes() for key in range(1000)}) == 1000


@both
@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 64)])
def test_every_pixel_is_dropped_sometimes_and_none_always(make: Make, height: int, width: int) -> None:
    generator = make()
    often = np.mean([draw(generator, key, height, width) for key in range(2000)], axis=0)
    assert often.min() > 0.025
    assert often.max() < 0.4
    left_right, top_bottom = np.abs(often - often[:, ::-1]).max(), np.abs(often - often[::-1]).max()
    assert max(left_right, top_bottom) < 0.06  # six standard deviations of a share of 2000


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (RandomRegion, "8279a797854b19b9acf693214bd9586ab594a5766ee5c69cf2eae468b3aa47ab"),
        (RandomBlock, "134ceb294b8b939ffafc7c024820233ed7bc90f957bf37a83cbdbc6b4ec40131"),
    ],
)
def test_the_drawing_has_not_changed(make: Make, expected: str) -> None:
    """A change here changes every run that is resumed: then say so in the release notes, and renew the hash."""
    digest, generator = hashlib.sha256(), make()
    for height, width in ((227, 227), (128, 128), (64, 48), (8, 8)):
        for key in range(50):
            digest.update(draw(generator, key_of(key), height, width).tobytes())
    assert digest.hexdigest() == expected


def test_regions_are_irregular_and_of_one_or_more_pieces() -> None:
    generator = RandomRegion()
    solidity, pieces = [], []
    for key in range(200):
        contours, _ = cv2.findContours(draw(generator, key, 227, 227).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        largest = max(contours, key=cv2.contourArea)
        solidity.append(cv2.contourArea(largest) / cv2.contourArea(cv2.convexHull(largest)))
        pieces.append(len(contours))
    assert np.mean(np.array(solidity) < 0.9) > 0.3  # a good part has concavities
    assert np.mean(np.array(pieces) > 1) > 0.15
    assert np.mean(np.array(pieces) == 1) > 0.4


def test_blocks_are_made_of_squares() -> None:
    generator, smallest, alone = RandomBlock(), np.ones((19, 19), np.uint8), list[bool]()
    for key in range(100):
        mask = draw(generator, key, 227, 227).astype(np.uint8)
        assert np.array_equal(cv2.morphologyEx(mask, cv2.MORPH_OPEN, smallest), mask)
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        boxes = [cv2.boundingRect(contour) for contour in contours]
        alone.extend(wide == tall for (_, _, wide, tall), contour in zip(boxes, contours, strict=True) if len(contour) == 4)
    assert len(alone) > 100
    assert np.mean(alone) > 0.95  # the others are two that line up


@given(height=sides, width=sides, word=keys, fraction=st.floats(1e-4, 0.5))
def test_the_last_resort_covers_half_to_all_of_what_is_allowed(height: int, width: int, word: int, fraction: float) -> None:
    most = max(1, int(fraction * height * width))
    out = np.ones((height, width), np.bool_)
    draw_rectangle(word, most, out)
    assert most / 2 <= out.sum() <= most


@both
@pytest.mark.parametrize(
    ("most", "least", "field"),
    [
        (0.0, 0.0, "max_fraction"),
        (0.51, 0.1, "max_fraction"),
        (float("nan"), 0.1, "max_fraction"),
        (0.25, 0.0, "min_fraction"),
        (0.25, 0.13, "min_fraction"),
    ],
)
def test_fractions_that_can_not_be_kept_are_refused(make: Make, most: float, least: float, field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        make(most, least)


@both
def test_an_image_too_small_for_its_fraction_is_refused(make: Make) -> None:
    with pytest.raises(ValueError, match=r"0\.01 of 8x8 pixels is less than one pixel"):
        make(0.01, 0.005).draw(1, np.zeros((8, 8), np.bool_))
