"""Decoding only the rectangle of a crop of a JPEG with restart markers, by cutting a smaller JPEG out of its bytes.

A segment between two restart markers is coded by itself. So the segments that a crop touches, behind a header with their own size, are a
JPEG too, and neither the Huffman codes nor the pixels around the crop cost anything. The crop's pixels are those of the whole decode to the
bit, because the neighbours that smooth upsampling of the colours looks at are cut out with it. `python -m shards build` puts a marker
behind every block of the pictures that it encodes; any file whose markers divide its rows of blocks evenly can be cut. The other segments
aren't decoded, so damage there isn't seen. It was ruled out before: the sample's digest is proven, and the builder decodes every picture
whole.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.stream.decode.crop import Box
from pipeline.stream.decode.jpeg import decode_whole
from shards.dataset.jpeg_header import MARKER, Frame, end_markers, segment_lengths

_WORTH = 0.93  # largest fraction of the segments to cut: cutting costs about as much as decoding the rest
_FANCY = 5  # pixels: in a narrower JPEG libjpeg repeats the colours of every second one instead of interpolating
_put_size = struct.Struct(">HH").pack_into  # height and width


class Piece(NamedTuple):
    """A JPEG of the segments that a crop touches.

    Attributes:
        data: bytes of the piece.
        height: height of the piece in pixels.
        width: width of the piece in pixels.
        top: first row of the crop in the piece, in pixels.
        left: first column of the crop in the piece, in pixels.
    """

    data: memoryview
    height: int
    width: int
    top: int
    left: int

    def decode(self, box: Box) -> NDArray[np.uint8] | None:
        """The pixels of the crop that the piece was cut for.

        Returns:
            uint8 (box.height, box.width, 3), RGB, in memory that the calling thread's next decode writes over; None if libjpeg-turbo
            warned of the piece.
        """
        try:
            pixels = decode_whole(self.data, self.height, self.width)
        except ValueError:
            return None
        return pixels[self.top : self.top + box.height, self.left : self.left + box.width]


class _Window(NamedTuple):
    """The segments that a crop touches, of a picture's grid of segments.

    Attributes:
        data: bytes of the picture.
        frame: header of the picture.
        lengths: bytes of each segment, from `segment_lengths`.
        columns: segments in a row of the picture.
        top, bottom: first row of segments, and the row behind the last.
        left, right: first column of segments, and the column behind the last.
        height, width: size of the window in pixels.
        crop_top, crop_left: first row and column of the crop in the window, in pixels.
    """

    data: bytes | memoryview
    frame: Frame
    lengths: NDArray[np.unsignedinteger[Any]]
    columns: int
    top: int
    bottom: int
    left: int
    right: int
    height: int
    width: int
    crop_top: int
    crop_left: int


def cut(data: Sequence[bytes | memoryview], frames: Sequence[Frame | None], boxes: Sequence[Box | None]) -> list[Piece | None]:
    """Cuts the segments that crops touch out of their JPEGs; for many at once, which costs half as much as one by one.

    Args:
        data: bytes of the JPEGs.
        frames: headers of the JPEGs, from `read_frame`.
        boxes: rectangles of the crops.

    Returns:
        A piece for each JPEG; None for one that lacks the markers to cut it by, or that its crop touches nearly all of.
    """
    windows = [
        _window(each, frame, box) if frame is not None and frame.interval and box is not None else None
        for each, frame, box in zip(data, frames, boxes, strict=True)
    ]
    pieces = iter(_cut([window for window in windows if window is not None]))
    return [None if window is None else next(pieces) for window in windows]


def _window(data: bytes | memoryview, frame: Frame, box: Box) -> _Window | None:
    """The segments that a crop touches, or None if cutting them out is impossible or saves too little."""
    rows, columns = frame.grid
    height, width = frame.block[0], frame.block[1] * frame.interval
    # one pixel more on every side, since smooth upsampling looks at the colour of the next block where a crop ends with its own
    top, left = (box.top - 1) // height if box.top else 0, (box.left - 1) // width if box.left else 0
    bottom, right = min(rows, (box.top + box.height) // height + 1), min(columns, (box.left + box.width) // width + 1)
    if left and frame.width - left * width < _FANCY:
        left -= 1
    if not rows or (bottom - top) * (right - left) > _WORTH * rows * columns:
        return None
    lengths = segment_lengths(data, frame)
    if lengths is None:
        return None
    above, before = top * height, left * width
    # the last blocks are decoded, but only the pixels that the crop needs are made: a block may hold fewer than its size
    below = min(frame.height, box.bottom + 1)
    beyond = min(frame.width, max(box.right + 1, right * width - frame.block[1] + 1, before + _FANCY))
    size = below - above, beyond - before
    return _Window(data, frame, lengths, columns, top, bottom, left, right, *size, box.top - above, box.left - before)


def _cut(windows: Sequence[_Window]) -> list[Piece | None]:
    """The pieces of windows, one behind the other in memory; None for a window whose segments are not as long as the picture, or don't
    begin behind a marker and end with their own.

    Segments and coded bytes are counted on from one picture to the next. Of a picture of 3 x 4 segments behind one of 12, rows 1 to 2 and
    columns 2 to 3 are the segments 18, 19, 22 and 23: two runs of bytes, from 18's beginning to 19's end and from 22's to 23's.
    """
    if not windows:
        return []
    scans = np.array([window.frame.scan for window in windows])
    counts = np.array([len(window.lengths) for window in windows])
    behind = counts.cumsum()
    edges = np.zeros(behind[-1] + 1, np.int64)
    np.concatenate([window.lengths for window in windows]).cumsum(out=edges[1:])
    begins = edges.take(behind - counts)
    if edges.take(behind).tolist() != (begins + [len(window.data) for window in windows] - scans).tolist():
        return _one_by_one(windows)

    heights, widths, heads = _rows(windows)
    across = widths.repeat(heights)
    starts, ends = edges.take(heads), edges.take(heads + across)
    in_picture = (scans - begins).repeat(heights)
    firsts, lasts = (starts + in_picture).tolist(), (ends + in_picture).tolist()
    parts, fronts, row = list[bytes](), list[bytes](), 0
    for window, height in zip(windows, heights.tolist(), strict=True):
        whole, rows = memoryview(window.data), slice(row, row + height)
        # one after the other, since Python's garbage collector would look through a thousand slices of all
        runs = [whole[start:end] for start, end in zip(firsts[rows], lasts[rows], strict=True)]
        parts.append(b"".join([whole[: window.frame.scan], *runs]))
        fronts.append(b"".join([whole[start - MARKER : start] for start in firsts[rows]]))
        row += height
    joined, expected = bytearray().join(parts), end_markers(counts)
    front = np.frombuffer(b"".join(fronts), np.uint8).reshape(-1, MARKER)
    first = heads == (behind - counts).repeat(heights)  # of the picture: no marker is in front of it
    if not (first | (front[:, 0] == 0xFF) & (front[:, 1] == expected.take(heads - 1))).all():
        return _one_by_one(windows)

    # a segment's marker lies as far behind its run's beginning in the piece as in the picture
    sizes = ends - starts
    places = sizes.cumsum() - sizes + scans.cumsum().repeat(heights)
    segments = (heads - across.cumsum() + across).repeat(across)
    segments += np.arange(len(segments))
    markers = edges[1:].take(segments) + (places - starts - MARKER).repeat(across)
    coded = np.frombuffer(joined, np.uint8)
    numbers = coded[1:]
    if not ((coded.take(markers) == 0xFF) & (numbers.take(markers) == expected.take(segments))).all():
        return _one_by_one(windows)
    numbers[markers] = end_markers(heights * widths)  # a decoder expects the markers' numbers to begin at 0

    pieces, start = list[Piece | None](), 0
    stops = (np.add.reduceat(sizes, heights.cumsum() - heights).cumsum() + scans.cumsum()).tolist()
    view = memoryview(joined)
    for window, stop in zip(windows, stops, strict=True):
        _put_size(joined, start + window.frame.place, window.height, window.width)
        pieces.append(Piece(view[start:stop], window.height, window.width, window.crop_top, window.crop_left))
        start = stop
    return pieces


def _one_by_one(windows: Sequence[_Window]) -> list[Piece | None]:
    """The pieces of windows of which one can't be cut, cut one by one, so that the others are not decoded whole for it."""
    return [None] if len(windows) == 1 else [_cut([window])[0] for window in windows]


def _rows(windows: Sequence[_Window]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Heights and widths of the windows, and the first segment of each of their rows."""
    heights, widths, heads, first = list[int](), list[int](), list[int](), 0
    for window in windows:
        columns = window.columns
        heads.extend(range(first + window.top * columns + window.left, first + window.bottom * columns, columns))
        heights.append(window.bottom - window.top)
        widths.append(window.right - window.left)
        first += len(window.lengths)
    return np.array(heights), np.array(widths), np.array(heads)
