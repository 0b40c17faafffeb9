"""Decoding only what a crop needs of a JPEG, without another library: the rows down to the crop's last one.

libjpeg-turbo stops where the header says that the picture ends, so the height in a copy of the header is set to the
crop's lower edge, plus the rows that smooth upsampling of the colours looks at. The crop's pixels are those of the
whole decode to the bit. What lies below isn't decoded, so damage there isn't seen, nor damage in the crop that shows
only further down: the sample's digest has vouched for the bytes, and the builder decodes every picture whole.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from pipeline.stream.crop import Box
from pipeline.stream.scratch import Scratch

_SOF_PROGRESSIVE, _DHT, _JPG, _DAC, _SOS, _DRI = 0xC2, 0xC4, 0xC8, 0xCC, 0xDA, 0xDD
_FRAMES = frozenset(range(0xC0, 0xD0)) - {_DHT, _JPG, _DAC}
_BARE = frozenset({0x00, 0x01, 0xFF, *range(0xD0, 0xDA)})  # not followed by a length: none of them belongs before the scan
_CONTEXT = {1: 0, 2: 2}  # rows below that the upsampling of colours stored at full and at half height reads
_EARLY_END = "extraneous bytes before marker 0xd9"  # libjpeg's words for data between the last row and the end marker
_SEGMENT = struct.Struct(">BBH").unpack_from  # marker and length
_FRAME = struct.Struct(">BHH").unpack_from  # bits, height and width
_pixels = Scratch()


class Frame(NamedTuple):
    """What the header of a plain JPEG (8 bits; grey or three colours; Huffman-coded) says.

    Attributes:
        height: in pixels.
        width: in pixels.
        place: of the height in the file, in bytes.
        context: rows below a crop that its own last rows depend on, or None where the file can't be decoded in part (several scans, restart
            markers, rare samplings).
    """

    height: int
    width: int
    place: int
    context: int | None


def read_frame(data: bytes | memoryview) -> Frame | None:
    """Reads the header up to the first scan, in a few microseconds.

    Returns:
        None for anything unusual, damage included: whoever decodes the whole file then says what is wrong with it.
    """
    if data[:2] != b"\xff\xd8":
        return None
    frame: Frame | None = None
    components, whole = 0, False
    place, end = 2, len(data) - 24  # what follows a marker can be read without asking for each byte
    while place < end:
        first, kind, length = _SEGMENT(data, place)
        if first != 0xFF or kind in _BARE:
            return None
        if kind in _FRAMES:
            components = data[place + 9]
            if frame is not None or kind > _SOF_PROGRESSIVE or length != 8 + 3 * components:
                return None
            frame = _frame(data, place, components)
            if frame is None:
                return None
        elif kind == _SOS:
            whole = whole or data[place + 4] != components
            return frame._replace(context=None) if frame and whole else frame
        elif kind == _DRI:
            whole = data[place + 4 : place + 6] != b"\0\0"  # restart markers after the last row would look like damage
        place += 2 + length
    return None


def _frame(data: bytes | memoryview, place: int, components: int) -> Frame | None:
    """The frame whose marker is at a place."""
    precision, height, width = _FRAME(data, place + 4)
    if precision != 8 or components not in {1, 3} or not height or not width:  # the height may follow the picture; no photograph's does
        return None
    # one colour alone is never sampled less than itself
    tallest = max(data[place + 11] & 15, data[place + 14] & 15, data[place + 17] & 15) if components == 3 else 1
    context = None if data[place + 1] == _SOF_PROGRESSIVE else _CONTEXT.get(tallest)
    return Frame(height, width, place + 5, context)


def decode_whole(data: bytes | bytearray | memoryview, height: int, width: int) -> NDArray[np.uint8]:
    """All pixels of a JPEG that libjpeg-turbo reads without a warning.

    Returns:
        uint8 (height, width, 3), RGB, in memory that the calling thread's next call writes over.

    Raises:
        ValueError: libjpeg's first error or warning.
    """
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", buffer=_pixels.take((height, width, 3)))
    return pixels


def decode_rows(data: bytes | memoryview, frame: Frame, box: Box) -> NDArray[np.uint8] | None:
    """The pixels of a crop, decoding no row far below it.

    Args:
        data: of the JPEG; its height is changed for the time of the call where it may be written.
        frame: of `read_frame`.
        box: the crop.

    Returns:
        uint8 (box.height, box.width, 3), RGB, in memory that the calling thread's next call writes over; None when libjpeg-turbo had
        something to say about the rows that were decoded.
    """
    rows = frame.height if frame.context is None else min(frame.height, box.bottom + frame.context)
    try:
        pixels = decode_whole(data, rows, frame.width) if rows == frame.height else _decode_top(data, frame, rows)
    except ValueError:
        return None
    return pixels[box.top : box.bottom, box.left : box.right]


def _decode_top(data: bytes | memoryview, frame: Frame, rows: int) -> NDArray[np.uint8]:
    """The first rows, uint8 (rows, width, 3); ValueError as `decode_whole`."""
    shortened = memoryview(bytearray(data)) if isinstance(data, bytes) or data.readonly else data
    place = shortened[frame.place : frame.place + 2]
    place[:] = rows.to_bytes(2, "big")
    try:
        return decode_whole(shortened, rows, frame.width)
    except ValueError as error:
        # the first warning is the one that is told, and it comes after the last row: the pixels are there, without a fault
        if not str(error).endswith(_EARLY_END):
            raise
    finally:
        place[:] = frame.height.to_bytes(2, "big")
    return _pixels.take((rows, frame.width, 3))
