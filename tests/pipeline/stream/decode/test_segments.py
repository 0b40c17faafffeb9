"""A crop that is cut out between restart markers has the pixels of the whole decode to the bit, and what can't be cut is left alone."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pipeline.stream.decode.crop import Box, CropRule
from pipeline.stream.decode.decoder import make_decoder
from pipeline.stream.decode.segments import Piece, cut
from shards.build.picture import PictureRules, prepare
from shards.dataset.jpeg_header import read_frame, segment_lengths, with_table
from tests.datasets import photographs

HEIGHT, WIDTH = 83, 121  # no multiple of a block: the last ones are filled up; 8 and 16 blocks across
SAMPLINGS = {
    "444": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    "422": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "420": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "440": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
}
RARE = {"411": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411}
RULE = CropRule("random", False, 10**6)


@cache
def pixels_of(height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    return simplejpeg.decode_jpeg(photographs(1, height, width)[0])


@cache
def marked(sampling: str, interval: int, table: bool = False, height: int = HEIGHT, width: int = WIDTH) -> bytes:
    """A JPEG with restart markers; in shades of grey where that is the sampling."""
    pixels = pixels_of(height, width)
    options = [cv2.IMWRITE_JPEG_RST_INTERVAL, interval, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, {**SAMPLINGS, **RARE}.get(sampling, 0)]
    grey = sampling == "grey"
    _, found = cv2.imencode(".jpg", pixels[:, :, 0].copy() if grey else pixels, options[:2] if grey else options)
    return with_table(bytes(found)) if table else bytes(found)


def with_scan_length(data: bytes, length: int) -> bytes:
    place = data.index(b"\xff\xda") + 2
    return data[:place] + length.to_bytes(2, "big") + data[place + 2 :]


def pieces_of(pictures: Sequence[bytes], boxes: Sequence[Box]) -> list[Piece | None]:
    return cut(pictures, [read_frame(each) for each in pictures], boxes)


def assert_same(data: bytes, box: Box, piece: Piece | None) -> None:
    assert piece is not None
    whole = simplejpeg.decode_jpeg(data, "RGB")
    np.testing.assert_array_equal(piece.decode(box), whole[box.top : box.bottom, box.left : box.right])


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("interval", [1, 2, 4, 8])
@pytest.mark.parametrize("sampling", [*SAMPLINGS, "grey"])
def test_every_crop_has_the_pixels_of_the_whole_decode(sampling: str, interval: int, table: bool) -> None:
    data = marked(sampling, interval, table and sampling != "grey")
    boxes = [
        Box(top, left, height, width, False)
        for top in (0, 1, 7, 8, 15, 16, 17, 50)
        for left in (0, 1, 8, 16, 17, 63, 64, 65)
        for height, width in ((1, 1), (8, 8), (15, 16), (16, 17), (33, 56))
    ]
    pieces = pieces_of([data] * len(boxes), boxes)
    assert pieces.count(None) < len(pieces) / 3  # where nearly all is touched
    for box, piece in zip(boxes, pieces, strict=True):
        if piece is not None:
            assert_same(data, box, piece)


@pytest.mark.parametrize("interval", [1, 2, 4])
@pytest.mark.parametrize("sampling", [*SAMPLINGS, "grey"])
def test_a_crop_may_end_at_any_row_and_column_of_a_block(sampling: str, interval: int) -> None:
    """A piece's header says that its last blocks hold no more than the crop needs."""
    data = marked(sampling, interval)
    boxes = [
        *(Box(17, left, 9, width, False) for left in (0, 30) for width in range(1, 35)),
        *(Box(top, 8, height, 9, False) for top in (0, 21) for height in range(1, 35)),
    ]
    whole = simplejpeg.decode_jpeg(data, "RGB")
    for box, piece in zip(boxes, pieces_of([data] * len(boxes), boxes), strict=True):
        assert piece is not None
        assert piece.top + box.height <= piece.height <= piece.top + box.height + 1
        assert interval > 1 or piece.width <= max(piece.left + box.width + 1, 5)  # more blocks are as many as the last marker ends
        np.testing.assert_array_equal(piece.decode(box), whole[box.top : box.bottom, box.left : box.right])


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_last_blocks_of_a_few_pixels_have_the_pixels_of_the_whole_decode(sampling: str) -> None:
    """libjpeg interpolates the colours of no JPEG that is narrower than 5 pixels."""
    for rest in range(1, 9):
        for height, width in ((40, 48 + rest), (48 + rest, 40), (48 + rest, 32 + rest)):
            data = marked(sampling, 1, False, height, width)
            boxes = [Box(top, left, height - top, width - left, False) for top in (0, 20, height - 1) for left in range(width - 12, width)]
            pieces = pieces_of([data] * len(boxes), boxes)
            assert pieces.count(None) == 0
            for box, piece in zip(boxes, pieces, strict=True):
                assert_same(data, box, piece)


@given(st.data())
@pytest.mark.slow
def test_pictures_of_all_kinds_are_cut_together(data: st.DataObject) -> None:
    kinds = st.tuples(
        st.sampled_from(list(SAMPLINGS)), st.sampled_from([0, 1, 2, 3, 8]), st.booleans(), st.integers(1, 90), st.integers(1, 130)
    )
    pictures = [marked(*kind) for kind in data.draw(st.lists(kinds, min_size=1, max_size=6))]
    boxes = []
    for picture in pictures:
        height, width, *_ = simplejpeg.decode_jpeg_header(picture)
        top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        boxes.append(Box(top, left, data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left)), False))
    for picture, box, piece in zip(pictures, boxes, pieces_of(pictures, boxes), strict=True):
        if piece is not None:
            assert_same(picture, box, piece)


def test_crops_of_what_the_builder_stores_are_cut(data_folder: Path) -> None:
    random = np.random.default_rng(0)
    pictures, boxes = [], []
    for path in sorted((data_folder / "imagenet_sample").iterdir())[::8]:
        if min(Image.open(path).size) <= 256:
            continue
        data = prepare(path.read_bytes(), PictureRules()).data
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        side = int(random.integers(20, 200))
        pictures.append(data)
        boxes.append(Box(int(random.integers(height - side + 1)), int(random.integers(width - side + 1)), side, side, False))
    assert len(pictures) > 50
    for data, box, piece in zip(pictures, boxes, pieces_of(pictures, boxes), strict=True):
        assert_same(data, box, piece)


def test_what_lies_outside_is_not_decoded_and_lost_pixels_inside_are_noticed() -> None:
    data = marked("420", 1, True, 300, 400)
    frame = read_frame(data)
    whole = simplejpeg.decode_jpeg(data, "RGB")
    ends = frame.scan + np.cumsum(segment_lengths(data, frame), dtype=np.int64)
    box = Box(100, 120, 80, 90, False)

    def damaged(row: int, column: int) -> bytes:
        number = row * 25 + column
        start, end = int(ends[number - 1]), int(ends[number]) - 2
        return data[:start] + b"\xff\0" * ((end - start) // 2) + b"\x11" * ((end - start) % 2) + data[end:]

    for row, column in ((0, 3), (8, 2), (8, 20), (18, 24)):
        (piece,) = pieces_of([damaged(row, column)], [box])
        np.testing.assert_array_equal(piece.decode(box), whole[box.top : box.bottom, box.left : box.right])
    (piece,) = pieces_of([damaged(8, 10)], [box])
    assert piece.decode(box) is None


def test_what_can_not_be_cut_is_left_to_others() -> None:
    data, box = marked("420", 1), Box(20, 20, 20, 20, False)
    frame = read_frame(data)
    scan = frame.scan
    first = scan + int(segment_lengths(data, frame)[0]) - 2
    progressive, arithmetic = io.BytesIO(), data.replace(b"\xff\xc0", b"\xff\xc9")
    Image.fromarray(pixels_of()).save(progressive, "JPEG", progressive=True, restart_marker_rows=1)
    for name, odd in {
        "no markers": marked("420", 0),
        "rows begin between markers": marked("420", 3),
        "a marker is missing": data[:first] + data[first + 2 :],
        "two markers changed places": data[: first + 1] + b"\xd1" + data[first + 2 :],
        "no end": data[:-2],
        "more after the end": data + data[scan:],
        "progressive": progressive.getvalue(),
        "a rare sampling": marked("411", 1),
        "a scan that is longer than the file": with_scan_length(data, 0xFFFF),
        "another coding": arithmetic,
    }.items():
        odd_frame = read_frame(odd)
        assert cut([odd, data], [odd_frame, frame], [box, box])[0] is None, name
        assert_same(data, box, cut([odd, data], [odd_frame, frame], [box, box])[1])
    assert cut([data], [None], [box]) == [None]
    assert cut([data], [frame], [None]) == [None]
    assert cut([data], [frame], [Box(0, 0, HEIGHT, WIDTH, False)]) == [None]
    assert cut([], [], []) == []


@given(st.data())
def test_a_table_that_lies_changes_no_pixel(data: st.DataObject) -> None:
    right = marked("420", 1, True)
    frame = read_frame(right)
    lying = bytearray(right)
    for _ in range(data.draw(st.integers(1, 3))):
        lying[data.draw(st.integers(20, frame.table + frame.grid[0] * frame.grid[1] - 1))] = data.draw(st.integers(0, 255))
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 60))
    box = Box(data.draw(st.integers(0, HEIGHT - height)), data.draw(st.integers(0, WIDTH - width)), height, width, False)
    whole = simplejpeg.decode_jpeg(right, "RGB")
    found = read_frame(bytes(lying))
    if found is None or (found.height, found.width) != (HEIGHT, WIDTH):
        return
    (piece,) = cut([bytes(lying)], [found], [box])
    pixels = None if piece is None else piece.decode(box)
    if pixels is not None:
        np.testing.assert_array_equal(pixels, whole[box.top : box.bottom, box.left : box.right])


def lying(right: bytes) -> bytes:
    """With a table that joins the first two segments and divides the last one, so that their number and sum are right."""
    frame = read_frame(right)
    first, last = frame.table, frame.table + frame.grid[0] * frame.grid[1] - 1
    table = list(right[first : last + 1])
    table = [table[0] + table[1], *table[2:-1], table[-1] - 2, 2]
    return right[:first] + bytes(table) + right[last + 1 :]


def test_a_table_that_is_off_by_a_segment_is_not_believed() -> None:
    right = marked("420", 1, True)
    box = Box(40, 40, 20, 20, False)
    (piece, other) = pieces_of([lying(right), right], [box, box])
    assert piece is None
    assert_same(right, box, other)


def test_what_somebody_put_behind_the_table_leaves_the_markers_to_be_counted() -> None:
    right = marked("420", 1, True)
    scan = right.index(b"\xff\xda")
    moved = right[:33] + bytes([right[33] + 2]) + right[34:]  # where the table says that the frame is
    for changed in (right[:scan] + b"\xff\xfe\0\x08secret" + right[scan:], moved):
        box = Box(40, 40, 20, 20, False)
        assert not read_frame(changed).table
        assert_same(changed, box, pieces_of([changed], [box])[0])


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_border_in_front_of_the_crop_that_is_off_by_a_byte_is_not_believed(shift: int) -> None:
    right = marked("420", 1, True)
    frame = read_frame(right)
    rows, columns = frame.grid
    lengths = segment_lengths(right, frame).tolist()
    tried = 0
    for number in range(columns, rows * columns - 1):
        row, column = divmod(number + 1, columns)
        moved = [*lengths[:number], lengths[number] - shift, lengths[number + 1] + shift, *lengths[number + 2 :]]
        if column + 1 < columns and max(moved) < 256:
            tried += 1
            liar = right[: frame.table] + bytes(moved) + right[frame.table + len(moved) :]
            box = Box(row * 16 + 1, column * 16 + 1, 2, 2, False)
            assert pieces_of([liar], [box]) == [None]
    assert tried > 10


def test_good_pictures_are_cut_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one they are cut as well, only slower: what is wrong with the places of the later ones would not be seen."""
    monkeypatch.setattr("pipeline.stream.decode.segments._one_by_one", lambda *_: pytest.fail("one by one"))
    pictures = [marked(sampling, interval, table) for sampling in SAMPLINGS for interval in (1, 2) for table in (True, False)]
    boxes = [Box(10 + number, 20 - number, 30, 40, False) for number in range(len(pictures))]
    for picture, box, piece in zip(pictures, boxes, pieces_of(pictures, boxes), strict=True):
        assert_same(picture, box, piece)


def test_a_table_of_another_kind_of_frame_is_not_believed() -> None:
    right = marked("420", 1, True)
    place = read_frame(right).place - 5
    progressive, twelve_bits = right[: place + 1] + b"\xc2" + right[place + 2 :], right[: place + 4] + b"\x0c" + right[place + 5 :]
    assert read_frame(right).table
    assert not read_frame(progressive).table
    assert read_frame(twelve_bits) is None


def test_a_byte_that_looks_like_the_end_of_a_marker_is_none() -> None:
    right = marked("420", 1, True)
    frame = read_frame(right)
    lengths = segment_lengths(right, frame).tolist()
    rows, columns = frame.grid
    found, start = 0, frame.scan
    for number, length in enumerate(lengths[:-1]):
        for place in range(start + 1, start + length - 2):
            if right[place] == number & 7 | 0xD0 and right[place - 1] != 0xFF and lengths[number + 1] + length < 256:
                found += 1
                head = place + 1 - start
                table = bytes([*lengths[:number], head, length - head + lengths[number + 1], *lengths[number + 2 :]])
                liar = right[: frame.table] + table + right[frame.table + rows * columns :]
                box = Box(number // columns * 16 + 4, number % columns * 16 + 4, 4, 4, False)
                assert pieces_of([liar], [box]) == [None]
        start += length
    assert found > 0


@pytest.mark.parametrize("width", [64, 96, 144])
def test_a_frame_that_is_not_the_picture_s_own_gives_no_pixels_of_another_size(width: int) -> None:
    """A comment that looks like a frame of 64 x 64, and a table that points at it."""
    right, real = marked("420", 1, True, 64, 64), marked("420", 1, True, 16, width)
    table, frame = right[20 : 20 + 20 + 16], right[right.index(b"\xff\xc0") :][:19]
    end = 20 + len(table)
    header = real[read_frame(real).table + read_frame(real).grid[0] * read_frame(real).grid[1] : read_frame(real).scan]
    scan = right[read_frame(right).scan :]
    places = (4 + 5).to_bytes(2, "big") + (4 + len(frame) + len(header)).to_bytes(2, "big")
    hostile = right[:20] + table[:12] + places + table[16:] + b"\xff\xfe" + (2 + len(frame)).to_bytes(2, "big") + frame + header + scan
    found = read_frame(hostile)
    assert found.place == end + 9
    assert found.table
    plain = hostile.replace(b"SEGMENTS", b"SEGMENTZ")
    for key in range(20):
        out: Any = [np.zeros((30, 30, 3), np.uint8) for _ in range(2)]
        reasons = make_decoder().crops([hostile, plain], out, RULE, [key, key])
        assert reasons[0] == reasons[1]
        np.testing.assert_array_equal(out[0], out[1])


def test_a_hostile_header_is_its_own_picture_s_error_alone() -> None:
    right = marked("420", 1, True)
    out: Any = [np.zeros((24, 24, 3), np.uint8) for _ in range(3)]
    hostile = with_scan_length(marked("420", 1), 0xFFFF)
    reasons = make_decoder().crops([right, hostile, right], out, RULE, [1, 1, 1])
    assert reasons[0] is None
    assert reasons[1] is not None
    assert reasons[2] is None
    assert out[0].any()
    np.testing.assert_array_equal(out[0], out[2])
    assert not out[1].any()


def test_nothing_is_counted_in_a_picture_over_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.stream.decode.segments.segment_lengths", lambda *_: pytest.fail("counted"))
    (reason,) = make_decoder().crops([marked("420", 1)], [np.zeros((24, 24, 3), np.uint8)], CropRule("random", False, 100), [1])
    assert reason is not None
    assert "more than max_pixels, 100" in reason


def test_a_picture_whose_table_lies_is_decoded_whole_beside_others_that_are_cut() -> None:
    right = marked("420", 1, True)
    liar = lying(right)
    decoder, keys = make_decoder(), [3, 4, 5, 6]
    out: Any = [np.zeros((24, 24, 3), np.uint8) for _ in keys]
    assert decoder.crops([right, liar, right, liar], out, RULE, keys) == [None] * 4
    plain = marked("420", 0)
    for key, place in zip(keys, out, strict=True):
        expected = np.zeros((24, 24, 3), np.uint8)
        assert decoder.crops([plain], [expected], RULE, [key]) == [None]
        np.testing.assert_array_equal(place, expected)


def test_a_cut_picture_over_the_limit_is_refused() -> None:
    (reason,) = make_decoder().crops([marked("420", 1, True)], [np.zeros((8, 8, 3), np.uint8)], CropRule("random", True, 100), [1])
    assert reason is not None
    assert "more than max_pixels, 100" in reason
