"""Headers of JPEGs: the facts that decoding a part needs, and a table of coded segments that the builder stores there.

The segment between two restart markers is coded independently, so a decoder may skip segments if it knows where they begin. Finding every
marker costs a tenth of decoding the picture, and reading the header as much again. Pictures that the builder encodes therefore have, right
behind their JFIF segment, an application segment of this project's own, which other readers skip:

    marker 0xFFE9, length            2 + 2 bytes, as in every segment
    "SEGMENTS"                       8 bytes
    frame, scan                      2 + 2 bytes: from the end of this segment to the frame's height, and to the first coded byte
    block height, width, interval    1 + 1 + 2 bytes: of a coded block (MCU) in pixels, and blocks from a restart marker to the next
    lengths                          1 or 2 bytes for each segment in turn, its restart marker (at last the end marker) included

All numbers are big-endian. A reader trusts the table only if the coded bytes begin right behind a scan's header, the lengths add up to the
rest of the file, and each segment that it uses lies between markers with the expected numbers.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.dataset.jpeg_segments import BARE
from shards.dataset.orientation import UPRIGHT, orientation_in

_SOF_PROGRESSIVE, _DHT, _JPG, _DAC, _EOI, _SOS, _DRI, _APP1, _TABLE = 0xC2, 0xC4, 0xC8, 0xCC, 0xD9, 0xDA, 0xDD, 0xE1, 0xE9
_FRAMES = frozenset(range(0xC0, 0xD0)) - {_DHT, _JPG, _DAC}
_CONTEXT = {1: 0, 2: 2}  # rows below that the upsampling of colours stored at full and at half height reads
_SEGMENT = struct.Struct(">BBH").unpack_from  # marker and length
_FRAME = struct.Struct(">BHH").unpack_from  # bits, height and width
_SIZE = struct.Struct(">HH")  # height and width
_NUMBER = struct.Struct(">H").unpack_from
_TABLE_PLACE = 20  # behind a JFIF segment
_TABLE_HEAD = struct.Struct(">BBH8sHHBBH")
_NAME = b"SEGMENTS"
_LONGEST = 65535 + 2  # most bytes of a segment of the header
_ENTRIES = frozenset({1, 2})  # bytes of a length
_COLOUR_SCAN = b"\xff\xda\0\x0c\x03"  # begins a scan of three colours
_SCAN_HEADER = 14  # bytes, marker included
_JFIF = b"\xff\xe0\0\x10"
_BASELINE = (b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x08")  # frames of three colours of 8 bits
MARKER = 2
"""Bytes of a marker."""
_ENDS_SEGMENT = np.zeros(256, np.bool_)
_ENDS_SEGMENT[[*range(0xD0, 0xD8), _EOI]] = True


class Frame(NamedTuple):
    """The header of a plain JPEG (8 bits; grey or three colours; Huffman-coded).

    A JPEG with restart markers, of `grid` (2, 3); `interval` is 2, because a marker follows every second block. A cell is one segment:

        SOI JFIF .. [table: lengths of the 6 segments] .. [place: height, width] .. SOS header [scan: first coded byte]
        | block block RST0 | block block RST1 | block block RST2 |
        | block block RST3 | block block RST4 | block block EOI  |

    Attributes:
        height: height in pixels.
        width: width in pixels.
        place: offset of the height in the file, in bytes; the width follows it.
        context: rows below a crop that the crop's last rows depend on; None where decoding can't stop at a row (several scans, restart
            markers, rare samplings).
        block: height and width in pixels of a block (MCU), the unit of coding.
        interval: blocks from one restart marker to the next; 0 where the file can't be cut at the markers.
        grid: rows and columns of segments; (0, 0) where segments do not form a grid.
        scan: offset of the first coded byte in the file, where `interval` is not 0.
        table: offset of the table of segment lengths in the file; 0 without a table.
        entry: bytes per length in the table.
        orientation: orientation of the picture, 1 to 8; height and width are those of the stored picture.
    """

    height: int
    width: int
    place: int
    context: int | None
    block: tuple[int, int]
    interval: int = 0
    grid: tuple[int, int] = (0, 0)
    scan: int = 0
    table: int = 0
    entry: int = 0
    orientation: int = UPRIGHT


def read_frame(data: bytes | memoryview) -> Frame | None:
    """Reads the header up to the first scan, in a few microseconds.

    Returns:
        The frame; None for anything unusual or damaged, whose whole file must be decoded to see what is wrong.
    """
    if data[:2] != b"\xff\xd8":
        return None
    return _from_table(data) or _from_segments(data)


def _from_table(data: bytes | memoryview) -> Frame | None:
    """Reads the frame from a table of segments; None without a table, or where the table contradicts the file."""
    try:
        first, kind, length, name, frame, scan, high, wide, interval = _TABLE_HEAD.unpack_from(data, _TABLE_PLACE)
        if name != _NAME or kind != _TABLE or first != 0xFF:
            return None
        end, table = _TABLE_PLACE + MARKER + length, _TABLE_PLACE + _TABLE_HEAD.size
        place, scan = end + frame, end + scan
        height, width = _SIZE.unpack_from(data, place)
        rows, columns = _grid(height, width, (high, wide), interval)
        entry, rest = divmod(end - table, rows * columns)
    except (struct.error, ZeroDivisionError):
        return None
    inside = place + _SIZE.size <= scan - _SCAN_HEADER and scan < len(data)
    if not inside or rest or entry not in _ENTRIES:
        return None
    if data[place - 5 : place] not in _BASELINE or data[scan - _SCAN_HEADER : scan - _SCAN_HEADER + 5] != _COLOUR_SCAN:
        return None  # another program has inserted bytes
    return Frame(height, width, place, None, (high, wide), interval, (rows, columns), scan, table, entry)


def _grid(height: int, width: int, block: tuple[int, int], interval: int) -> tuple[int, int]:
    """Returns rows and columns of the segments of a picture; (0, 0) where a row of blocks ends between two markers."""
    columns, uneven = divmod(-(-width // block[1]), interval)
    return (0, 0) if uneven else (-(-height // block[0]), columns)


def _from_segments(data: bytes | memoryview) -> Frame | None:
    """Reads the frame from the segments of the header, one after the other."""
    frame: Frame | None = None
    metadata: list[bytes] = []
    components, interval = 0, 0
    place, end = 2, len(data) - 24  # what follows a marker can be read without asking for each byte
    while place < end:
        first, kind, length = _SEGMENT(data, place)
        if first != 0xFF or kind in BARE:
            return None
        if kind in _FRAMES:
            components = data[place + 9]
            if frame is not None or kind > _SOF_PROGRESSIVE or length != 8 + 3 * components:
                return None
            frame = _frame(data, place, components)
            if frame is None:
                return None
        elif kind == _SOS:
            if frame is not None and metadata:
                frame = frame._replace(orientation=orientation_in(metadata))
            return frame and _with_scan(frame, interval, place + 2 + length, several=data[place + 4] != components)
        elif kind == _DRI:
            (interval,) = _NUMBER(data, place + 4)
        elif kind == _APP1:
            metadata.append(bytes(data[place + 4 : place + 2 + length]))
        place += 2 + length
    return None


def _frame(data: bytes | memoryview, place: int, components: int) -> Frame | None:
    """Reads the frame whose marker is at the offset `place`."""
    precision, height, width = _FRAME(data, place + 4)
    if precision != 8 or components not in {1, 3} or not height or not width:  # the height may follow the picture; no photograph's does
        return None
    tallest = widest = 1  # one colour alone is never sampled less than itself
    if components == 3:
        samplings = data[place + 11], data[place + 14], data[place + 17]
        tallest, widest = max(each & 15 for each in samplings), max(each >> 4 for each in samplings)
    context = None if data[place + 1] == _SOF_PROGRESSIVE else _CONTEXT.get(tallest)
    return Frame(height, width, place + 5, context, (8 * tallest, 8 * widest))


def _with_scan(frame: Frame, interval: int, scan: int, several: bool) -> Frame:
    """Adds the first scan to a frame; `several` scans may follow."""
    if not several and not interval:
        return frame
    whole = frame._replace(context=None)  # markers after the last row would look like damage
    # upsampling looks at the next pixel at most, unless sampling is a rare one
    if several or frame.context is None or frame.block[1] not in {8, 16}:
        return whole
    return whole._replace(interval=interval, grid=_grid(frame.height, frame.width, frame.block, interval), scan=scan)


def segment_lengths(data: bytes | memoryview, frame: Frame) -> NDArray[np.unsignedinteger[Any]] | None:
    """Returns the bytes of each coded segment, with the marker that ends it.

    Args:
        data: bytes of the JPEG.
        frame: frame from `read_frame`, with a grid of segments.

    Returns:
        (rows * columns,), read from the table or counted; None where markers are missing or out of order.
    """
    rows, columns = frame.grid
    if frame.table:
        return np.frombuffer(data, ">u1" if frame.entry == 1 else ">u2", rows * columns, frame.table)
    if len(data) - frame.scan < rows * columns * MARKER:
        return None  # too short for that many markers, or the scan begins behind the end
    coded = np.frombuffer(data, np.uint8, offset=frame.scan)
    escapes = (coded[:-1] == 0xFF).nonzero()[0]
    kinds = coded[1:].take(escapes)
    ending = _ENDS_SEGMENT.take(kinds)
    ends = escapes.compress(ending) + MARKER
    if len(ends) != rows * columns or not np.array_equal(kinds.compress(ending), end_markers(np.array([len(ends)]))):
        return None
    lengths: NDArray[np.unsignedinteger[Any]] = np.diff(ends, prepend=0).astype(np.uint32)
    return lengths


def end_markers(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Returns the second bytes of the markers that end the segments of JPEGs.

    Args:
        counts: int64 (n,), number of segments of each JPEG.

    Returns:
        uint8 (sum of counts,): 0xD0 to 0xD7 in turn, and 0xD9 for the last of each.
    """
    ends = counts.cumsum()
    kinds = np.arange(ends[-1]).astype(np.uint8)  # where the count runs over does not matter, since 8 divides 256
    kinds -= (ends - counts).astype(np.uint8).repeat(counts)
    kinds &= 7
    kinds |= 0xD0
    kinds[ends - 1] = _EOI
    return kinds


def with_table(data: bytes) -> bytes:
    """Adds the table of segments to a JPEG that has a JFIF segment, restart markers in a grid, and few enough segments for one table.

    Any other JPEG is returned unchanged.
    """
    frame = read_frame(data)
    lengths = segment_lengths(data, frame) if frame and frame.grid != (0, 0) and not frame.table else None
    if frame is None or lengths is None or data[2:6] != _JFIF:
        return data
    entries = lengths.astype(">u1" if lengths.max() < 256 else ">u2").tobytes()
    size = _TABLE_HEAD.size + len(entries)
    places = frame.place - _TABLE_PLACE, frame.scan - _TABLE_PLACE
    if size > _LONGEST or max(lengths.max(), *places) > 65535:
        return data
    head = _TABLE_HEAD.pack(0xFF, _TABLE, size - MARKER, _NAME, *places, *frame.block, frame.interval)
    tabled = data[:_TABLE_PLACE] + head + entries + data[_TABLE_PLACE:]
    return tabled if _from_table(tabled) else data  # a grey picture would not be recognised again by so few bytes
