"""Decoding only what a crop needs of a JPEG, without another library: the rows down to the crop's last one.

libjpeg-turbo stops where the header says that the picture ends, so the height in a copy of the header is set to the
crop's lower edge, plus the rows that smooth upsampling of the colours looks at. The crop's pixels are those of the
whole decode to the bit. The rows below aren't decoded, so damage there isn't seen, nor damage in the crop that shows
only further down. Both were ruled out before: the sample's digest is proven, and the builder decodes every picture whole.
"""

from __future__ import annotations

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from pipeline.stream.buffers import Scratch
from pipeline.stream.decode.crop import Box
from shards.dataset.jpeg_header import Frame
from shards.dataset.pixels import read_rgb

_EARLY_END = "extraneous bytes before marker 0xd9"  # libjpeg's words for data between the last row and the end marker
_pixels = Scratch()


def decode_whole(data: bytes | bytearray | memoryview, height: int, width: int) -> NDArray[np.uint8]:
    """All pixels of a JPEG that libjpeg-turbo reads without a warning.

    Returns:
        uint8 (height, width, 3), RGB, in memory that the calling thread's next call writes over.

    Raises:
        ValueError: libjpeg's first error or warning, any other error of the decoder, or another size.
    """
    memory = _pixels.take((height, width, 3))
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", buffer=memory)
    except ValueError:
        raise
    except Exception as error:  # of any other type, for a file that it can't cope with
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if pixels.shape != (height, width, 3):
        raise ValueError(f"{pixels.shape[1]} x {pixels.shape[0]} pixels instead of {width} x {height}")
    return pixels


def decode(data: bytes, max_pixels: int, turn: bool = True) -> NDArray[np.uint8]:
    """All pixels of a picture in any format, by the rule of `shards.dataset.pixels`.

    Args:
        data: bytes of a JPEG, PNG, WebP, BMP, TIFF, GIF or PPM.
        max_pixels: most pixels that a picture may have; larger ones are refused before they are decoded.
        turn: turn the picture upright as its orientation says; False leaves it as it is stored.

    Returns:
        uint8 (height, width, 3), RGB, in memory that the calling thread's next call writes over: copy what is kept.

    Raises:
        PictureRejected: not a picture, damaged, too large, or values without an agreed range.
    """
    return read_rgb(data, max_pixels, turn, _pixels.take)


def decode_rows(data: bytes | memoryview, frame: Frame, box: Box) -> NDArray[np.uint8] | None:
    """The pixels of a crop, decoding no row far below it.

    Args:
        data: bytes of the JPEG; in writable memory the height in its header is changed during the call.
        frame: header of the JPEG, from `read_frame`.
        box: rectangle of the crop.

    Returns:
        uint8 (box.height, box.width, 3), RGB, in memory that the calling thread's next call writes over; None if libjpeg-turbo warned
        of the rows that were decoded.
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
        # simplejpeg raises the first warning, and this one comes after the last row: the pixels are there, without a fault
        if not str(error).endswith(_EARLY_END):
            raise
    finally:
        place[:] = frame.height.to_bytes(2, "big")
    return _pixels.take((rows, frame.width, 3))
