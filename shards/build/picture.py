"""Turns the bytes of any picture into the bytes that are stored.

Pictures stored at a shorter side of 256 decode two to three times as fast as at ImageNet's full size. Larger pictures are shrunk with
antialiasing and encoded as JPEG (4:2:0, without metadata). A restart marker follows every block and a table says where the markers are, so
that a crop can be decoded without its surroundings; Huffman codes made for each picture make up for most of the added bytes. A JPEG that is
small enough keeps its bytes, because encoding it again would lose quality for nothing. Every picture is decoded once, so that unreadable
ones are found here and not during a training. Colour profiles are not applied, because no decoder for training applies them.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import PIL
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, features

from shards.counting import counted
from shards.dataset.jpeg_header import with_table
from shards.dataset.orientation import UPRIGHT, orientation_of, turned
from shards.dataset.pixels import FORMATS, MOST_PIXELS, PictureRejected, decode_jpeg, is_jpeg, opened, read_rgb, rejection, to_rgb
from shards.errors import ShardError

# what is read to be encoded again: no format that needs another program (EPS runs Ghostscript) or holds no photographs
_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "TIFF": "tif", "GIF": "gif", "PPM": "ppm"}
Image.init()
_READABLE = tuple(kind for kind in (*FORMATS, "JPEG2000") if kind in Image.OPEN)
_LONGEST_SIDE = 65500  # pixels; libjpeg writes no more
_PILLOW_LIMIT = 178_956_970  # Pillow refuses or warns above this by itself


@dataclass(frozen=True)
class PictureRules:
    """The treatment of every picture.

    Attributes:
        resize: length in pixels that the shorter side is reduced to (never enlarged), or None to store the bytes as they are.
        quality: JPEG quality of pictures that are encoded again, 1 to 100.
        max_pixels: most pixels of a picture; a larger one is rejected before it is decoded.
        max_bytes: most bytes of a file; a longer one is rejected before it is read.

    Raises:
        ShardError: a value is outside its range.
    """

    resize: int | None = 256
    quality: int = 90
    max_pixels: int = MOST_PIXELS
    max_bytes: int = 100_000_000

    def __post_init__(self) -> None:
        limits = {"resize": (1, _LONGEST_SIDE), "quality": (1, 100), "max_pixels": (1, _PILLOW_LIMIT), "max_bytes": (1, 2**32 - 1)}
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise ShardError(f"{name} {value} is not between {least} and {most}")


@dataclass(frozen=True)
class StoredPicture:
    """The bytes that are stored, and the extension of their format."""

    data: bytes
    extension: str


def encoder() -> str:
    """Returns the versions of the libraries that decide the bytes of an encoded picture."""
    libraries = f"Pillow {PIL.__version__}, simplejpeg {simplejpeg.__version__}, opencv {cv2.__version__}"
    return f"{libraries}, libjpeg-turbo {features.version_feature('libjpeg_turbo')}, segments 1"


def prepare(data: bytes, rules: PictureRules) -> StoredPicture:
    """Checks one picture and returns what is stored of it.

    Args:
        data: bytes of a file of any format in `index.PICTURE_EXTENSIONS`; the format is read from the bytes, not from a name.
        rules: treatment of the picture.

    Raises:
        PictureRejected: the picture is empty, too large, or not decodable.
    """
    if len(data) > rules.max_bytes:
        raise too_long(len(data), rules)
    try:
        with opened(data, rules.max_pixels, _READABLE) as image:
            if rules.resize is not None:
                return _resized(data, image, rules.resize, rules.quality)
            extension = _EXTENSIONS.get(image.format or "")
        if extension is None:
            raise PictureRejected(f"{image.format} can't be stored as it is: let it be encoded with --resize")
        read_rgb(data, rules.max_pixels)  # as the training will
    except PictureRejected:
        raise
    except Exception as error:
        raise rejection(error) from error
    return StoredPicture(data, extension)


def too_long(length: int, rules: PictureRules) -> PictureRejected:
    """Returns the rejection of a file of `length` bytes."""
    return PictureRejected(f"{counted(length, 'byte is', 'bytes are')} more than max_bytes, {rules.max_bytes:,}")


def _resized(data: bytes, image: Image.Image, shorter: int, quality: int) -> StoredPicture:
    width, height = image.size
    larger = min(width, height) > shorter
    size = (width, height)
    if larger:
        size = (shorter, round(height * shorter / width)) if width < height else (round(width * shorter / height), shorter)
    if max(size) > _LONGEST_SIDE:
        raise PictureRejected(f"{size[0]} x {size[1]} pixels don't fit in a JPEG, whose longest side is {_LONGEST_SIDE}")
    # the decoder may halve very large pictures as it goes; twice the size keeps the antialiasing to the resize
    least = {"min_width": 2 * size[0], "min_height": 2 * size[1], "min_factor": 2} if larger else {}
    pixels = decode_jpeg(data, image, **least) if is_jpeg(image) else None
    if pixels is None:  # another format, or a JPEG that is unusual in a harmless way
        image.load()
        rgb = to_rgb(image)
    else:
        rgb = Image.fromarray(pixels)
    orientation = orientation_of(data, image)
    if pixels is not None and not larger and orientation == UPRIGHT:
        return StoredPicture(data, "jpg")
    if larger:
        rgb = rgb.resize(size, Image.Resampling.BICUBIC)
    return StoredPicture(_encode(turned(np.asarray(rgb), orientation), quality), "jpg")


def _encode(rgb: NDArray[np.uint8], quality: int) -> bytes:
    """Encodes a JPEG with a restart marker behind every block of 16 x 16 pixels; OpenCV does it even where Pillow fails, for noise."""
    options = {
        cv2.IMWRITE_JPEG_QUALITY: quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR: cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
        cv2.IMWRITE_JPEG_RST_INTERVAL: 1,
        cv2.IMWRITE_JPEG_OPTIMIZE: 1,
    }
    done, data = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [each for pair in options.items() for each in pair])
    if not done:
        raise PictureRejected("can't be encoded")
    return with_table(bytes(data))
