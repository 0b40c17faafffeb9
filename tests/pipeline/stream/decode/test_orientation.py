"""A picture that its camera stored on its side trains upright, whatever its format, its crop and the way that it is decoded."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.config import DataConfig
from pipeline.evaluation.embedding.pictures import PictureCutter
from pipeline.stream.decode import nvimgcodec
from pipeline.stream.decode.crop import Crop, CropRule, choose
from pipeline.stream.decode.decoder import DecoderName, make_decoder
from pipeline.stream.decode.resize import resize
from pipeline.stream.loader import StreamConfig, StreamLoader
from shards.build.picture import PictureRules, prepare
from shards.dataset.jpeg_header import read_frame
from shards.dataset.pixels import read_rgb
from tests.datasets import photographs, write_dataset

HEIGHT, WIDTH, MOST = 83, 121, 10**6
PIXELS = np.asarray(Image.open(io.BytesIO(photographs(1, HEIGHT, WIDTH)[0])))
DECODERS: list[DecoderName] = ["simplejpeg", *(["nvimgcodec"] if nvimgcodec.version() else [])]  # type: ignore[list-item]


def exif(orientation: int, order: str = "<", before: bytes = b"", form: str = "H") -> bytes:
    """EXIF data with an orientation behind other entries; `form` gives its type and the number of its values: H, HH, L or LL."""
    values = struct.pack(f"{order}{form}", orientation, *[2] * (len(form) - 1))
    behind = values if len(values) > 4 else b""
    place = struct.pack(f"{order}L", 10 + len(before) + 12 + 4) if behind else values.ljust(4, b"\0")
    entries = before + struct.pack(f"{order}HHL", 0x0112, {"H": 3, "L": 4}[form[0]], len(form)) + place
    magic = {"<": b"II*\0", ">": b"MM\0*"}[order]
    head = magic + struct.pack(f"{order}LH", 8, len(entries) // 12)
    return b"Exif\0\0" + head + entries + bytes(4) + behind


def xmp(orientation: int) -> bytes:
    return b'http://ns.adobe.com/xap/1.0/\0<rdf:Description tiff:Orientation="%d"/>' % orientation


def noted(jpeg: bytes, *segments: bytes) -> bytes:
    """The JPEG with segments of metadata."""
    return jpeg[:2] + b"".join(b"\xff\xe1" + struct.pack(">H", 2 + len(each)) + each for each in segments) + jpeg[2:]


def marked() -> bytes:
    """A JPEG with a restart marker behind every block, whose segments can be cut out."""
    options = [cv2.IMWRITE_JPEG_RST_INTERVAL, 1, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    return bytes(cv2.imencode(".jpg", PIXELS[:, :, ::-1], options)[1])


def saved(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind, **options)
    return buffer.getvalue()


PLAIN = simplejpeg.encode_jpeg(PIXELS, 90, "RGB", "420")
JPEGS = {
    "rows": PLAIN,
    "progressive": saved("JPEG", progressive=True),
    "segments": marked(),
    "built": prepare(saved("PNG"), PictureRules()).data,
    "whole, by Pillow": PLAIN[:-2] + bytes(9) + PLAIN[-2:],
}


def upright(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("name", DECODERS)
def test_a_crop_is_one_of_the_upright_picture_to_the_bit(name: DecoderName, kind: str, orientation: int) -> None:
    data, decoder = noted(JPEGS[kind], exif(orientation)), make_decoder(name)
    whole = read_rgb(data, MOST)
    height, width, _ = whole.shape
    np.testing.assert_array_equal(whole, upright(data))
    for size in (32, 150):
        out, expected = np.zeros((2, size, size, 3), np.uint8)
        for crop in get_args(Crop):
            for key in range(3):
                assert decoder.crops([data], [out], CropRule(crop, True, MOST), [key]) == [None]
                box = choose(crop, True, key, height, width, size)
                part = whole[box.top : box.bottom, box.left : box.right]
                if part.shape == expected.shape:
                    expected[:] = part
                else:
                    resize(part, expected)
                np.testing.assert_array_equal(out, expected[:, ::-1] if box.mirror else expected)


@pytest.mark.parametrize("kind", JPEGS)
def test_pictures_stay_as_they_are_stored_if_the_rule_says_so(kind: str) -> None:
    out, expected = np.zeros((2, 48, 48, 3), np.uint8)
    for key in range(4):
        rule = CropRule("random_resized", True, MOST, turn=False)
        assert make_decoder().crops([noted(JPEGS[kind], exif(6))], [out], rule, [key]) == [None]
        assert make_decoder().crops([JPEGS[kind]], [expected], rule, [key]) == [None]
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [2, 3, 6, 7])
def test_other_formats_are_turned_too(kind: str, orientation: int) -> None:
    noted_by_pillow = Image.Exif()
    noted_by_pillow[0x0112] = orientation
    data = saved(kind, exif=noted_by_pillow, **({"lossless": True} if kind == "WEBP" else {}))
    found = read_rgb(data, MOST)
    np.testing.assert_array_equal(found, upright(data))
    assert (found.shape[0] > found.shape[1]) == (orientation in {6, 7})
    assert make_decoder().crops([data], [np.zeros((32, 32, 3), np.uint8)], CropRule("center", False, MOST), [0]) == [None]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Metadata Warning")
@pytest.mark.parametrize(
    ("segments", "orientation"),
    [
        ([exif(6)], 6),
        ([exif(6, ">")], 6),
        ([exif(8, "<", struct.pack("<HHLL", 0x0100, 4, 1, 99) * 3)], 8),
        *(([exif(6, order, form=form)], 6) for order in "<>" for form in ("HH", "HHH", "L", "LL")),
        ([exif(0x10006, form="L")], 1),
        ([exif(0)], 1),
        ([exif(9)], 1),
        ([exif(9), xmp(3)], 1),
        ([xmp(3)], 3),
        ([xmp(9)], 1),
        ([b"Exif\0\0II*\0" + struct.pack("<L", 8) + bytes(6), xmp(5)], 5),
        ([exif(6), exif(3)], 6),
        ([exif(6)[:20], xmp(2)], 2),
        ([b"Exif\0\0"], 1),
        ([b"Exif\0\0XX*\0" + bytes(30)], 1),
        ([b""], 1),
        ([], 1),
    ],
)
def test_the_orientation_is_read_as_pillow_reads_it(segments: list[bytes], orientation: int) -> None:
    data = noted(PLAIN, *segments)
    frame = read_frame(data)
    assert frame is not None
    assert frame.orientation == orientation
    np.testing.assert_array_equal(read_rgb(data, MOST), upright(data))
    with_fill = data[:2] + b"\xff" + data[2:]  # leaves the fast path
    assert read_frame(with_fill) is None
    np.testing.assert_array_equal(read_rgb(with_fill, MOST), read_rgb(data, MOST))


def test_what_is_built_trained_on_and_embedded_stands_alike() -> None:
    data = noted(PLAIN, exif(6))
    stored = [prepare(data, PictureRules(resize=each)).data for each in (None, 256, 60)]
    assert stored[0] == data
    found = [read_rgb(each, MOST) for each in stored]
    assert [each.shape[0] > each.shape[1] for each in found] == [True] * 3
    np.testing.assert_allclose(found[1].astype(int), found[0], atol=60)
    out, expected = np.zeros((2, 64, 64, 3), np.uint8)
    for turn, same in ((True, noted(PLAIN, exif(6))), (False, PLAIN)):
        assert PictureCutter(make_decoder(), 80, MOST, turn).cut([data], [out]) == [None]
        assert PictureCutter(make_decoder(), 80, MOST).cut([same], [expected]) == [None]
        np.testing.assert_array_equal(out, expected)


def first_images(folder: Path, state: dict[str, int] | None, **data: object) -> tuple[NDArray[np.uint8], StreamLoader]:
    settings = DataConfig(shards=str(folder), crop="center", threads=1, lanes=4, shuffle_block=8, **data)  # type: ignore[arg-type]
    with StreamLoader(StreamConfig(settings, image_size=32, global_batch=8)) as loader:
        if state is not None:
            loader.load_state_dict(state)
        batch = next(iter(loader))
        return batch.images[batch.sample_ids.argsort()].numpy(), loader


def test_a_run_keeps_the_orientation_that_it_began_with(tmp_path: Path) -> None:
    write_dataset(tmp_path, [noted(PLAIN, exif(6))] * 8, [8])
    turned, loader = first_images(tmp_path, None)
    state = loader.state_dict()
    stored, stored_loader = first_images(tmp_path, None, orientation="stored")
    assert not np.array_equal(turned, stored)
    earlier = {key: value for key, value in loader.state_dict().items() if key != "turned"} | {"consumed": 0}
    state["consumed"] = 0
    for position, orientation, images in (
        (earlier, "stored", stored),
        (state, "turned", turned),
        ({**stored_loader.state_dict(), "consumed": 0}, "stored", stored),
    ):
        for asked in ("turned", "stored"):
            found, loader = first_images(tmp_path, position, orientation=asked)
            np.testing.assert_array_equal(found, images)
            assert loader.config.data.orientation == orientation
            assert loader.state_dict()["turned"] == (orientation == "turned")
            assert loader.may_turn
