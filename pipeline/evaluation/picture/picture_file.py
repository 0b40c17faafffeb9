"""A person's picture in a file: read without losing a bit of it, and written with all that its format can keep."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.counting import counted
from shards.dataset.orientation import UPRIGHT, orientation_of, turned
from shards.dataset.pixels import PictureRejected, is_jpeg, opened, refuse_lost_pixels, rejection
from shards.errors import ExplainedError
from shards.local_files import whole_file

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Formats that a result is written in, by the ending of its name."""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601-2, as Pillow makes grey of colours
_READ = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "YCbCr"})  # modes of Pillow, beside 16-bit grey
_QUALITY = 95
_LONGEST_SIDE = {"JPEG": 65_500, "WEBP": 16_383}  # pixels that the formats can count
_COMPRESSION = 4  # of PNG: half the time of Pillow's own level, for some per cent more bytes


class PictureInvalid(ExplainedError):
    """A picture can't be filled or written; the message names the picture, what is wrong and what to do."""


@dataclass(frozen=True)
class Picture:
    """A picture in memory, upright.

    Attributes:
        pixels: uint8 (H, W, C), or uint16 (H, W, 1) of a 16-bit grey picture; C is 1 for grey, 2 for grey with alpha, 3 for RGB, 4 for
            RGBA.
        profile: ICC profile; None without one.
    """

    pixels: Pixels
    profile: bytes | None = None

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """Width in pixels."""
        return int(self.pixels.shape[1])

    @property
    def has_alpha(self) -> bool:
        """True if the last channel is alpha."""
        return self.pixels.shape[2] in (2, 4)

    @property
    def most(self) -> int:
        """Value of white: 255 or 65535."""
        return int(np.iinfo(self.pixels.dtype).max)

    def seen(self, rows: slice, columns: slice) -> NDArray[np.float32]:
        """A part of the picture as the training would see it: in RGB, over white where it is transparent.

        Returns:
            float32 (h, w, 3), 0 to 255; whole numbers where the picture has 8 bits and no alpha.
        """
        part: NDArray[Any] = self.pixels[rows, columns].astype(np.float32)
        if self.most > 255:
            part *= np.float32(255 / self.most)
        if self.has_alpha:
            alpha = part[..., -1:] / 255
            part = part[..., :-1] * alpha + 255 * (1 - alpha)
        return np.broadcast_to(part, (*part.shape[:2], 3)) if part.shape[2] == 1 else part

    def put(self, values: NDArray[np.float32], hole: NDArray[np.bool_], top: int, left: int) -> None:
        """Writes colours into a hole, and leaves alpha and every other pixel as they are.

        Args:
            values: float32 (h, w, 3) in [0, 1], RGB.
            hole: bool (h, w), True for the pixels to write.
            top: row of the first value.
            left: column of the first value.
        """
        colours = 1 if self.pixels.shape[2] < 3 else 3
        chosen = values[hole] if colours == 3 else (values[hole] @ _LUMA)[:, None]
        part = self.pixels[top : top + hole.shape[0], left : left + hole.shape[1], :colours]
        part[hole] = np.rint(chosen.clip(0, 1) * self.most)


def read_picture(data: bytes, max_pixels: int, name: str) -> Picture:
    """Reads a picture.

    Args:
        data: bytes of the file.
        max_pixels: most pixels that a picture may have; a larger one is refused before it is decoded.
        name: name of the picture, for errors.

    Raises:
        PictureInvalid: no picture, damaged, too large, animated, or with values that can't be kept.
    """
    try:
        with opened(data, max_pixels) as image:
            _refuse(image)
            if is_jpeg(image):
                refuse_lost_pixels(data)
            image.load()
            pixels, orientation = _pixels(image), orientation_of(data, image)  # some formats note the orientation behind the pixels
            profile = image.info.get("icc_profile")
            return Picture(
                pixels if orientation == UPRIGHT else cast(Pixels, turned(cast(NDArray[np.uint8], pixels), orientation)),
                profile if isinstance(profile, bytes) else None,
            )
    except (PictureRejected, PictureInvalid) as error:
        raise PictureInvalid(_by_option(f"{name}: {error}")) from None
    except Exception as error:  # decoders raise errors of many types for damaged files
        raise PictureInvalid(_by_option(f"{name}: {rejection(error)}")) from error


def _by_option(text: str) -> str:
    """Names the option of the command instead of the setting of a training."""
    return text.replace(" max_pixels", " --max-pixels")


def read_hole(data: bytes, max_pixels: int, name: str) -> NDArray[np.bool_]:
    """Reads a mask: bool (H, W), upright, True where it is white (128 or more) and not transparent.

    Raises:
        PictureInvalid: as `read_picture`.
    """
    mask = read_picture(data, max_pixels, name)
    seen = mask.pixels[..., : 1 if mask.pixels.shape[2] < 3 else 3]
    white: NDArray[np.bool_] = np.all(seen > mask.most / 2, axis=2)
    return white & (mask.pixels[..., -1] > mask.most / 2) if mask.has_alpha else white


def write_picture(picture: Picture, target: Path, overwrite: bool = False) -> tuple[str, ...]:
    """Writes a picture: whole or not at all.

    Args:
        picture: picture to write.
        target: path of the file; its ending says the format.
        overwrite: whether a file that exists is replaced.

    Returns:
        Sentences about what the format has changed.

    Raises:
        PictureInvalid: the file exists, or its format can't hold the picture.
        OSError: the file can't be written.
    """
    data, notes = encoded(picture, format_of(target), str(target))
    if target.exists() and not overwrite:
        raise PictureInvalid(f"{target}: exists. Name another file with --out, or give --overwrite")
    with whole_file(target.resolve(), durable=False) as file:
        file.write(data)
    return notes


def format_of(target: Path) -> str:
    """The format that the ending of a file's name says, in Pillow's words.

    Raises:
        PictureInvalid: no result is written in that format.
    """
    try:
        return FORMATS[target.suffix.lower()]
    except KeyError:
        raise PictureInvalid(f"{target}: a result is written as {', '.join(FORMATS)}. Give --out a name that ends so") from None


def encoded(picture: Picture, kind: str, name: str) -> tuple[bytes, tuple[str, ...]]:
    """The bytes of a file of a picture.

    Args:
        picture: picture to encode.
        kind: format in Pillow's words.
        name: name of the file, for errors.

    Returns:
        The bytes, and sentences about what the format has changed.

    Raises:
        PictureInvalid: the format can't hold the picture.
    """
    deep = picture.most > 255
    if kind != "PNG" and (deep or (kind == "JPEG" and picture.has_alpha)):
        lacks = "16 bits" if deep else "transparency"
        raise PictureInvalid(f"{name}: {kind} has no {lacks}, which this picture has. Write a .png{'' if deep else ' or a .webp'}")
    if max(picture.width, picture.height) > _LONGEST_SIDE.get(kind, math.inf):
        raise PictureInvalid(f"{name}: a side of {kind} has at most {counted(_LONGEST_SIDE[kind], 'pixel')}, this picture is "
                             f"{picture.width} x {picture.height}. Write a .png")  # fmt: skip
    pixels = picture.pixels[..., 0] if picture.pixels.shape[2] == 1 else picture.pixels
    image = Image.fromarray(np.ascontiguousarray(pixels))
    options: dict[str, Any] = {"PNG": {"compress_level": _COMPRESSION}, "JPEG": {"quality": _QUALITY, "subsampling": 0}}.get(kind, {})
    if kind == "WEBP":
        options = {"lossless": True, "exact": True}  # exact: colours under transparent pixels stay
    file = io.BytesIO()
    image.save(file, kind, icc_profile=picture.profile, **options)
    changed = {
        "JPEG": ("JPEG is lossy: pixels outside the hole change a little, too",),
        "WEBP": ("WebP has no grey: the grey picture is stored as RGB",) if picture.pixels.shape[2] < 3 else (),
    }
    return file.getvalue(), changed.get(kind, ())


def preview(picture: Picture, longest: int) -> Picture:
    """Makes a picture small enough to be shown.

    Args:
        picture: picture to show.
        longest: most pixels of the longer side; a smaller picture is given as it is.
    """
    scale = longest / max(picture.width, picture.height)
    if scale >= 1:
        return picture
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    pixels = cv2.resize(picture.pixels, size, interpolation=cv2.INTER_AREA)
    return Picture(cast(Pixels, pixels.reshape(size[1], size[0], -1)), picture.profile)


def _refuse(image: Image.Image) -> None:
    """Refuses a picture that can't be written as it was read, by its header alone."""
    if getattr(image, "n_frames", 1) > 1 and not is_jpeg(image):  # a JPEG of several pictures is one picture with previews
        raise PictureInvalid(f"has {image.n_frames} frames. Save the one to fill as a picture of its own")  # type: ignore[attr-defined]
    if image.mode == "CMYK":
        raise PictureInvalid("has the colours of a printer (CMYK), which depend on its profile. Convert it to RGB first")
    if image.mode not in _READ and not image.mode.startswith("I;16"):
        raise PictureInvalid(
            f"has values without an agreed range or colours that are not known here ({image.mode}). Convert it to RGB first"
        )
    if image.mode.startswith("I;16") and "transparency" in image.info:
        raise PictureInvalid("has 16 bits and a transparent value, which would be lost. Convert it to grey with alpha first")
    if not image.mode.startswith("I;16") and any(_is_deep(tile[3]) for tile in getattr(image, "tile", ())):
        raise PictureInvalid("has 16 bits a colour, of which 8 would be lost. Convert it to 8 bits first, or to grey")


def _is_deep(arguments: Any) -> bool:
    """True for the arguments of a decoder that makes 8 bits of 16: `RGB;16B`, or the PPM decoder's ("RGB", 65535)."""
    values = arguments if isinstance(arguments, tuple) else (arguments,)
    mode = values[0] if values and isinstance(values[0], str) else ""
    return ";16" in mode or (mode == "RGB" and len(values) == 2 and isinstance(values[1], int) and values[1] > 255)


def _pixels(image: Image.Image) -> Pixels:
    """The pixels of a loaded picture, (H, W, C) as `Picture` has them; a palette becomes its colours."""
    if image.mode.startswith("I;16"):
        return np.array(image).astype(np.uint16)[..., None]
    if "transparency" in image.info or image.mode in ("PA", "La", "RGBa"):
        image = image.convert("LA" if image.mode in ("L", "1", "La") else "RGBA")
    elif image.mode not in ("L", "LA", "RGB", "RGBA"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    pixels: NDArray[np.uint8] = np.array(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]
