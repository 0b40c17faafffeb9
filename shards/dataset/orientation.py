"""Orientation of pictures: cameras store a picture as their sensor lies, and note how it has to be turned to stand upright.

The note is the orientation tag (0x0112) of the EXIF data, or `tiff:Orientation` of the XMP data where EXIF has none: 1 for a picture that
stands upright as it is stored, 2 to 8 for the other turns and mirror images. A note that is damaged or out of range counts as 1. Pillow
turns TIFFs by itself when it decodes them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.dataset.jpeg_segments import segments_of

UPRIGHT = 1
"""Orientation of a picture that is stored as it is to be seen."""
_TAG = 0x0112
_TYPES = {3: "H", 4: "L"}  # SHORT and LONG, as some programs write the tag
_EXIF, _ENTRY, _INLINE = b"Exif\0\0", 12, 4
_ORDERS = {b"II": "<", b"MM": ">"}
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_APP1 = 0xE1  # marker of a JPEG's metadata


class Turn(NamedTuple):
    """The way from a stored picture to the upright one: rows and columns are swapped, then either is reversed."""

    swaps: bool
    reverses_rows: bool
    reverses_columns: bool


TURNS = {
    1: Turn(False, False, False),
    2: Turn(False, False, True),
    3: Turn(False, True, True),
    4: Turn(False, True, False),
    5: Turn(True, False, False),
    6: Turn(True, False, True),
    7: Turn(True, True, True),
    8: Turn(True, True, False),
}
"""Turn of each orientation."""


def turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turns a picture, or a part of one, upright.

    Args:
        pixels: uint8 (height, width, 3), as stored.
        orientation: orientation of the picture, 1 to 8.

    Returns:
        The upright pixels, contiguous; those that were given, where nothing is to be turned.
    """
    if orientation == UPRIGHT:
        return pixels
    turn = TURNS[orientation]
    if turn.swaps:
        pixels = pixels.swapaxes(0, 1)
    return np.ascontiguousarray(pixels[:: -1 if turn.reverses_rows else 1, :: -1 if turn.reverses_columns else 1])


def orientation_of(data: bytes, image: Image.Image) -> int:
    """The orientation of a picture, 1 to 8.

    Args:
        data: bytes of the picture.
        image: picture, opened and loaded, because some formats note the orientation behind the pixels.
    """
    if image.format in {"JPEG", "MPO"}:
        return orientation_in([data[place + 4 : end] for marker, place, end in segments_of(data) if marker == _APP1])
    try:
        found = image.getexif().get(_TAG, UPRIGHT)
    except Exception:  # damaged EXIF data is no reason to lose a picture
        return UPRIGHT
    return found if found in TURNS else UPRIGHT


def orientation_in(segments: Sequence[bytes]) -> int:
    """The orientation that a JPEG's segments of metadata (APP1) note, 1 to 8.

    Args:
        segments: bytes of the segments behind their length, in the order of the file.
    """
    found = next((found for each in segments if each[:6] == _EXIF and (found := _tag(each[6:])) is not None), None)
    if found is None:
        xmp = next((match for each in segments if each[:6] != _EXIF and (match := _XMP.search(each))), None)
        found = int(xmp[1]) if xmp else UPRIGHT
    return found if found in TURNS else UPRIGHT


def _tag(tiff: bytes) -> int | None:
    """The orientation tag of EXIF data, which is built like a TIFF; None without the tag, or where the data are damaged before it."""
    order = _ORDERS.get(tiff[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(f"{order}L", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        entry = struct.Struct(f"{order}HHL").unpack_from
        for number in range(count):
            place = start + 2 + number * _ENTRY
            tag, kind, values = entry(tiff, place)
            if tag == _TAG and kind in _TYPES and values:
                each = struct.Struct(f"{order}{_TYPES[kind]}")
                place += _ENTRY - _INLINE
                if values * each.size > _INLINE:  # the entry holds the place of the values
                    (place,) = struct.unpack_from(f"{order}L", tiff, place)
                return int(each.unpack_from(tiff, place)[0])  # the first of several values counts
    except struct.error:
        return None
    return None
