"""All that a user must know of an encoder: its layers, its input, its training and its scores; as plain values in files, and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from monitoring.run_files import json_text
from pipeline.evaluation.architecture import EncoderInvalid, Layer
from pipeline.recipes.pixels import PixelScale
from shards.dataset.pixels import to_rgb

FORMAT = "context-encoder"
Origin = Literal["data set", "option", "assumed"]
"""Source from which the scale of the training's pictures is known."""
_ASSUMED_RATIO = 256 / 227  # of a stored picture's shorter side to the crop, as in Caffe's AlexNet
_TEXTS = frozenset({"format", "recipe", "player", "layout", "channels", "torch", "version", "shorter_side_from"})


@dataclass(frozen=True)
class Transform:
    """The way from pixels to the input of an encoder: (value - mean) / divisor in R, G, B.

    Attributes:
        side: side of the square input in pixels.
        mean: mean of R, G, B, on the scale 0 to 255.
        divisor: divisor of the centred values.
        channels: order of the channels, always RGB.
        fill: R, G, B that stood for missing pixels in training, on the scale 0 to 255.
        shorter_side: shorter side that `picture` resizes to before it cuts out the middle, in pixels; training saw pictures at that scale.
    """

    side: int
    mean: tuple[float, float, float]
    divisor: float
    fill: tuple[float, float, float]
    channels: str
    shorter_side: int

    def __call__(self, images: Tensor) -> Tensor:
        """Turns uint8 (n, side, side, 3) into float32 (n, 3, side, side), on the device of `images`; the memory stays channels last.

        Raises:
            ValueError: other shapes or types; `picture` takes pictures of any size.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != (self.side, self.side, 3):
            raise ValueError(
                f"pictures: {images.dtype} {tuple(images.shape)} is not uint8 (n, {self.side}, {self.side}, 3). "
                "Transform.picture takes a picture of any size"
            )
        return PixelScale(self.mean, self.divisor).normalise(images)

    def picture(self, picture: Image.Image | Path | str) -> Tensor:
        """Turns a picture of any size into float32 (1, 3, side, side): turned upright, made RGB, resized to `shorter_side`, middle cut out.

        Args:
            picture: picture of Pillow, or path of a picture's file.

        Raises:
            EncoderInvalid: the file is no picture that can be read.
        """
        if isinstance(picture, Image.Image):
            return self._prepared(picture)
        try:
            with Image.open(picture) as opened:
                upright = to_rgb(ImageOps.exif_transpose(opened))
        except Exception as error:  # decoders raise errors of any type for damaged files
            raise EncoderInvalid(f"{picture}: can't be read as a picture ({' '.join(str(error).split())})") from error
        return self._prepared(upright)

    def _prepared(self, picture: Image.Image) -> Tensor:
        rgb = to_rgb(ImageOps.exif_transpose(picture))
        scale = max(self.side, self.shorter_side) / min(rgb.size)
        width, height = (max(self.side, round(length * scale)) for length in rgb.size)
        if (width, height) != rgb.size:
            rgb = rgb.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.side) // 2, (height - self.side) // 2
        return self(torch.from_numpy(np.array(rgb.crop((left, top, left + self.side, top + self.side))))[None])


@dataclass(frozen=True)
class EncoderFacts:
    """The facts of an encoder, as they stand in the metadata of its files.

    Attributes:
        layers: layers in their order, with their names and arguments.
        side: side of the square input in pixels.
        mean: mean of R, G, B that is subtracted, on the scale 0 to 255.
        divisor: divisor of the centred values.
        fill: R, G, B that stood for missing pixels in training, on the scale 0 to 255.
        shorter_side: shorter side, in pixels, that a picture is resized to before its middle is cut out: the scale of the training.
        shorter_side_from: where that scale is known from: "data set", the training's own; "option", `--stored-side` of an export;
            "assumed", by `assumed_side`.
        output: maps, height and width of the output.
        recipe: pretext task that the encoder learned by.
        player: network of the recipe that the encoder is a part of.
        method: settings of the recipe.
        layout: layout of the network, caffenet or torchvision; empty where the recipe has no choice.
        step: number of training steps.
        global_batch: pictures a step.
        seed: seed of the run.
        data_sets: fingerprint of each data set in 16 hexadecimal digits, by its name in data.sources; by "" where there is one.
        scores: row of the newest evaluation on held-back pictures up to this step, as in the run's evaluation.jsonl; None without one.
        start: row of the evaluation at step 0, the random start; None without one on the pictures of `scores`.
        torch: version of torch that trained.
        version: version of this package that exported.
        channels: order of the channels, always RGB.
    """

    layers: tuple[Layer, ...]
    side: int
    mean: tuple[float, float, float]
    divisor: float
    fill: tuple[float, float, float]
    shorter_side: int
    shorter_side_from: Origin
    output: tuple[int, int, int]
    recipe: str
    player: str
    method: Mapping[str, Any]
    layout: str
    step: int
    global_batch: int
    seed: int
    data_sets: Mapping[str, str]
    scores: Mapping[str, Any] | None = None
    start: Mapping[str, Any] | None = None
    torch: str = ""
    version: str = ""
    channels: str = "RGB"

    @property
    def names(self) -> list[str]:
        """Names of the layers in their order."""
        return [layer.name for layer in self.layers]

    @property
    def transform(self) -> Transform:
        """The way from pixels to the input."""
        return Transform(self.side, self.mean, self.divisor, self.fill, self.channels, self.shorter_side)

    def to_mapping(self) -> dict[str, Any]:
        """Returns the facts as plain values, for JSON."""
        plain = {item.name: getattr(self, item.name) for item in fields(self)}
        plain["layers"] = [{"name": layer.name, "kind": layer.kind, "arguments": dict(layer.arguments)} for layer in self.layers]
        return {"format": FORMAT, **plain}

    def to_metadata(self) -> dict[str, str]:
        """Returns the facts as texts by name, as the metadata of safetensors and ONNX want them: words as they are, all else as JSON with
        null for figures that are not finite."""
        return {name: value if name in _TEXTS else json_text(value) for name, value in self.to_mapping().items()}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str) -> EncoderFacts:
        """Reads the facts from plain values, as `to_mapping` gives them.

        Args:
            values: facts by name.
            where: the file as the error names it.

        Raises:
            EncoderInvalid: these are not the facts of an encoder, or a fact is missing or of the wrong type.
        """
        if values.get("format") != FORMAT:
            raise EncoderInvalid(f"{where}: holds no encoder of launch/export.py (its format is {values.get('format')!r}, not {FORMAT!r})")
        try:
            layers = tuple(Layer(str(each["name"]), str(each["kind"]), dict(each["arguments"])) for each in values["layers"])
            if not layers:
                raise ValueError("layers: the list is empty")
            checked: dict[str, Any] = {
                **{name: str(values[name]) for name in ("recipe", "player", "layout", "torch", "version", "channels")},
                **{name: int(values[name]) for name in ("side", "shorter_side", "step", "global_batch", "seed")},
                **{name: _three(values[name], float) for name in ("mean", "fill")},
                **{name: dict(values[name]) for name in ("method", "data_sets")},
                **{name: None if values[name] is None else dict(values[name]) for name in ("scores", "start")},
                "divisor": float(values["divisor"]),
                "shorter_side_from": _origin(values["shorter_side_from"]),
                "output": _three(values["output"], int),
            }
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
            raise EncoderInvalid(_damaged(where, reason)) from error
        return cls(layers=layers, **checked)

    @classmethod
    def from_metadata(cls, texts: Mapping[str, str], where: str) -> EncoderFacts:
        """Reads the facts from texts by name, as `to_metadata` gives them.

        Raises:
            EncoderInvalid: as `from_mapping`.
        """
        try:
            known = {"format", *(item.name for item in fields(cls))}  # other programs may add their own
            values = {name: text if name in _TEXTS else json.loads(text) for name, text in texts.items() if name in known}
        except ValueError as error:
            raise EncoderInvalid(_damaged(where, str(error))) from error
        return cls.from_mapping(values, where)


def assumed_side(side: int) -> int:
    """Shorter side of pictures where that of the training is not known: 256 for an input of 227 as in Caffe, and in proportion for others.

    Args:
        side: side of the encoder's input in pixels.
    """
    return round(side * _ASSUMED_RATIO)


def _origin(value: Any) -> Origin:
    if value not in get_args(Origin):
        raise ValueError(f"shorter_side_from: {value!r} is none of {', '.join(get_args(Origin))}")
    origin: Origin = value
    return origin


def _three(values: Any, kind: Callable[[Any], Any]) -> tuple[Any, Any, Any]:
    first, second, third = map(kind, values)
    return first, second, third


def _damaged(where: str, reason: str) -> str:
    return f"{where}: the facts of the encoder are damaged: {reason}. Export it anew with launch/export.py"
