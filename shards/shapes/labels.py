"""Label pictures: the bytes of one PNG in, the numbers of its objects out, or the reason why it holds none."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import Any, Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from shards.counting import counted
from shards.dataset.lookalike import kind_of
from shards.dataset.pixels import PictureRejected, rejection

Void = int | Literal["auto"] | None
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = 33  # bytes of the signature and of the first chunk, with its digest
_GREY = 0
_COLOURS = {2: "RGB colours", 4: "grey with transparency", 6: "RGBA colours"}
_DAMAGED = "PNG cut short or damaged ({}). Copy it here again"


@dataclass(frozen=True)
class ShapeRules:
    """The label pictures that are read, and the objects that become shapes.

    Attributes:
        min_pixels: fewest pixels of an object that becomes a shape; 20 x 20, because a smaller outline that is pasted large is blocky.
        max_pixels: most pixels of a picture; a larger one is refused before it is decoded.
        max_bytes: most bytes of a file; a longer one is refused before it is read where the store tells its length.
        void: index of the pixels that belong to nothing; None for none; `auto` for 255, in a picture of 16 bits 65,535.
    """

    min_pixels: int = 400
    max_pixels: int = 40_000_000
    max_bytes: int = 100_000_000
    void: Void = "auto"


def read_labels(data: bytes, rules: ShapeRules) -> tuple[NDArray[np.unsignedinteger[Any]], int | None]:
    """Reads the indices of a palette PNG, or the values of a grey one.

    Args:
        data: bytes of the file.
        rules: limits, and the index of void pixels.

    Returns:
        uint8 or uint16 (H, W), 0 for background; and the index of void pixels, None where there is none.

    Raises:
        PictureRejected: no PNG, colours in place of indices, damaged, or too large.
    """
    if len(data) > rules.max_bytes:
        raise too_long(len(data), rules)
    if data[: len(_SIGNATURE)] != _SIGNATURE:
        raise PictureRejected(kind_of(data) or ("no PNG picture" if data else "empty file"))
    if len(data) < _HEADER or crc32(data[12:29]) != int.from_bytes(data[29:_HEADER]):
        raise PictureRejected(_DAMAGED.format("header"))
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    if colour in _COLOURS:
        raise PictureRejected(
            f"holds {_COLOURS[colour]}, not indices of objects. Take the original palette PNG, or save the indices as grey of 8 or 16 "
            "bits: programs that convert or resize a picture often turn its palette into colours"
        )
    if width * height > rules.max_pixels:
        raise PictureRejected(f"{width:,} x {height:,} pixels are more than --max-pixels, {rules.max_pixels:,}")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            image.verify()  # the digests of all chunks, which decoding does not look at
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            pixels = np.asarray(image)
    except UnidentifiedImageError as error:
        raise PictureRejected(_DAMAGED.format("a chunk before the pixels")) from error
    except Exception as error:  # Pillow raises errors of many types for damaged files
        raise PictureRejected(_DAMAGED.format(rejection(error))) from error
    wide = depth == 16
    labels: NDArray[np.unsignedinteger[Any]] = pixels.astype(np.uint16 if wide else np.uint8)
    if colour == _GREY and 1 < depth < 8:
        labels //= 255 // ((1 << depth) - 1)  # Pillow spreads grey of 2 and 4 bits over 0 to 255
    void = (65_535 if wide else 255) if rules.void == "auto" else rules.void
    return labels, void


def too_long(length: int, rules: ShapeRules) -> PictureRejected:
    """Makes the reason for a file that is longer than the limit."""
    return PictureRejected(f"{counted(length, 'byte is', 'bytes are')} more than --max-bytes, {rules.max_bytes:,}")
