"""A crop of a JPEG has the pixels of the whole decode to the bit, however the file is built, and damage in it is never passed on."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pipeline.stream.decode import nvimgcodec
from pipeline.stream.decode.crop import Box
from pipeline.stream.decode.jpeg import decode_rows
from shards.dataset.jpeg_header import read_frame
from tests.datasets import photographs

HEIGHT, WIDTH = 83, 121  # no multiple of a block: the last ones are filled up


@cache
def pixels_of(height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    return simplejpeg.decode_jpeg(photographs(1, height, width)[0])


def saved(**options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_of()).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def sampled(sampling: str) -> bytes:
    return simplejpeg.encode_jpeg(pixels_of(), 90, "RGB", sampling)


FILES = {
    **{sampling: lambda sampling=sampling: sampled(sampling) for sampling in ("444", "422", "420", "440", "411")},
    "grey": lambda: simplejpeg.encode_jpeg(pixels_of()[:, :, :1].copy(), 90, "Gray", "Gray"),
    "restart every row": lambda: saved(restart_marker_rows=1),
    "restart every 3 blocks": lambda: saved(restart_marker_blocks=3, subsampling="4:4:4"),
    "progressive": lambda: saved(progressive=True),
    "rgb": lambda: saved(keep_rgb=True),
    "optimised tables, exif and comment": lambda: saved(optimize=True, comment=b"\xff\xc0" * 40, exif=orientation()),
    "data after the end": lambda: sampled("420") + sampled("444"),
}


def orientation() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize("name", FILES)
def test_every_crop_has_the_pixels_of_the_whole_decode(name: str) -> None:
    data = FILES[name]()
    frame = read_frame(data)
    assert frame is not None
    assert (frame.height, frame.width) == (HEIGHT, WIDTH)
    assert (frame.context is None) == (name in {"progressive", "restart every row", "restart every 3 blocks"})
    whole = simplejpeg.decode_jpeg(data, "RGB")
    for bottom in range(1, HEIGHT + 1):
        box = Box(bottom // 3, 5, bottom - bottom // 3, 70, False)
        part = decode_rows(data, frame, box)
        assert part is not None
        np.testing.assert_array_equal(part, whole[box.top : box.bottom, box.left : box.right])


def test_rows_below_the_crop_are_not_decoded() -> None:
    data = simplejpeg.encode_jpeg(pixels_of(300, 400), 90, "RGB", "420")
    frame = read_frame(data)
    whole = simplejpeg.decode_jpeg(data, "RGB")
    start = len(data) * 9 // 10
    damaged = data[:start] + b"\x11" * (len(data) - 2 - start) + data[-2:]
    part = decode_rows(damaged, frame, Box(0, 0, 150, 400, False))
    np.testing.assert_array_equal(part, whole[:150])


def test_every_photograph_gives_the_pixels_of_the_whole_decode(data_folder: Path) -> None:
    random = np.random.default_rng(0)
    plain = 0
    for path in sorted((data_folder / "imagenet_sample").iterdir())[::4]:
        data = path.read_bytes()
        frame = read_frame(data)
        if frame is None or frame.height * frame.width > 300_000:
            continue
        plain += 1
        whole = simplejpeg.decode_jpeg(data, "RGB")
        top, left = (int(random.integers(0, length - 1)) for length in whole.shape[:2])
        box = Box(top, left, int(random.integers(1, frame.height - top + 1)), int(random.integers(1, frame.width - left + 1)), False)
        np.testing.assert_array_equal(decode_rows(data, frame, box), whole[box.top : box.bottom, box.left : box.right], str(path))
    assert plain > 150


@given(st.data())
def test_damage_gives_no_pixels_or_those_of_the_whole_decode(data: st.DataObject) -> None:
    damaged = bytearray(sampled("420"))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.integers(1, 2 * len(damaged))) :]
    frame = read_frame(bytes(damaged))
    if frame is None or frame.height * frame.width > 200_000:
        return
    bottom = data.draw(st.integers(1, frame.height))
    part = decode_rows(bytes(damaged), frame, Box(0, 0, bottom, frame.width, False))
    if part is not None:
        part = part.copy()
        try:
            whole = simplejpeg.decode_jpeg(bytes(damaged), "RGB", strict=False)
        except ValueError:  # what lies below the crop may be past reading
            return
        np.testing.assert_array_equal(part, whole[:bottom])


def test_lost_pixels_inside_the_crop_are_noticed() -> None:
    data = simplejpeg.encode_jpeg(pixels_of(300, 400), 90, "RGB", "420")
    frame = read_frame(data)
    for place in range(len(data) // 10, len(data) // 2, len(data) // 40):
        for end in (b"\xff\xd9", b"\xff\xd3"):
            damaged = data[:place] + end + data[place + 2 :]
            assert decode_rows(damaged, frame, Box(0, 0, 290, 400, False)) is None


def test_unusual_headers_are_left_to_the_whole_decode() -> None:
    data = sampled("420")
    place = data.index(b"\xff\xc0")
    cmyk = io.BytesIO()
    Image.new("CMYK", (40, 40)).save(cmyk, "JPEG")
    scan = data.index(b"\xff\xda")
    for name, odd in {
        "no height yet": data[: place + 5] + b"\0\0" + data[place + 7 :],
        "12 bits": data[: place + 4] + b"\x0c" + data[place + 5 :],
        "arithmetic coding": data[: place + 1] + b"\xc9" + data[place + 2 :],
        "two frames": data[:scan] + data[place : place + 19] + data[scan:],
        "cmyk": cmyk.getvalue(),
        "a scan first": data[:2] + data[scan:],
        "cut": data[:scan],
        "nothing": b"",
        "png": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "endless": b"\xff\xd8" + b"\xff\xe0\0\0" * 100,
    }.items():
        assert read_frame(odd) is None, name
    one_colour_a_scan = data[: scan + 4] + b"\x01" + data[scan + 5 :]
    frame = read_frame(one_colour_a_scan)
    assert frame is not None
    assert frame.context is None


@pytest.mark.skipif(nvimgcodec.version() is None, reason="nvImageCodec (the extra `decode`) is not installed")
@pytest.mark.parametrize("name", FILES)
def test_nvimgcodec_gives_the_same_pixels(name: str) -> None:
    data = FILES[name]()
    frame = read_frame(data)
    whole = simplejpeg.decode_jpeg(data, "RGB")
    for top, left, height, width in ((0, 0, HEIGHT, WIDTH), (0, 0, 1, 1), (17, 31, 40, 55), (60, 90, HEIGHT - 60, WIDTH - 90)):
        part = nvimgcodec.decode_region(data, frame, Box(top, left, height, width, False))
        np.testing.assert_array_equal(part, whole[top : top + height, left : left + width])


@pytest.mark.skipif(nvimgcodec.version() is None, reason="nvImageCodec (the extra `decode`) is not installed")
def test_what_nvimgcodec_refuses_is_told_as_by_simplejpeg() -> None:
    data = sampled("420")
    frame = read_frame(data)
    assert nvimgcodec.decode_region(data[: len(data) // 2], frame, Box(0, 0, HEIGHT, WIDTH, False)) is None
