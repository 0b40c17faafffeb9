"""From the bytes of a picture to the square crop that is trained on.

JPEGs go through libjpeg-turbo (simplejpeg), everything else, and JPEGs that it refuses, through Pillow. Where the shards were built at the
training size a crop costs no resize at all; where one is needed it is antialiased (area average when shrinking).
"""

from __future__ import annotations

import io
import math
import threading
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from shards.keyed import uniforms
from shards.picture import LOST_PIXELS

cv2.setNumThreads(1)  # the loader's threads are the parallelism

DECODER = f"simplejpeg {getattr(simplejpeg, '__version__', 'unknown')}, opencv {cv2.__version__}"
"""What decodes, recorded with a run: decoders differ in the last bit of a pixel."""

_CROP = 1  # purpose of the random numbers drawn here
_TRIES = 10
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
_thread = threading.local()
Crop = Literal["random", "random_resized", "center"]


class UndecodableError(ValueError):
    """A picture that no decoder reads, or that is over the limits."""


@dataclass(frozen=True)
class Box:
    """What is cut out of a decoded picture, in pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    mirror: bool


def choose(crop: Crop, flip: bool, key: int, height: int, width: int, size: int) -> Box:
    """The part of a picture that becomes the crop: a pure function of its key and its size.

    Args:
        crop: random: a square of `size`, or of the shorter side where that is less; random_resized: 8 to 100 % of the area at aspect 3/4 to
            4/3; center: the square of random in the middle, never mirrored.
        flip: mirror with probability 1/2.
        key: the sample's, from `shards.keyed.sample_keys`.
        height: of the picture in pixels.
        width: of the picture in pixels.
        size: side of the crop in pixels.
    """
    side = min(size, height, width)
    if crop == "center":
        return Box((height - side) // 2, (width - side) // 2, side, side, False)
    draws = uniforms(key, _CROP, 3 + 2 * _TRIES if crop == "random_resized" else 3)
    mirror = flip and bool(draws[0] < 0.5)
    box_height = box_width = side
    if crop == "random_resized":
        box_height, box_width = _resized_box(draws[3:], height, width)
    return Box(int(draws[1] * (height - box_height + 1)), int(draws[2] * (width - box_width + 1)), box_height, box_width, mirror)


def _resized_box(draws: NDArray[np.float64], height: int, width: int) -> tuple[int, int]:
    for area_draw, aspect_draw in draws.reshape(_TRIES, 2):
        area = height * width * (0.08 + 0.92 * area_draw)
        aspect = math.exp(math.log(4 / 3) * (2 * aspect_draw - 1))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            return box_height, box_width
    return min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))  # the whole, at the nearest allowed aspect


def decode(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """All pixels of a picture.

    Args:
        data: the bytes of a JPEG, PNG, WebP, BMP, TIFF, GIF or PPM.
        max_pixels: more are refused before they are decoded.

    Returns:
        uint8 (height, width, 3), RGB, in memory that the calling thread's next call writes over: copy what is kept.

    Raises:
        UndecodableError: not a picture, damaged, or too large.
    """
    if data[:3] == b"\xff\xd8\xff":
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if height * width > max_pixels:
                raise UndecodableError(f"{width} x {height} pixels are more than data.max_pixels = {max_pixels}")
            if colours in ("YCbCr", "RGB", "Gray"):
                pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", buffer=_scratch(height * width * 3))
                return pixels
        except UndecodableError:
            raise
        except ValueError as error:
            if LOST_PIXELS.search(str(error)):
                raise UndecodableError(str(error)) from error  # Pillow would show grey or shifted blocks without a word
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
            if picture.width * picture.height > max_pixels:
                raise UndecodableError(f"{picture.width} x {picture.height} pixels are more than data.max_pixels = {max_pixels}")
            return np.asarray(picture.convert("RGB"))
    except UndecodableError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever a damaged file leads them to
        raise UndecodableError(f"{type(error).__name__}: {error}") from error


def _scratch(size: int) -> NDArray[np.uint8]:
    """Memory of this thread for one decoded picture: fresh pages for each would cost a sixth of the decoding."""
    memory: NDArray[np.uint8] | None = getattr(_thread, "memory", None)
    if memory is None or memory.size < size:
        memory = _thread.memory = np.empty(size, np.uint8)
    return memory


def decode_crop(data: bytes, out: NDArray[np.uint8], crop: Crop, flip: bool, key: int, max_pixels: int) -> None:
    """Decodes a picture and writes its crop into a batch.

    Args:
        data: the picture's bytes.
        out: uint8 (size, size, 3), written in place.
        crop: as `choose`.
        flip: as `choose`.
        key: as `choose`.
        max_pixels: as `decode`.

    Raises:
        UndecodableError: as `decode`; `out` is then left as it was.
    """
    pixels = decode(data, max_pixels)
    size = out.shape[0]
    box = choose(crop, flip, key, pixels.shape[0], pixels.shape[1], size)
    part = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    if part.shape[:2] != (size, size):
        shrinks = part.shape[0] >= size and part.shape[1] >= size
        part = cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    if box.mirror:
        cv2.flip(part, 1, dst=out)  # ten times as fast as a reversed copy
    else:
        out[:] = part
