"""Features of a batch of pictures: the output of one layer, pooled, as numbers of the file's format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.evaluation.embedding.settings import EmbedConfig
from pipeline.evaluation.encoder import TrainedEncoder, layer_outputs
from shards.errors import ExplainedError

_LARGEST = {"float16": 65504.0, "float32": float(np.finfo(np.float32).max)}


class EmbedError(ExplainedError):
    """Features can't be computed or written. The message names the file or the sample, and what to do."""


class Extractor:
    """Turns pictures into features; several threads may use it at once, each on one core where there is no GPU.

    Args:
        encoder: encoder as it was read.
        config: settings: layer, pool, precision, dtype.
        device: device that computes.

    Attributes:
        layer: name of the layer.
        shape: maps, height and width of the layer's output.
        dimensions: values of a picture's features.

    Raises:
        EncoderInvalid: the encoder has no layer of that name.
    """

    def __init__(self, encoder: TrainedEncoder, config: EmbedConfig, device: torch.device) -> None:
        self.device = device
        self.layer = config.layer or encoder.facts.names[-1]
        self._config = config
        self._transform = encoder.facts.transform
        self._network = encoder.module().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        side = self._transform.side
        maps, height, width = self._maps(torch.zeros(1, side, side, 3, dtype=torch.uint8)).shape[1:]
        self.shape = (maps, height, width)
        self.dimensions = maps if config.pool == "average" else maps * height * width

    def __call__(self, images: Tensor, name_of: Callable[[int], str]) -> NDArray[Any]:
        """Computes features.

        Args:
            images: uint8 (n, side, side, 3).
            name_of: names a picture by its place in the batch, for errors.

        Returns:
            (n, dimensions) of the file's format, float16 or float32.

        Raises:
            EmbedError: a value is not finite, or larger than the format holds.
        """
        maps = self._maps(images)
        with torch.inference_mode():
            values = maps.float().mean((2, 3)) if self._config.pool == "average" else maps.float().flatten(1)
            largest = values.abs().amax(1).cpu()  # NaN where one of the values is
            stored: NDArray[Any] = values.to(getattr(torch, self._config.dtype)).cpu().numpy()
        within = largest <= _LARGEST[self._config.dtype]
        if not within.all():
            number = int((~within).nonzero()[0])
            raise self._out_of_range(name_of(number), float(largest[number]))
        return stored

    def _maps(self, images: Tensor) -> Tensor:
        """The output of the layer, float (n, maps, height, width)."""
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self._config.precision == "bf16"):
            inputs = self._transform(images.to(self.device, non_blocking=True))
            return layer_outputs(self._network, inputs, [self.layer])[self.layer]

    def _out_of_range(self, name: str, value: float) -> EmbedError:
        if not np.isfinite(value):
            return EmbedError(f"{name}: the encoder's {self.layer} is not finite. Has its training diverged?")
        return EmbedError(
            f"{name}: {self.layer} has the value {value:g}, and float16 holds 65504 at most. Use --dtype float32, a later layer, or "
            "--pool average"
        )


def one_core() -> None:
    """Keeps torch's work of the calling thread on one core, so that threads don't fight for them and bits don't depend on their number."""
    torch.set_num_threads(1)


def device_of(local_rank: int) -> torch.device:
    """The device of a rank: its GPU where there are any, else the CPU; networks compute the same bits in every run."""
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    torch.backends.cudnn.allow_tf32 = False  # precision fp32 means what it says
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def digest_of(encoder: TrainedEncoder) -> str:
    """64 hexadecimal digits of all that decides an encoder's output: layers, input, weights. They are the same for a run's
    checkpoint and its export."""
    facts: Mapping[str, Any] = encoder.facts.to_mapping()
    seen = hashlib.sha256(json.dumps([facts[name] for name in ("layers", "side", "shorter_side", "mean", "divisor", "channels")]).encode())
    for name, tensor in sorted(encoder.weights.items()):
        seen.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        seen.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()
