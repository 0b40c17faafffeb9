"""The table of coded segments: other readers don't mind it, and a picture that can't have one stays as it is."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image
from skimage import data as pictures

from shards.dataset.jpeg_header import read_frame, segment_lengths, with_table

PHOTO = pictures.astronaut()[:200, :300]
SINGLES = [cv2.IMWRITE_JPEG_RST_INTERVAL, 1]


def jpeg(pixels: np.ndarray = PHOTO, options: list[int] = SINGLES) -> bytes:
    return bytes(cv2.imencode(".jpg", pixels, options)[1])


def saved(**options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PHOTO).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def test_a_table_says_what_looking_for_markers_finds() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (70, 50, 3), np.uint8)
    for plain, entry in ((jpeg(), 1), (jpeg(options=[cv2.IMWRITE_JPEG_RST_INTERVAL, 19]), 2), (jpeg(noise), 2)):
        tabled = with_table(plain)
        before, after = read_frame(plain), read_frame(tabled)
        added = len(tabled) - len(plain)
        assert after == before._replace(place=before.place + added, scan=before.scan + added, table=after.table, entry=entry)
        np.testing.assert_array_equal(segment_lengths(tabled, after), segment_lengths(plain, before))
        assert added == 20 + entry * after.grid[0] * after.grid[1]
        assert with_table(tabled) == tabled


def test_other_readers_see_the_same_picture() -> None:
    plain = jpeg()
    tabled = with_table(plain)
    assert tabled != plain
    for read in (
        lambda data: np.asarray(Image.open(io.BytesIO(data))),
        lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR),
        simplejpeg.decode_jpeg,
    ):
        np.testing.assert_array_equal(read(tabled), read(plain))


@pytest.mark.parametrize(
    "name",
    [
        "no markers",
        "markers in no grid",
        "progressive",
        "no JFIF",
        "more after the end",
        "a long table",
        "long segments",
        "a long header",
        "grey",
        "png",
    ],
)
def test_what_can_have_no_table_stays_as_it_is(name: str) -> None:
    plain = {
        "no markers": lambda: jpeg(options=[]),
        "markers in no grid": lambda: jpeg(options=[cv2.IMWRITE_JPEG_RST_INTERVAL, 4]),
        "progressive": lambda: saved(progressive=True, restart_marker_rows=1),
        "no JFIF": lambda: jpeg()[:2] + jpeg()[20:],
        "more after the end": lambda: jpeg() + jpeg(),
        "a long table": lambda: jpeg(np.zeros((16 * 256, 16 * 257, 3), np.uint8)),
        "long segments": lambda: jpeg(
            np.random.default_rng(0).integers(0, 256, (32, 16000, 3), np.uint8),
            [cv2.IMWRITE_JPEG_RST_INTERVAL, 1000, cv2.IMWRITE_JPEG_QUALITY, 100],
        ),
        "a long header": lambda: jpeg()[:20] + 2 * (b"\xff\xe2\xff\xff" + bytes(65533)) + jpeg()[20:],
        "grey": lambda: bytes(cv2.imencode(".jpg", PHOTO[:, :, 0], SINGLES)[1]),
        "png": lambda: bytes(cv2.imencode(".png", PHOTO)[1]),
    }[name]()
    assert with_table(plain) == plain
