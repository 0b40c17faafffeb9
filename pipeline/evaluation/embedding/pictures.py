"""Cuts the middle out of pictures, at the scale that the encoder was trained at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.stream.decode.crop import CropRule
from pipeline.stream.decode.decoder import Decoder
from pipeline.stream.decode.jpeg import decode
from pipeline.stream.decode.resize import resize
from shards.dataset.jpeg_header import read_frame
from shards.dataset.pixels import PictureRejected


class PictureCutter:
    """Turns bytes into the encoder's square input; any number of threads may use it at once.

    Args:
        decoder: decoder of the pictures.
        shorter_side: shorter side that pictures are resized to before `side` pixels are cut out of their middle; None leaves them at their
            own scale, where only a picture that is smaller than the input grows.
        max_pixels: most pixels that a picture may have to be decoded.
        turn: turn pictures upright as their orientation says.
    """

    def __init__(self, decoder: Decoder, shorter_side: int | None, max_pixels: int, turn: bool = True) -> None:
        self._decoder, self._shorter_side, self._max_pixels = decoder, shorter_side, max_pixels
        self._rule = CropRule("center", False, max_pixels, turn)

    def cut(self, data: Sequence[bytes | memoryview], out: Sequence[NDArray[np.uint8]]) -> list[str | None]:
        """Decodes pictures and writes the middle of each.

        Args:
            data: bytes of the pictures.
            out: memory of each input, uint8 (side, side, 3), contiguous; that of an undecodable picture is left as it was.

        Returns:
            The reason why a picture is undecodable, or None, for each picture.
        """
        reasons: list[str | None] = [None] * len(data)
        framed, places = list[int](), list[NDArray[np.uint8]]()
        for number, (each, place) in enumerate(zip(data, out, strict=True)):
            frame = read_frame(each)
            if frame is None:
                reasons[number] = self._whole(bytes(each), place)
                continue
            framed.append(number)
            side = self._part(frame.height, frame.width, len(place)) if frame.height * frame.width <= self._max_pixels else len(place)
            places.append(place if side == len(place) else np.empty((side, side, 3), np.uint8))
        found = self._decoder.crops([data[number] for number in framed], places, self._rule, [0] * len(framed))
        for number, place, reason in zip(framed, places, found, strict=True):
            reasons[number] = reason
            if reason is None and place is not out[number]:
                resize(place, out[number])
        return reasons

    def _part(self, height: int, width: int, side: int) -> int:
        """Side of the square of a picture that becomes the input."""
        shorter = min(height, width)
        return min(shorter, side) if self._shorter_side is None else max(1, round(shorter * side / max(side, self._shorter_side)))

    def _whole(self, data: bytes, out: NDArray[np.uint8]) -> str | None:
        """Decodes a picture that is no JPEG of the usual kind, and cuts out its middle."""
        try:
            pixels = decode(data, self._max_pixels, self._rule.turn)
        except PictureRejected as error:
            return str(error)
        height, width = pixels.shape[:2]
        side = self._part(height, width, len(out))
        top, left = (height - side) // 2, (width - side) // 2
        resize(pixels[top : top + side, left : left + side], out)
        return None
