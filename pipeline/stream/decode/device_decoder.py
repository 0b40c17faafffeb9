"""Decoding on a GPU, by nvImageCodec and nvJPEG: the threads plan the crops, and the device decodes, resizes and mirrors them.

In: the bytes of a task's pictures. Out: the crops, in the batch's images on the device, so that no pixel crosses the bus. The rectangle
and the mirror image of a crop are those of the other decoders, and the resize has the definition of `resize`. The pixels may differ by
what nvJPEG rounds otherwise than libjpeg-turbo. Pictures that nvJPEG does not take (PNG and the like, damaged and odd JPEGs) are decoded
on the host, and refused there as by `simplejpeg`. Which way a picture goes depends on its bytes alone. The fixed-function JPEG engine of
some GPUs is left out, because nvImageCodec divides a batch between that engine and the other backends by their load, and the pixels of the
two may differ.

Each thread has a stream and a decoder of its own, and waits for its stream at the end of a task, so a batch whose tasks are done is there
for every stream. Memory of the images is allocated for one stream that computes nothing, because a thread writes to it without an order
between its own stream and the one that read the last batch there; `pipeline.training.device_batches` keeps it for that reader.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline.mapping import ConfigError
from pipeline.stream.buffers import BufferPool
from pipeline.stream.decode import nvimgcodec
from pipeline.stream.decode.crop import Box, CropRule
from pipeline.stream.decode.decoder import Decoder, box_of
from pipeline.stream.decode.resize import smoothing
from shards.dataset.jpeg_header import Frame, read_frame
from shards.dataset.orientation import TURNS

_PROBE = 64  # side in pixels of the picture that a new decoder decodes first


@dataclass(frozen=True)
class DeviceDecoder(Decoder):
    """A decoder whose crops are made on a device.

    Attributes:
        device: device of the crops. On a CPU the same steps run with nvImageCodec's CPU backend.
    """

    device: torch.device

    def new_images(self, shape: tuple[int, ...], buffers: BufferPool) -> Tensor:  # noqa: ARG002
        """As `Decoder.new_images`, on the device."""
        with self._queueing(self._memory):
            return torch.empty(shape, dtype=torch.uint8, device=self.device)

    def crops(
        self,
        data: Sequence[bytes | memoryview],
        out: Sequence[NDArray[np.uint8]] | Sequence[Tensor],
        rule: CropRule,
        keys: Sequence[int],
        draws: Sequence[Sequence[float]] | None = None,
    ) -> list[str | None]:
        """As `Decoder.crops`, into crops on the device; those in memory of the host are copied there. Waits for the device."""
        places = [torch.as_tensor(each) for each in out]
        frames = [read_frame(each) for each in data]
        drawn: Sequence[Sequence[float] | None] = draws or [None] * len(keys)
        boxes = [box_of(frame, rule, key, len(place), few) for frame, key, place, few in zip(frames, keys, places, drawn, strict=True)]
        thread = _of_this_thread(self.device)
        with self._queueing(thread.stream):
            parts = thread.decode(data, boxes)  # named, because their memory must outlive the work that is queued below
            left = _place(parts, frames, boxes, places, rule.turn)
            reasons = self._on_the_host(left, data, places, rule, keys, draws)
            if thread.stream is not None:
                thread.stream.synchronize()
        return reasons

    def _on_the_host(
        self,
        left: Sequence[int],
        data: Sequence[bytes | memoryview],
        places: Sequence[Tensor],
        rule: CropRule,
        keys: Sequence[int],
        draws: Sequence[Sequence[float]] | None,
    ) -> list[str | None]:
        """Decodes some pictures as `Decoder` does; returns the reasons for all."""
        reasons: list[str | None] = [None] * len(data)
        if not left:
            return reasons
        made = [np.empty(places[number].shape, np.uint8) for number in left]
        few = None if draws is None else [draws[number] for number in left]
        found = super().crops([data[number] for number in left], made, rule, [keys[number] for number in left], few)
        for number, pixels, reason in zip(left, made, found, strict=True):
            reasons[number] = reason
            if reason is None:
                places[number].copy_(torch.from_numpy(pixels))
        return reasons

    @cached_property
    def _memory(self) -> Any:
        return _new_stream(self.device)

    @staticmethod
    def _queueing(stream: Any) -> AbstractContextManager[Any]:
        return nullcontext() if stream is None else torch.cuda.stream(stream)


def _place(
    parts: Sequence[Tensor | None], frames: Sequence[Frame | None], boxes: Sequence[Box | None], places: Sequence[Tensor], turn: bool
) -> list[int]:
    """Turns, resizes and mirrors decoded parts into their places; returns the numbers of the pictures that have none."""
    left = list[int]()
    for number, (part, box, frame, place) in enumerate(zip(parts, boxes, frames, places, strict=True)):
        if part is None or box is None or frame is None:
            left.append(number)
            continue
        pixels = resized(_turned(part, frame.orientation) if turn else part, len(place))
        place.copy_(pixels.flip(1) if box.mirror else pixels)
    return left


class _OfThread:
    """The decoder and the stream of one thread on one device."""

    def __init__(self, device: torch.device) -> None:
        self.stream = _new_stream(device)
        self._device = device
        self._library = nvimgcodec.library()
        self._decoder, self._parameters = nvimgcodec.new_decoder(device.index if device.type == "cuda" else None)

    def decode(self, data: Sequence[bytes | memoryview], boxes: Sequence[Box | None]) -> list[Tensor | None]:
        """The pixels of boxes, uint8 (height, width, 3) on the device; None for what is refused or has no box."""
        streams, wanted = list[Any](), list[tuple[int, Box]]()
        for number, box in enumerate(boxes):
            if box is None:
                continue
            region = self._library.Region(box.top, box.left, box.bottom, box.right)
            with suppress(Exception):  # of any type, for a file that it can't cope with
                streams.append(self._library.CodeStream(bytes(data[number])).get_sub_code_stream(region=region))
                wanted.append((number, box))
        found: list[Tensor | None] = [None] * len(boxes)
        for (number, box), image in zip(wanted, self._images(streams), strict=True):
            if image is not None:
                pixels = torch.as_tensor(np.asarray(image) if self.stream is None else image, device=self._device)
                found[number] = pixels if pixels.shape == (box.height, box.width, 3) else None
        return found

    def _images(self, streams: Sequence[Any]) -> list[Any]:
        """Decodes together; if that raises, one by one, so that no picture is refused because of another."""
        if not streams:
            return []
        queue = {} if self.stream is None else {"cuda_stream": self.stream.cuda_stream}
        try:
            images: list[Any] = self._decoder.decode(list(streams), params=self._parameters, **queue)
        except Exception:  # of any type, as above
            images = [None] if len(streams) == 1 else [self._images([each])[0] for each in streams]
        return images


_threads = threading.local()


def _of_this_thread(device: torch.device) -> _OfThread:
    own: dict[torch.device, _OfThread] = _threads.__dict__.setdefault("own", {})
    if device not in own:
        own[device] = _OfThread(device)
    return own[device]


def _new_stream(device: torch.device) -> Any:
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def _turned(part: Tensor, orientation: int) -> Tensor:
    """`shards.dataset.orientation.turned` on a device."""
    turn = TURNS[orientation]
    upright = part.transpose(0, 1) if turn.swaps else part
    return upright.flip([axis for axis, reverses in enumerate((turn.reverses_rows, turn.reverses_columns)) if reverses])


def resized(part: Tensor, size: int) -> Tensor:
    """Resizes a picture by the definition of `resize.resize`: smoothed along each axis that shrinks, rounded, and interpolated.

    Args:
        part: uint8 (height, width, 3).
        size: side of the result in pixels.

    Returns:
        uint8 (size, size, 3) on the device of the part; a pixel may differ from that of `resize` by one level.
    """
    if part.shape[:2] == (size, size):
        return part
    values = part.permute(2, 0, 1).float()
    down, across = smoothing(part.shape[0] / size).tolist(), smoothing(part.shape[1] / size).tolist()
    if len(down) > 1 or len(across) > 1:
        above, before = len(down) // 2, len(across) // 2
        values = functional.pad(values[None], (before, before, above, above), mode="replicate")[0]
        values = _weighted(_weighted(values, across, 2), down, 1).round_()  # whole levels, as bytes hold between the two steps
    shape = (size, size)
    pixels = functional.interpolate(values[None], shape, mode="bilinear", align_corners=False)[0]
    return pixels.round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0)


def _weighted(values: Tensor, weights: Sequence[float], axis: int) -> Tensor:
    """The weighted sums of neighbours along an axis, in an order of its own, so that the bits are always the same."""
    count = values.shape[axis] - len(weights) + 1
    total = values.narrow(axis, 0, count) * weights[0]
    for place, weight in enumerate(weights[1:], start=1):
        total.add_(values.narrow(axis, place, count), alpha=weight)
    return total


def make_device_decoder(always: Decoder, version: str) -> DeviceDecoder:
    """Makes the decoder of the current GPU, and has it decode one picture.

    Args:
        always: decoder of what nvJPEG does not take.
        version: version of nvImageCodec.

    Raises:
        ConfigError: there is no GPU, or nvJPEG can't be used.
    """
    if not torch.cuda.is_available():
        raise ConfigError(
            "data.decoder: nvimgcodec_gpu decodes on a GPU, and torch finds none here: set data.decoder to nvimgcodec or simplejpeg. Their "
            "pixels may differ, so a run that began on a GPU asks for --checkpoint.other_decoder True"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    _, picture = cv2.imencode(".jpg", np.zeros((_PROBE, _PROBE, 3), np.uint8))
    (decoded,) = _of_this_thread(device).decode([picture.tobytes()], [Box(0, 0, _PROBE, _PROBE, False)])
    if decoded is None:
        raise ConfigError(
            "data.decoder: nvimgcodec_gpu can't decode a JPEG on this GPU, mostly because nvJPEG is missing: pip install "
            "nvidia-nvjpeg-cu12, or set data.decoder to nvimgcodec or simplejpeg"
        )
    name = torch.cuda.get_device_name(device)
    return DeviceDecoder(f"nvimgcodec {version} on {name}, device resize 1, {always.description}", always.part, device)
