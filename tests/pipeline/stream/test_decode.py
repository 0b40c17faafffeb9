"""Crops are a pure function of the key, cost no resize where none is needed, and agree with Pillow where they do."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.stream.decode import Crop, UndecodableError, choose, decode, decode_crop
from tests.datasets import photographs

LIMIT = 10_000_000


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photograph() -> bytes:
    return photographs(1, 300, 400)[0]


@pytest.mark.parametrize("crop", ["random", "random_resized", "center"])
@settings(max_examples=200, deadline=None)
@given(key=st.integers(0, 2**64 - 1), height=st.integers(1, 700), width=st.integers(1, 700), size=st.integers(8, 300))
def test_a_box_lies_inside_the_picture(crop: Crop, key: int, height: int, width: int, size: int) -> None:
    box = choose(crop, True, key, height, width, size)
    assert 0 <= box.top <= box.top + box.height <= height
    assert 0 <= box.left <= box.left + box.width <= width
    assert box.height >= 1
    assert box.width >= 1
    assert box == choose(crop, True, key, height, width, size)


def test_random_boxes_reach_every_corner_and_mirror_half_the_time() -> None:
    boxes = [choose("random", True, key, 60, 80, 50) for key in range(4000)]
    assert {box.top for box in boxes} == set(range(11))
    assert {box.left for box in boxes} == set(range(31))
    assert 0.45 < np.mean([box.mirror for box in boxes]) < 0.55
    assert not any(choose("random", False, key, 60, 80, 50).mirror for key in range(50))
    assert not choose("center", True, 1, 60, 80, 50).mirror


def test_resized_boxes_have_the_documented_areas_and_aspects() -> None:
    boxes = [choose("random_resized", True, key, 400, 500, 227) for key in range(3000)]
    areas = np.array([box.height * box.width / (400 * 500) for box in boxes])
    aspects = np.array([box.width / box.height for box in boxes])
    assert areas.min() > 0.075
    assert areas.max() <= 1.0
    assert areas.min() < 0.1
    assert areas.max() > 0.9
    assert aspects.min() > 0.74
    assert aspects.max() < 1.35


def test_a_crop_at_the_stored_scale_is_those_very_pixels(photograph: bytes) -> None:
    whole = decode(photograph, LIMIT)
    out = np.zeros((227, 227, 3), np.uint8)
    for key in range(20):
        box = choose("random", True, key, 300, 400, 227)
        decode_crop(photograph, out, "random", True, key, LIMIT)
        part = whole[box.top : box.top + 227, box.left : box.left + 227]
        np.testing.assert_array_equal(out, part[:, ::-1] if box.mirror else part)


def test_jpegs_decode_like_pillow(photograph: bytes) -> None:
    ours, theirs = decode(photograph, LIMIT), np.asarray(Image.open(io.BytesIO(photograph)).convert("RGB"))
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 3


def area_weights(size: int, source: int) -> np.ndarray:
    """(size, source): share of each source pixel in each target pixel of an exact area average."""
    edges = np.arange(size + 1) * source / size
    pixels = np.arange(source)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.clip(overlap, 0, None) * size / source


def test_shrinking_is_the_exact_average_over_the_area(photograph: bytes) -> None:
    out = np.zeros((64, 64, 3), np.uint8)
    key = next(key for key in range(1000) if choose("random_resized", False, key, 300, 400, 64).height > 250)
    box = choose("random_resized", False, key, 300, 400, 64)
    decode_crop(photograph, out, "random_resized", False, key, LIMIT)
    part = decode(photograph, LIMIT)[box.top : box.top + box.height, box.left : box.left + box.width].astype(float)
    exact = np.einsum("ih,hwc,jw->ijc", area_weights(64, box.height), part, area_weights(64, box.width))
    assert np.abs(out - exact).max() <= 1.0


def test_pictures_smaller_than_the_crop_are_enlarged() -> None:
    out = np.zeros((227, 227, 3), np.uint8)
    decode_crop(photographs(1, 64, 64)[0], out, "random", True, 3, LIMIT)
    assert out.std() > 10


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_other_formats_go_through_pillow(kind: str) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    assert decode(encoded(picture, kind), LIMIT).shape == (40, 50, 3)


def test_grey_cmyk_and_alpha_become_rgb() -> None:
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8))
    for data in (
        encoded(grey, "JPEG"),
        encoded(grey.convert("CMYK"), "JPEG"),
        encoded(grey.convert("RGBA"), "PNG"),
        encoded(grey.convert("P"), "PNG"),
    ):
        assert decode(data, LIMIT).shape == (40, 50, 3)


def test_damage_and_bombs_are_errors(photograph: bytes) -> None:
    bomb = encoded(Image.new("RGB", (4000, 3000)), "PNG")
    for data, message in (
        (b"", "UnidentifiedImageError"),
        (b"\xff\xd8\xff", "Error"),
        (photograph[: len(photograph) // 2], "truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "UnidentifiedImageError"),
        (bomb, "4000 x 3000 pixels are more than"),
        (encoded(Image.new("RGB", (4000, 3000)), "JPEG"), "4000 x 3000 pixels are more than"),
    ):
        with pytest.raises(UndecodableError, match=message):
            decode(data, LIMIT)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_pictures_give_pixels_or_an_error(photograph: bytes, data: st.DataObject) -> None:
    damaged = bytearray(photograph)
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(UndecodableError):
        assert decode(bytes(damaged[: data.draw(st.integers(1, len(damaged)))]), LIMIT).dtype == np.uint8


def test_a_jpeg_that_lost_pixels_is_refused_as_the_builder_refuses_it(photograph: bytes) -> None:
    from shards.picture import PictureRejected, PictureRules, prepare

    rules = PictureRules(resize=None)
    alike = refused = 0
    for place in range(700, len(photograph) - 2, len(photograph) // 60):
        damaged = photograph[:place] + b"\xff\xd9" + photograph[place + 2 :]
        verdicts = []
        for attempt in (lambda data: prepare(data, rules), lambda data: decode(data, LIMIT)):
            try:
                attempt(damaged)
                verdicts.append(True)
            except (PictureRejected, UndecodableError):
                verdicts.append(False)
        alike += verdicts[0] >= verdicts[1]  # what trains is nothing that a builder would have refused
        refused += not verdicts[1]
    assert refused > 20
    assert alike >= 58
