"""Pictures on their way into a shard: shrunk, encoded, kept as they are, or rejected with the reason."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data
from skimage.metrics import peak_signal_noise_ratio

from shards.build.picture import PictureRules, prepare
from shards.dataset.jpeg_header import read_frame, segment_lengths
from shards.dataset.pixels import PictureRejected, read_rgb
from shards.errors import ShardError
from tests.shards.trees import encoded

PHOTO = data.astronaut()  # 512 x 512 x 3
TALL = PHOTO[:, :400]
SMALL_FILES = {kind: encoded(PHOTO[:40, :32], kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")}


def pixels(stored: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(stored)).convert("RGB"))


def test_the_shorter_side_comes_down_and_the_shape_stays() -> None:
    stored = prepare(encoded(TALL, quality=95), PictureRules(resize=200))
    assert stored.extension == "jpg"
    assert pixels(stored.data).shape == (256, 200, 3)
    wide = prepare(encoded(TALL.transpose(1, 0, 2), quality=95), PictureRules(resize=200))
    assert pixels(wide.data).shape == (200, 256, 3)


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255  # without antialiasing these become black, white or broad bands
    small = pixels(prepare(encoded(stripes, "PNG"), PictureRules(resize=100)).data).astype(int)
    assert abs(small - 127).max() < 12


def test_a_shrunk_photograph_looks_like_pillow_s(data_folder: Path) -> None:
    for path in sorted((data_folder / "imagenet_sample").glob("*.JPEG"))[:20]:
        original = Image.open(path).convert("RGB")
        shorter = min(original.size)
        if shorter <= 256:
            continue
        stored = pixels(prepare(path.read_bytes(), PictureRules()).data)
        expected = np.asarray(original.resize((stored.shape[1], stored.shape[0]), Image.Resampling.BICUBIC))
        assert min(stored.shape[:2]) == 256
        assert peak_signal_noise_ratio(expected, stored) > 28


def test_a_huge_picture_that_the_decoder_halves_is_as_good_as_one_that_it_does_not() -> None:
    huge = np.asarray(Image.fromarray(PHOTO).resize((2048, 2048), Image.Resampling.BICUBIC))
    halved = pixels(prepare(encoded(huge, quality=95), PictureRules(quality=95)).data)
    whole = pixels(prepare(encoded(huge, "BMP"), PictureRules(quality=95)).data)
    assert peak_signal_noise_ratio(whole, halved) > 38


def test_a_small_jpeg_keeps_its_bytes_and_nothing_is_enlarged() -> None:
    for picture in (encoded(PHOTO[:200, :300]), encoded(PHOTO[:256, :400]), encoded(PHOTO[:50, :60, 0])):
        assert prepare(picture, PictureRules()).data == picture
    png = encoded(PHOTO[:50, :60], "PNG")
    assert pixels(prepare(png, PictureRules()).data).shape == (50, 60, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("side", [100, 512])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_a_camera_s_rotation_is_applied(orientation: int, side: int, kind: str) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = encoded(np.asarray(Image.fromarray(PHOTO).resize((side, side * 3 // 4))), kind, exif=exif)
    opened = Image.open(io.BytesIO(turned))
    expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    stored = prepare(turned, PictureRules(resize=512))
    assert pixels(stored.data).shape == expected.shape
    assert orientation == 1 or peak_signal_noise_ratio(expected, pixels(stored.data)) > 24
    assert Image.open(io.BytesIO(stored.data)).getexif().get(0x0112, 1) == 1


def test_metadata_is_gone_from_pictures_that_were_encoded_anew() -> None:
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    picture = encoded(PHOTO, exif=exif, comment=b"secret")
    assert b"taken at home" in picture
    stored = prepare(picture, PictureRules()).data
    assert b"taken at home" not in stored
    assert b"secret" not in stored


def as_mode(mode: str) -> Image.Image:
    image = Image.fromarray(PHOTO[:100, :120])
    if mode == "I;16":
        return Image.fromarray(PHOTO[:100, :120, 0].astype(np.uint16) * 257)
    if mode == "RGBA":
        alpha = np.zeros((100, 120), np.uint8)
        alpha[:50] = 255
        return Image.fromarray(np.dstack([PHOTO[:100, :120], alpha]))
    return image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *[(mode, "PNG") for mode in ("P", "1", "L", "LA", "I;16", "RGB")],
        *[(mode, "TIFF") for mode in ("I;16", "CMYK", "RGB")],
        *[(mode, "JPEG") for mode in ("CMYK", "L", "RGB")],
        *[("RGB", kind) for kind in ("WEBP", "BMP", "GIF", "PPM", "JPEG2000")],
    ],
)
def test_every_kind_of_picture_becomes_an_rgb_jpeg_of_the_same_picture(mode: str, kind: str) -> None:
    image = as_mode(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    stored = prepare(buffer.getvalue(), PictureRules(resize=64))
    decoded = simplejpeg.decode_jpeg(stored.data, "RGB")
    assert decoded.shape == (64, 77, 3)
    grey = mode in {"L", "LA", "I;16", "1"}
    expected = np.asarray(Image.fromarray(PHOTO[:100, :120]).convert("L" if grey else "RGB").convert("RGB").resize((77, 64)), np.float64)
    assert abs(decoded - expected).mean() < (40 if mode == "1" else 12)


def test_transparent_pixels_become_white() -> None:
    buffer = io.BytesIO()
    as_mode("RGBA").save(buffer, "PNG")
    stored = pixels(prepare(buffer.getvalue(), PictureRules()).data)
    assert (stored[60:] > 240).all()
    assert abs(stored[:40].astype(int) - PHOTO[:40, :120]).mean() < 8


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    ramp = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (64, 1))
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, "PNG")
    stored = pixels(prepare(buffer.getvalue(), PictureRules()).data)[..., 0].astype(int)
    assert abs(stored - np.arange(256)).max() < 8


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\1\0IDAT"


@pytest.mark.parametrize("resize", [256, None])
@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (b"", "empty file"),
        (b"hello", "not in a picture format"),
        (png_header(20_000, 20_000), "max_pixels"),
        (png_header(2_000_000, 2_000_000), "max_pixels"),
        (encoded(PHOTO)[:20_000], "can't be decoded"),
        (encoded(PHOTO)[:-2], "can't be decoded"),
        (encoded(PHOTO, "PNG")[:50_000], "can't be decoded"),
        (encoded(PHOTO[:100], "WEBP")[:1000], "can't be decoded"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not in a picture format"),  # Pillow would start Ghostscript
    ],
)
def test_what_can_not_be_read_is_rejected_with_the_reason(picture: bytes, reason: str, resize: int | None) -> None:
    with pytest.raises(PictureRejected, match=reason):
        prepare(picture, PictureRules(resize=resize))


def test_reasons_are_the_same_every_time() -> None:
    reasons = set()
    for _ in range(3):
        with pytest.raises(PictureRejected) as caught:
            prepare(encoded(PHOTO)[:20_000], PictureRules())
        reasons.add(str(caught.value))
    assert len(reasons) == 1


def test_stray_bytes_are_no_loss_of_pixels_for_any_resize() -> None:
    odd = encoded(PHOTO[:100, :100])
    odd = odd[:-2] + b"\xff\x00\x01\x02" * 10 + odd[-2:]  # bytes between the data and the end marker
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(odd)
    stored = prepare(odd, PictureRules())
    assert stored.data != odd
    assert peak_signal_noise_ratio(PHOTO[:100, :100], simplejpeg.decode_jpeg(stored.data)) > 28
    assert prepare(odd, PictureRules(resize=None)).data == odd
    np.testing.assert_array_equal(read_rgb(odd, 10**6), read_rgb(encoded(PHOTO[:100, :100]), 10**6))


@pytest.mark.parametrize("resize", [64, 600, None])
def test_a_jpeg_that_has_lost_pixels_is_rejected_even_where_pillow_reads_it(resize: int | None) -> None:
    good = encoded(PHOTO, quality=85)
    damaged = good[:20_000] + good[25_000:]
    Image.open(io.BytesIO(damaged)).load()
    with pytest.raises(PictureRejected, match="Corrupt JPEG data"):
        prepare(damaged, PictureRules(resize=resize))


def test_every_sample_photograph_is_accepted_and_decodes_strictly(data_folder: Path) -> None:
    for path in sorted((data_folder / "imagenet_sample").glob("*.JPEG"))[:60]:
        for rules in (PictureRules(), PictureRules(resize=None)):
            simplejpeg.decode_jpeg(prepare(path.read_bytes(), rules).data, "RGB")


def test_a_strip_that_no_jpeg_can_hold_is_rejected() -> None:
    for longest in (65_501, 70_000):
        with pytest.raises(PictureRejected, match="longest side"):
            prepare(encoded(np.zeros((2, longest, 3), np.uint8), "PNG"), PictureRules())
    assert pixels(prepare(encoded(np.zeros((2, 65_500, 3), np.uint8), "PNG"), PictureRules()).data).shape == (2, 65_500, 3)


def test_what_is_encoded_has_a_marker_behind_every_block_and_a_table_of_them() -> None:
    noise = np.random.default_rng(0).integers(0, 2, (300, 257, 3), np.uint8) * 255
    for photo, quality in ((PHOTO[:300, :410], 90), (PHOTO[:300, :410], 100), (noise, 95), (noise, 100)):
        stored = prepare(encoded(photo, "PNG"), PictureRules(quality=quality)).data
        frame = read_frame(stored)
        assert frame is not None
        assert frame.table
        assert frame.grid == (-(-frame.height // 16), -(-frame.width // 16))
        lengths = segment_lengths(stored, frame)
        assert lengths is not None
        ends = frame.scan + np.cumsum(lengths, dtype=np.int64)
        assert ends[-1] == len(stored)
        assert {stored[end - 2] for end in ends.tolist()} == {0xFF}


def test_the_markers_and_the_table_cost_next_to_no_bytes(data_folder: Path) -> None:
    stored = plain = 0
    for path in sorted((data_folder / "imagenet_sample").glob("*.JPEG"))[:40]:
        if min(Image.open(path).size) > 256:
            data = prepare(path.read_bytes(), PictureRules()).data
            stored += len(data)
            plain += len(encoded(pixels(data), quality=90, subsampling="4:2:0"))
    assert stored < 1.03 * plain


def test_a_format_that_shards_do_not_hold_is_stored_only_encoded_anew() -> None:
    picture = encoded(PHOTO[:64, :64], "JPEG2000")
    assert prepare(picture, PictureRules()).extension == "jpg"
    with pytest.raises(PictureRejected, match="JPEG2000 can't be stored as it is"):
        prepare(picture, PictureRules(resize=None))


@pytest.mark.parametrize("resize", [256, 5, None])
def test_floats_and_wide_integers_are_rejected(resize: int | None) -> None:
    for values in (np.zeros((10, 10), np.float32), np.full((10, 10), 70_000, np.int32)):
        with pytest.raises(PictureRejected, match="no agreed range"):
            prepare(encoded(values, "TIFF"), PictureRules(resize=resize))


@pytest.mark.parametrize("field", ["resize", "quality", "max_pixels", "max_bytes"])
@pytest.mark.parametrize("value", [0, -1, 10**12])
def test_rules_outside_their_range_are_refused(field: str, value: int) -> None:
    with pytest.raises(ShardError, match=field):
        PictureRules(**{field: value})


@given(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"]), st.sampled_from([16, None]), st.data())
@settings(max_examples=200)
def test_no_damage_does_anything_but_reject_or_store_something_that_decodes(kind: str, resize: int | None, data_: st.DataObject) -> None:
    damaged = bytearray(SMALL_FILES[kind])
    for _ in range(data_.draw(st.integers(1, 4))):
        place = data_.draw(st.integers(0, len(damaged) - 1))
        damaged[place : place + data_.draw(st.integers(0, 4))] = data_.draw(st.binary(max_size=4))
        if not damaged:
            break
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = prepare(bytes(damaged), PictureRules(resize=resize, max_pixels=10**6))
    except PictureRejected as error:
        assert "\n" not in str(error)  # noqa: PT017 - whether it raises depends on the damage
        return
    assert read_rgb(stored.data, 10**6).dtype == np.uint8
    assert resize is None or stored.extension == "jpg"
