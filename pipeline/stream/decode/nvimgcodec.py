"""Decoding only the rectangle of a crop, by nvImageCodec's CPU decoder (the extra `decode`; it needs no GPU).

That decoder is libjpeg-turbo as well. It leaves out the transform and the colours of everything around the crop, and gives the same pixels.
It gives no warning when the data of a picture ends early inside a file that ends properly: such a picture trains with grey or shifted
blocks, whereas simplejpeg refuses it. The builder decodes every picture, and digests show when bytes changed since. For shards that were
made elsewhere and never checked, simplejpeg is the safer choice.
"""

from __future__ import annotations

import importlib
import threading
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.stream.decode.crop import Box
from pipeline.stream.decode.jpeg import decode_rows
from shards.dataset.jpeg_header import Frame

_HOST = -99999  # nvImageCodec's number for "no device at all"
_thread = threading.local()


def version() -> str | None:
    """The version of nvImageCodec, or None if it isn't installed."""
    try:
        return str(library().__version__)
    except ImportError:
        return None


@cache
def library() -> Any:
    """The library, imported at its first use, because it reports every absent CUDA library on standard error."""
    return importlib.import_module("nvidia.nvimgcodec")


def decode_region(data: bytes | memoryview, frame: Frame, box: Box) -> NDArray[np.uint8] | None:
    """The pixels of a crop, decoding no more than its rectangle.

    Returns:
        uint8 (box.height, box.width, 3), RGB; `decode_rows` decodes what nvImageCodec refuses.
    """
    nvimgcodec = library()
    try:
        region = nvimgcodec.Region(box.top, box.left, box.bottom, box.right)
        image = _decoder().decode(nvimgcodec.CodeStream(bytes(data)).get_sub_code_stream(region=region), params=_thread.parameters)
        pixels: NDArray[np.uint8] | None = None if image is None else np.asarray(image.cpu())
    except Exception:  # of any type, for a file that it can't cope with
        pixels = None
    if pixels is None or pixels.shape != (box.height, box.width, 3):
        return decode_rows(data, frame, box)
    return pixels


def _decoder() -> Any:
    """The decoder of this thread; a shared one would make the threads wait for each other."""
    decoder = getattr(_thread, "decoder", None)
    if decoder is None:
        decoder, _thread.parameters = new_decoder()
        _thread.decoder = decoder
    return decoder


def new_decoder(device: int | None = None) -> tuple[Any, Any]:
    """A decoder for one thread, and the parameters of its calls: RGB of 8 bits, as stored.

    Args:
        device: number of the GPU that decodes, by CUDA alone; None decodes on the CPU.
    """
    nvimgcodec = library()
    kinds = nvimgcodec.BackendKind
    chosen = [kinds.CPU_ONLY] if device is None else [kinds.GPU_ONLY, kinds.HYBRID_CPU_GPU]
    decoder = nvimgcodec.Decoder(
        device_id=_HOST if device is None else device,
        max_num_cpu_threads=1,
        backends=[nvimgcodec.Backend(kind) for kind in chosen],
        options="" if device is None else ":fancy_upsampling=1",  # colours between their samples, as libjpeg-turbo makes them
    )
    return decoder, nvimgcodec.DecodeParams(color_spec=nvimgcodec.ColorSpec.SRGB, allow_any_depth=False, apply_exif_orientation=False)
