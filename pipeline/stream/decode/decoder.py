"""From the bytes of a picture to the square crop that is trained on.

In: bytes, a `CropRule` and the samples' keys. Out: uint8 (size, size, 3) in the batch, or the reason why a picture is undecodable.
libjpeg-turbo decodes JPEGs, and of them only what the crop needs; Pillow decodes everything else, and JPEGs that libjpeg-turbo refuses,
whole. Shards that were built at the training size need no resize at all; a resize is antialiased. The decoding library is chosen once a
run and recorded with it, because the pixels of two libraries, or of two versions, may differ in the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from pipeline.mapping import ConfigError
from pipeline.stream.buffers import BufferPool
from pipeline.stream.decode import nvimgcodec
from pipeline.stream.decode.crop import Box, CropRule, choose
from pipeline.stream.decode.jpeg import decode, decode_rows
from pipeline.stream.decode.resize import resize
from pipeline.stream.decode.segments import cut
from shards.dataset.jpeg_header import Frame, read_frame
from shards.dataset.orientation import TURNS, UPRIGHT, turned
from shards.dataset.pixels import PictureRejected

if TYPE_CHECKING:
    from torch import Tensor

DecoderName = Literal["simplejpeg", "nvimgcodec", "nvimgcodec_gpu"]


@dataclass(frozen=True)
class Decoder:
    """Turns bytes into crops; any number of threads may use it at once.

    Attributes:
        description: libraries and versions that decide the pixels, to be recorded with a run.
        part: function that decodes a box of a JPEG, or returns None to have the JPEG decoded whole.
    """

    description: str
    part: Callable[[bytes | memoryview, Frame, Box], NDArray[np.uint8] | None]

    def new_images(self, shape: tuple[int, ...], buffers: BufferPool) -> Tensor:
        """Memory for the crops of a batch, uint8, not initialised.

        Args:
            shape: shape of the images.
            buffers: memory of the host that is used again.
        """
        import torch  # noqa: PLC0415 - decoding alone needs no torch, which takes seconds to import

        return buffers.take(shape, torch.uint8)

    def crops(
        self,
        data: Sequence[bytes | memoryview],
        out: Sequence[NDArray[np.uint8]],
        rule: CropRule,
        keys: Sequence[int],
        draws: Sequence[Sequence[float]] | None = None,
    ) -> list[str | None]:
        """Decodes pictures and writes the crop of each into a batch.

        All headers are read first, because a decode clears the processor's caches of everything else. Data that a crop doesn't need isn't
        looked at.

        Args:
            data: bytes of the pictures.
            out: memory of each crop, uint8 (size, size, 3), contiguous; that of an undecodable picture is left as it was.
            rule: settings of the crops.
            keys: keys of the samples.
            draws: numbers of `draws_of` for each key, if they are drawn already.

        Returns:
            The reason why a picture is undecodable, or None, for each picture.
        """
        frames = [read_frame(each) for each in data]
        drawn: Sequence[Sequence[float] | None] = draws or [None] * len(keys)
        boxes = [box_of(frame, rule, key, place.shape[0], few) for frame, key, place, few in zip(frames, keys, out, drawn, strict=True)]
        pieces = cut(data, frames, boxes)
        reasons: list[str | None] = []
        for each, place, key, frame, planned, piece in zip(data, out, keys, frames, boxes, pieces, strict=True):
            box, part = planned, None
            try:
                if frame is not None and box is not None:
                    part = self.part(each, frame, box) if piece is None else piece.decode(box)
                    if part is not None and rule.turn:
                        part = turned(part, frame.orientation)
                if part is None or box is None:
                    pixels = decode(bytes(each), rule.max_pixels, rule.turn)
                    box = choose(rule.crop, rule.flip, key, pixels.shape[0], pixels.shape[1], place.shape[0])
                    part = pixels[box.top : box.bottom, box.left : box.right]
            except PictureRejected as error:
                reasons.append(str(error))
            else:
                _write(part, place, box.mirror)
                reasons.append(None)
        return reasons


def box_of(frame: Frame | None, rule: CropRule, key: int, size: int, draws: Sequence[float] | None) -> Box | None:
    """The box of a stored picture that becomes its crop; None without a frame, or for a picture over the limit, which `decode` refuses."""
    if frame is None or frame.height * frame.width > rule.max_pixels:
        return None
    if not rule.turn or frame.orientation == UPRIGHT:
        return choose(rule.crop, rule.flip, key, frame.height, frame.width, size, draws)
    upright = (frame.width, frame.height) if TURNS[frame.orientation].swaps else (frame.height, frame.width)
    return choose(rule.crop, rule.flip, key, *upright, size, draws).as_stored(*upright, frame.orientation)


def _write(part: NDArray[np.uint8], out: NDArray[np.uint8], mirror: bool) -> None:
    """Brings a cut-out part to the size of the crop. OpenCV copies rows faster than NumPy, and mirrors them in place in a third of the time
    that a mirror image elsewhere takes."""
    if part.shape == out.shape:
        cv2.copyTo(part, None, out)
    else:
        resize(part, out)
    if mirror:
        cv2.flip(out, 1, dst=out)


def make_decoder(name: DecoderName = "simplejpeg") -> Decoder:
    """The decoder of a run.

    Args:
        name: simplejpeg is always there; nvimgcodec (the extra `decode`) is faster where much of a picture lies outside the crop. Pictures
            whose segments can be cut out go through simplejpeg with both, which is faster still. nvimgcodec_gpu decodes on the current GPU.

    Raises:
        ConfigError: nvimgcodec is not installed, or can't decode on a GPU here.
    """
    # the resize and the conversion of odd formats are numbered here, because they decide pixels too
    always = f"simplejpeg {getattr(simplejpeg, '__version__', 'unknown')}, opencv {cv2.__version__}, smoothed resize 1, conversion 2"
    if name == "simplejpeg":
        return Decoder(always, decode_rows)
    version = nvimgcodec.version()
    if version is None:
        raise ConfigError("data.decoder: nvImageCodec is not installed: pip install -e '.[decode]', or set data.decoder to simplejpeg")
    if name == "nvimgcodec":
        return Decoder(f"nvimgcodec {version}, {always}", nvimgcodec.decode_region)
    from pipeline.stream.decode.device_decoder import make_device_decoder  # noqa: PLC0415 - decoding on the host needs no torch

    return make_device_decoder(Decoder(always, decode_rows), version)
