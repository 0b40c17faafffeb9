"""Rules that the builder and the decoder share: which JPEGs have lost pixels, and how any picture becomes RGB."""

from __future__ import annotations

import re

import numpy as np
import simplejpeg
from PIL import Image

from shards.errors import ShardError

LOST_PIXELS = re.compile("bad Huffman code|bad arithmetic code|premature end of data|instead of RST")  # libjpeg's words for lost pixels
_SOS, _ADOBE, _COMMENT = 0xDA, 0xEE, 0xFE  # JPEG markers


class PictureRejected(ShardError):
    """A picture that can't be stored. The message is the reason alone: the caller knows the name."""


def refuse_lost_pixels(data: bytes, warning: ValueError) -> None:
    """Raises for a JPEG that has lost pixels: Pillow would show them as grey or shifted blocks without a word.

    Args:
        data: of the JPEG.
        warning: libjpeg's first; a harmless one about the header may stand before the one that counts.

    Raises:
        ValueError: libjpeg's words for what is lost.
    """
    if LOST_PIXELS.search(str(warning)):
        raise warning
    try:
        simplejpeg.decode_jpeg(_bare(data), "RGB")
    except ValueError as error:
        if LOST_PIXELS.search(str(error)):
            raise


def _bare(data: bytes) -> bytes:
    """A JPEG without what a decoder can do without in its header: comments, application data but for Adobe's, stray bytes."""
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
    """Eight bits a colour, on white where a picture is transparent; 16-bit values are scaled.

    Raises:
        PictureRejected: values without an agreed range.
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
