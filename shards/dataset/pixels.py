"""Rules that the builder and the decoder share: which JPEGs have lost pixels, and how any picture becomes RGB."""

from __future__ import annotations

import re

import numpy as np
import simplejpeg
from PIL import Image

from shards.errors import ShardError

LOST_PIXELS = re.compile(
    "bad Huffman code|bad arithmetic code|premature end of data|instead of RST"
)  # warnings of libjpeg that mean lost pixels
_SOS, _ADOBE, _COMMENT = 0xDA, 0xEE, 0xFE  # JPEG markers


class PictureRejected(ShardError):
    """The reason why a picture can't be stored; the caller knows the picture's name."""


def refuse_lost_pixels(data: bytes, warning: ValueError) -> None:
    """Raises for a JPEG that has lost pixels, because Pillow would silently show grey or shifted blocks.

    Args:
        data: bytes of the JPEG.
        warning: first warning of libjpeg; a harmless one about the header may hide one about pixels.

    Raises:
        ValueError: libjpeg's text about the lost pixels.
    """
    if LOST_PIXELS.search(str(warning)):
        raise warning
    try:
        simplejpeg.decode_jpeg(_bare(data), "RGB")
    except ValueError as error:
        if LOST_PIXELS.search(str(error)):
            raise


def _bare(data: bytes) -> bytes:
    """Removes from a JPEG's header all that decoding does not need: comments, stray bytes, and application data except Adobe's."""
    kept, place = bytearray(data[:2]), 2
    while (place := data.find(b"\xff", place)) >= 0 and place + 4 <= len(data):
        marker = data[place + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD9:
            place += 1
            continue
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == _SOS:
            return bytes(kept + data[place:])
        if marker == _ADOBE or not (0xE0 <= marker <= 0xEF or marker == _COMMENT):
            kept += data[place:end]
        place = end
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
