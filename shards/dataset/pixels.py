"""The one rule for which pictures can be read, and how each becomes 8-bit RGB. The builder, `verify` and the training all ask here.

A picture can be read if one of the libraries below decodes it whole, without losing pixels, and its values have an agreed range. The table
of formats and modes is in docs/shards.md. A decoder may raise an error of any type for a damaged file; each becomes a `PictureRejected`
with the reason, so that no picture ends a build or a run.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from shards.dataset.jpeg_header import read_frame
from shards.dataset.jpeg_segments import SOS, segments_of
from shards.dataset.lookalike import kind_of
from shards.dataset.orientation import UPRIGHT, orientation_of, turned
from shards.errors import ShardError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""Pillow's names of the formats that are stored and trained on; a JPEG of several pictures (MPO) opens as JPEG."""
LOST_PIXELS = re.compile(
    "bad Huffman code|bad arithmetic code|premature end of data|instead of RST"
)  # warnings of libjpeg that mean lost pixels
_ADOBE, _COMMENT = 0xEE, 0xFE  # JPEG markers
_ADDRESS = re.compile(r" ?(?:at )?0x[0-9a-fA-F]+")  # of an object in memory: another one in every run
_LONGEST_REASON = 200
MOST_PIXELS = 100_000_000
"""Most pixels of a picture where nothing else is set."""
_SPARE = 1 << 28  # bytes that a machine has which is not out of memory
_ALWAYS = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})  # Pillow's modes whose values always have a range


class PictureRejected(ShardError):
    """The reason why a picture can't be read or stored; the caller knows the picture's name."""


def read_rgb(
    data: bytes, max_pixels: int, turn: bool = True, memory: Callable[[tuple[int, int, int]], NDArray[np.uint8]] | None = None
) -> NDArray[np.uint8]:
    """All pixels of a picture.

    Args:
        data: bytes of a picture in one of `FORMATS`, which is read from the bytes.
        max_pixels: most pixels that a picture may have; a larger one is refused before it is decoded.
        turn: turn the picture upright as its orientation says; False leaves it as it is stored.
        memory: function that gives memory of a shape to decode a JPEG into; None takes new memory.

    Returns:
        uint8 (height, width, 3), RGB; perhaps a view of the memory.

    Raises:
        PictureRejected: empty, no picture, damaged, too large, or values without an agreed range.
    """
    try:
        with opened(data, max_pixels) as image:
            shape = image.height, image.width, 3
            pixels = decode_jpeg(data, image, buffer=memory(shape) if memory else None) if is_jpeg(image) else None
            if pixels is None:
                image.load()
                pixels = np.asarray(to_rgb(image))
            return turned(pixels, orientation_of(data, image) if turn else UPRIGHT)
    except PictureRejected:
        raise
    except Exception as error:  # decoders raise errors of many types for damaged files: OSError, SyntaxError, struct.error, IndexError, ...
        raise rejection(error) from error


def check_header(data: bytes, max_pixels: int) -> None:
    """Refuses a picture that its header alone shows to be unreadable: its format, its size, or values without an agreed range. A few
    microseconds for a JPEG.

    Args:
        data: bytes of the picture.
        max_pixels: most pixels that a picture may have.

    Raises:
        PictureRejected: as `read_rgb`.
    """
    frame = read_frame(data)
    if frame is not None and frame.height * frame.width <= max_pixels:
        return
    try:
        with opened(data, max_pixels) as image:
            if image.mode not in _ALWAYS:
                to_rgb(image)  # an agreed range shows in the values alone
    except PictureRejected:
        raise
    except Exception as error:
        raise rejection(error) from error


def opened(data: bytes, max_pixels: int, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Opens a picture, without decoding it.

    Raises:
        PictureRejected: empty, too large, or in no format that is known here. Damage raises errors of any type.
    """
    if not data:
        raise PictureRejected("empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError:
        raise PictureRejected(kind_of(data) or "not in a picture format that is known here") from None
    if image.width * image.height > max_pixels:
        raise PictureRejected(f"{image.width} x {image.height} pixels are more than max_pixels, {max_pixels}")
    return image


def rejection(error: Exception) -> PictureRejected:
    """The reason that an error gives for a picture: the same text in every run.

    Args:
        error: error that a decoder raised for the picture.

    Raises:
        MemoryError: this machine is out of memory, which is no fault of the picture.
    """
    if isinstance(error, Image.DecompressionBombError):
        return PictureRejected("many times the pixels of max_pixels")
    if isinstance(error, MemoryError):  # damaged files claim absurd sizes too
        np.empty(_SPARE, np.uint8)
    text = _ADDRESS.sub("", " ".join(str(error).split()))
    return PictureRejected(f"can't be decoded: {type(error).__name__}{f': {text}' if text else ''}"[:_LONGEST_REASON])


def is_jpeg(image: Image.Image) -> bool:
    """True for a JPEG, also one of several pictures."""
    return image.format in {"JPEG", "MPO"}


def decode_jpeg(data: bytes, image: Image.Image, **options: Any) -> NDArray[np.uint8] | None:
    """Decodes a JPEG with libjpeg-turbo.

    Args:
        data: bytes of the JPEG.
        image: the same JPEG, opened by Pillow.
        options: options of `simplejpeg.decode_jpeg`.

    Returns:
        uint8 (height, width, 3), RGB; None for a JPEG of other colours, or unusual in a harmless way, which Pillow decodes.

    Raises:
        Exception: pixels are lost.
    """
    if image.mode not in {"RGB", "L"}:
        refuse_lost_pixels(data)
        return None
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", **options)
    except Exception as error:
        refuse_lost_pixels(data, error)
        return None
    return pixels


def refuse_lost_pixels(data: bytes, warning: Exception | None = None) -> None:
    """Raises for a JPEG that has lost pixels, because Pillow would silently show grey or shifted blocks.

    Args:
        data: bytes of the JPEG.
        warning: first warning of libjpeg, if it is known; a harmless one about the header may hide one about pixels.

    Raises:
        Exception: libjpeg's text about the lost pixels.
    """
    if warning is not None and LOST_PIXELS.search(str(warning)):
        raise warning
    try:
        simplejpeg.decode_jpeg(_bare(data), "RGB")
    except Exception as error:
        if LOST_PIXELS.search(str(error)):
            raise


def _bare(data: bytes) -> bytes:
    """Removes from a JPEG's header all that decoding does not need: comments, stray bytes, and application data except Adobe's."""
    kept = bytearray(data[:2])
    for marker, place, end in segments_of(data):
        if marker == SOS:
            return bytes(kept + data[place:])
        if marker == _ADOBE or not (0xE0 <= marker <= 0xEF or marker == _COMMENT):
            kept += data[place:end]
    return data


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts a picture to 8-bit RGB. Transparent parts become white, 16-bit values are scaled.

    Raises:
        PictureRejected: the values have no agreed range (32-bit integers, floating point).
    """
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise PictureRejected("32-bit values have no agreed range")
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "F":
        raise PictureRejected("floating-point values have no agreed range")
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
