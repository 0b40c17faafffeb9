"""The crop of a picture in any format, and in any thread, is the pixels of the whole decode, or an error, and never something else."""

from __future__ import annotations

import contextlib
import io
import re
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.mapping import ConfigError
from pipeline.stream.decode import nvimgcodec
from pipeline.stream.decode.crop import Crop, CropRule, choose
from pipeline.stream.decode.decoder import DecoderName, make_decoder
from pipeline.stream.decode.jpeg import decode
from pipeline.stream.decode.resize import resize
from shards.dataset.pixels import PictureRejected
from tests.datasets import photographs

DECODER = make_decoder()
LIMIT = 10_000_000
RANDOM, RESIZED, CENTER = (CropRule(crop, True, LIMIT) for crop in get_args(Crop))


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photograph() -> bytes:
    return photographs(1, 300, 400)[0]


def test_a_crop_at_the_stored_scale_is_those_very_pixels(photograph: bytes) -> None:
    whole = decode(photograph, LIMIT)
    out = np.zeros((227, 227, 3), np.uint8)
    for key in range(20):
        box = choose("random", True, key, 300, 400, 227)
        assert DECODER.crops([photograph], [out], RANDOM, [key]) == [None]
        part = whole[box.top : box.top + 227, box.left : box.left + 227]
        np.testing.assert_array_equal(out, part[:, ::-1] if box.mirror else part)


def test_jpegs_decode_like_pillow(photograph: bytes) -> None:
    ours, theirs = decode(photograph, LIMIT), np.asarray(Image.open(io.BytesIO(photograph)).convert("RGB"))
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 3


def test_pictures_smaller_than_the_crop_are_enlarged() -> None:
    out = np.zeros((227, 227, 3), np.uint8)
    assert DECODER.crops(photographs(1, 64, 64), [out], RANDOM, [3]) == [None]
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
        (b"", "empty file"),
        (b"\xff\xd8\xff", "not in a picture format"),
        (photograph[: len(photograph) // 2], "truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "not in a picture format"),
        (bomb, "4000 x 3000 pixels are more than"),
        (encoded(Image.new("RGB", (4000, 3000)), "JPEG"), "4000 x 3000 pixels are more than"),
    ):
        with pytest.raises(PictureRejected, match=message):
            decode(data, LIMIT)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_pictures_give_pixels_or_an_error(photograph: bytes, data: st.DataObject) -> None:
    damaged = bytearray(photograph)
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(PictureRejected):
        assert decode(bytes(damaged[: data.draw(st.integers(1, len(damaged)))]), LIMIT).dtype == np.uint8


def test_a_jpeg_that_lost_pixels_is_refused_as_the_builder_refuses_it(photograph: bytes) -> None:
    from shards.build.picture import PictureRules, prepare

    rules = PictureRules(resize=None)
    alike = refused = 0
    for place in range(700, len(photograph) - 2, len(photograph) // 60):
        damaged = photograph[:place] + b"\xff\xd9" + photograph[place + 2 :]
        verdicts = []
        for attempt in (lambda data: prepare(data, rules), lambda data: decode(data, LIMIT)):
            try:
                attempt(damaged)
                verdicts.append(True)
            except PictureRejected:
                verdicts.append(False)
        alike += verdicts[0] >= verdicts[1]  # what trains is nothing that a builder would have refused
        refused += not verdicts[1]
    assert refused > 20
    assert alike >= 58


def test_a_resized_crop_is_the_resized_part_of_the_whole(photograph: bytes) -> None:
    whole = decode(photograph, LIMIT).copy()
    out, expected = np.zeros((2, 120, 120, 3), np.uint8)
    mirrored = set()
    for key in range(20):
        box = choose("random_resized", True, key, 300, 400, 120)
        assert DECODER.crops([photograph], [out], RESIZED, [key]) == [None]
        resize(whole[box.top : box.bottom, box.left : box.right], expected)
        np.testing.assert_array_equal(out, expected[:, ::-1] if box.mirror else expected)
        mirrored.add(box.mirror)
    assert mirrored == {True, False}


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_limits_and_damage_hold_for_crops_too(kind: str, photograph: bytes) -> None:
    out = np.full((64, 64, 3), 7, np.uint8)
    for data, message in (
        (encoded(Image.new("RGB", (4000, 3000)), kind), "4000 x 3000 pixels are more than"),
        (encoded(Image.new("RGB", (4000, 3000)), "JPEG"), "4000 x 3000 pixels are more than"),
        (encoded(Image.effect_noise((90, 90), 50).convert("RGB"), kind)[:-500], "Error"),
        (photograph[: len(photograph) // 3], "truncated"),
    ):
        (reason,) = DECODER.crops([data], [out], CENTER, [1])
        assert reason is not None
        assert message in reason
    assert (out == 7).all()


@pytest.mark.parametrize("name", ["simplejpeg", "nvimgcodec"])
def test_crops_are_the_same_in_any_thread_and_by_any_decoder(name: DecoderName) -> None:
    if name == "nvimgcodec" and nvimgcodec.version() is None:
        pytest.skip("nvImageCodec (the extra `decode`) is not installed")
    decoder = make_decoder(name)
    pictures = [data for height in (150, 200, 300) for data in photographs(4, height, 400)]

    def crop(place: int) -> bytes:
        out = np.zeros((150, 150, 3), np.uint8)
        assert decoder.crops([pictures[place % len(pictures)]], [out], RESIZED, [place]) == [None]
        return out.tobytes()

    alone = []
    for place in range(60):
        out = np.zeros((150, 150, 3), np.uint8)
        assert DECODER.crops([pictures[place % len(pictures)]], [out], RESIZED, [place]) == [None]
        alone.append(out.tobytes())
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert list(pool.map(crop, range(60))) == alone


def test_the_decoder_is_chosen_by_name_and_says_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    always = make_decoder("simplejpeg").description
    assert "simplejpeg 1." in always
    assert "opencv" in always
    version = nvimgcodec.version()
    if version is not None:
        assert make_decoder("nvimgcodec").description == f"nvimgcodec {version}, {always}"
    monkeypatch.setattr(nvimgcodec, "version", lambda: None)
    with pytest.raises(ConfigError, match=re.escape("pip install -e '.[decode]'")):
        make_decoder("nvimgcodec")


def test_a_harmless_warning_does_not_hide_lost_pixels() -> None:
    data = bytearray(photographs(1, 128, 128)[0])
    place = data.index(b"JFIF\0") + 5
    data[place] = 3  # a version that libjpeg warns of first
    assert decode(bytes(data), LIMIT).shape == (128, 128, 3)
    cut = bytes(data[: len(data) // 2]) + b"\xff\xd9"
    with pytest.raises(PictureRejected, match=r"premature end|Corrupt|bad Huffman"):
        decode(cut, LIMIT)
    (reason,) = DECODER.crops([cut], [np.zeros((120, 120, 3), np.uint8)], CENTER, [1])
    assert re.search(r"premature end|Corrupt|bad Huffman", reason or "")


@pytest.mark.parametrize("damaged", [False, True])
def test_a_file_in_memory_of_ours_is_left_as_it_was(photograph: bytes, damaged: bool) -> None:
    """Its height is another one while it is decoded; a second look, or the copy in a report, must find the file itself."""
    data = photograph[: len(photograph) // 3] + b"\xff\xd9" if damaged else photograph
    memory, out, expected = memoryview(bytearray(data)), np.zeros((2, 100, 100, 3), np.uint8), np.zeros((2, 100, 100, 3), np.uint8)
    for key in range(6):
        reasons = DECODER.crops([memory] * 2, list(out), RANDOM, [key, key + 100])
        assert DECODER.crops([data] * 2, list(expected), RANDOM, [key, key + 100]) == reasons
        assert memory == data
        assert (out == expected).all()


def test_odd_formats_become_the_pixels_that_the_builder_would_store() -> None:
    deep = Image.fromarray((np.arange(64 * 64, dtype=np.uint32).reshape(64, 64) * 16).astype(np.uint16))
    grey = decode(encoded(deep, "PNG"), LIMIT)[..., 0].copy()
    assert grey.min() == 0
    assert 250 <= grey.max() <= 255
    assert abs(float(grey.mean()) - 127.5) < 2
    clear = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    assert (decode(encoded(clear, "PNG"), LIMIT) == 255).all()
