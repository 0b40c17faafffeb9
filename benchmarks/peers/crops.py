"""The crop of sides without one of their own: drawn as torchvision's RandomResizedCrop does, in the cheapest way that Pillow has.

`resize` with a box cuts out and shrinks at once and is antialiased; torchvision crops first, which is slower.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def random_box(width: int, height: int) -> tuple[int, int, int, int]:
    """left, top, width and height in pixels: 8 to 100 % of the area at aspect 3/4 to 4/3, or the whole where ten draws don't fit."""
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1.0)
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            return random.randint(0, width - box_width), random.randint(0, height - box_height), box_width, box_height
    return 0, 0, width, height


def pillow_crop(picture: Image.Image, size: int) -> NDArray[np.uint8]:
    """A random resized crop, half of them mirrored: uint8 (size, size, 3)."""
    left, top, width, height = random_box(picture.width, picture.height)
    crop = picture.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
    if random.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(crop)


def pillow_decode(data: bytes) -> Image.Image:
    """The picture of some bytes, RGB."""
    with Image.open(io.BytesIO(data)) as picture:
        return picture.convert("RGB")


def pictures(tars: list[str]) -> Iterator[bytes]:
    """The stored bytes of every `.jpg` of some shards, for conversions into other formats."""
    import tarfile  # noqa: PLC0415 - only conversions need it

    for path in tars:
        with tarfile.open(Path(path)) as tar:
            for member in tar:
                file: Any = tar.extractfile(member) if member.name.endswith(".jpg") else None
                if file is not None:
                    yield file.read()
