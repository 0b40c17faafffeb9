"""A label picture is read as indices whatever kind of PNG holds them, and everything else is refused with its reason."""

from __future__ import annotations

import random
import zlib

import numpy as np
import pytest

from shards.dataset.pixels import PictureRejected
from shards.shapes.labels import ShapeRules, Void, read_labels
from tests.shards.shapes.label_pictures import GREY, GREY_ALPHA, PALETTE, RGB, RGBA, chunk, png, square

RULES = ShapeRules()


@pytest.mark.parametrize(
    ("colour", "depth", "void"),
    [*((colour, depth, 255) for colour in (PALETTE, GREY) for depth in (1, 2, 4, 8)), (GREY, 16, 65_535)],
)
def test_indices_are_read_from_every_kind_of_png(colour: int, depth: int, void: int) -> None:
    labels = np.random.default_rng(5).integers(0, 1 << depth, (21, 37))
    labels[0, :2] = 0, (1 << depth) - 1
    found, found_void = read_labels(png(labels, colour, depth), RULES)
    assert found.dtype == (np.uint16 if depth == 16 else np.uint8)
    assert np.array_equal(found, labels)
    assert found_void == void


@pytest.mark.parametrize(("void", "expected"), [(None, None), (9, 9), ("auto", 255)])
def test_the_index_of_void_can_be_set(void: Void, expected: int | None) -> None:
    assert read_labels(png(square()), ShapeRules(void=void))[1] == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png(square(), RGB), "holds RGB colours, not indices of objects. Take the original palette PNG"),
        (png(square(), RGBA), "holds RGBA colours"),
        (png(square(), RGB, 16), "holds RGB colours"),
        (png(square(), GREY_ALPHA), "holds grey with transparency"),
        (b"", "empty file"),
        (b"\xff\xd8\xff\xe0 JPEG by the name of a PNG", "no PNG picture"),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        (png(square(), size=(70, 50)), "PNG cut short or damaged"),  # wider than its rows
        (png(square(), size=(100_000, 100_000)), "100,000 x 100,000 pixels are more than --max-pixels, 40,000,000"),
        (png(square(), size=(8000, 5001)), "8,000 x 5,001 pixels are more than --max-pixels"),
        (png(square(), extra=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 24)))), "PNG cut short or damaged"),  # a bomb of text
    ],
)
def test_other_files_are_refused_with_the_reason(data: bytes, message: str) -> None:
    with pytest.raises(PictureRejected) as caught:
        read_labels(data, RULES)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_long_file_is_refused() -> None:
    data = png(square())
    with pytest.raises(PictureRejected, match=f"{len(data)} bytes are more than --max-bytes, {len(data) - 1}"):
        read_labels(data, ShapeRules(max_bytes=len(data) - 1))


def test_damage_anywhere_is_noticed(draw: random.Random) -> None:
    labels = np.random.default_rng(3).integers(0, 200, (40, 50))
    data = png(labels)
    end = len(data) - 4  # the digest of the empty last chunk: nothing depends on it
    for length in draw.sample(range(end), 60):
        with pytest.raises(PictureRejected):
            read_labels(data[:length], RULES)
    for place in draw.sample(range(end), 200):
        damaged = bytearray(data)
        damaged[place] ^= 1 << draw.randrange(8)
        try:
            found, _ = read_labels(bytes(damaged), RULES)
        except PictureRejected:
            continue
        assert np.array_equal(found, labels)  # such as the length of the last chunk
