"""Shrinking is a true antialias: on the whole nearer to Pillow than the area average, and fine detail never comes back as coarse."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pipeline.stream.decode.crop import choose
from pipeline.stream.decode.resize import resize, smoothing

SIZE = 227


def ours(part: NDArray[np.uint8], size: int = SIZE) -> NDArray[np.uint8]:
    out = np.empty((size, size, 3), np.uint8)
    resize(part, out)
    return out


def area(part: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return cv2.resize(part, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def linear(part: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return cv2.resize(part, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)


def psnr(part: NDArray[np.uint8], resized: NDArray[np.uint8]) -> float:
    """dB against Pillow's triangle filter."""
    size = resized.shape[0]
    reference = np.asarray(Image.fromarray(np.ascontiguousarray(part)).resize((size, size), Image.Resampling.BILINEAR), np.float64)
    return float(10 * np.log10(255**2 / max(1e-6, ((resized - reference) ** 2).mean())))


def test_real_crops_are_nearer_to_pillow_than_the_area_average(data_folder: Path) -> None:
    found = []
    for key, path in enumerate(sorted((data_folder / "imagenet_sample").iterdir())[::20]):
        whole = simplejpeg.decode_jpeg(path.read_bytes(), "RGB")
        if whole.shape[0] * whole.shape[1] > 400_000:
            continue
        height, width = whole.shape[:2]
        box = choose("random_resized", False, key, height, width, SIZE)
        part = whole[box.top : box.bottom, box.left : box.right]
        if min(box.height, box.width) > SIZE:
            found.append((psnr(part, ours(part)), psnr(part, area(part)), psnr(part, linear(part))))
    assert len(found) > 12
    mean = np.mean(found, axis=0)
    assert mean[0] >= mean[1]
    assert mean[0] > mean[2] + 3
    assert np.min(found, axis=0)[0] > 34


@pytest.mark.parametrize("factor", [1.25, 1.5, 1.76, 2.0, 2.6, 3.3, 4.7])
def test_detail_finer_than_the_target_disappears(factor: float) -> None:
    """Gratings above the target's limit of half a cycle a pixel, along both axes: what is left of them is aliasing."""
    source = round(SIZE * factor)
    left: dict[str, list[float]] = {"ours": [], "area": [], "linear": []}
    for cycles in np.linspace(0.62 / factor, 0.5, 9):
        wave = 127.5 + 120 * np.cos(2 * np.pi * cycles * np.arange(source))
        grating = np.repeat(np.broadcast_to(wave, (source, source)).round().astype(np.uint8)[:, :, None], 3, axis=2)
        for part in (grating, grating.transpose(1, 0, 2).copy()):
            for name, method in (("ours", ours), ("area", area), ("linear", linear)):
                left[name].append(float(method(part)[20:-20, 20:-20].std()))
    mean = {name: np.mean(values) for name, values in left.items()}
    assert mean["ours"] < 1.05 * mean["area"]
    assert mean["ours"] < 0.75 * mean["linear"]


@given(factor=st.floats(1.0, 12.0))
def test_weights_add_up_to_one_and_have_the_width_of_the_triangle(factor: float) -> None:
    weights = smoothing(factor).astype(np.float64)
    assert weights.sum() == 1
    assert weights.min() >= 0
    np.testing.assert_array_equal(weights, weights[::-1])
    distance = np.arange(len(weights)) - len(weights) // 2
    wanted = (factor * factor - 1) / 6
    got = float((weights * distance**2).sum())
    assert got >= 0.9 * wanted - 1 / 128
    assert got <= (1.42 if factor < 2 else 1.1) * wanted + 1 / 128


def test_growing_is_plain_interpolation() -> None:
    part = np.random.default_rng(0).integers(0, 256, (100, 140, 3), dtype=np.uint8)
    np.testing.assert_array_equal(ours(part), linear(part))
    assert psnr(part, ours(part)) > 50


def test_each_axis_is_antialiased_by_itself() -> None:
    part = np.random.default_rng(0).integers(0, 256, (454, 120, 3), dtype=np.uint8)
    assert psnr(part, ours(part)) > 45
    turned = part.transpose(1, 0, 2).copy()
    assert psnr(turned, ours(turned)) > 45


@pytest.mark.parametrize("side", [1, 2, 3, 100, 228, 300, 454, 700, 1500])
@pytest.mark.parametrize("value", [0, 1, 77, 254, 255])
def test_an_even_picture_stays_even(side: int, value: int) -> None:
    assert (ours(np.full((side, side + 30, 3), value, np.uint8)) == value).all()


def test_nothing_outside_a_view_is_read() -> None:
    random = np.random.default_rng(0)
    whole = random.integers(0, 256, (500, 600, 3), dtype=np.uint8)
    inside = whole[40:440, 50:450].copy()
    np.testing.assert_array_equal(ours(whole[40:440, 50:450]), ours(inside))
