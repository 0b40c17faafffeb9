"""The processes of `benchmarks.step`: what all sides are given, and how one is started and asked."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.step_side import GIVEN
from pipeline import recipes
from pipeline.config import Config, TrainingConfig, parse
from pipeline.model.sample_random import keyed_dropout
from pipeline.recipes.player import Recipe
from pipeline.stream.decode.crop import CropRule
from pipeline.stream.decode.decoder import make_decoder
from pipeline.training.ranks import inherited

ROOT = Path(__file__).resolve().parent.parent
OURS, TEXTBOOK, BEFORE = "ours", "transcription", "before"
_BATCHES = 4  # batches in memory, which come again and again


class SideEnded(Exception):
    """A side ended without an answer; what it wrote on standard error says why."""


@dataclass(frozen=True)
class Settings:
    """Settings of a measurement.

    Attributes:
        recipe: features or inpainting.
        batch: pictures a step.
        threads: threads of torch, on the CPU.
        precision: training.precision of ours; the transcription is float32.
        compiled: mode of training.compile of ours.
        width: maps of the first convolution; None is the published network.
    """

    recipe: str
    batch: int
    threads: int = 2
    precision: str = "fp32"
    compiled: str = "off"
    width: int | None = None

    def arguments(self, checkout: Path = ROOT) -> list[str]:
        """The pipeline's command line: the recipe's own file, and a batch that is one group of batch norm, as `nn.BatchNorm2d` has it.

        Args:
            checkout: folder of the commit; another one than this may lack training.compile.
        """
        batch = str(self.batch)
        found = ["--config", str(checkout / "launch" / "configs" / f"{self.recipe}.yaml"), "--data.shards", "none"]
        found += ["--training.global_batch", batch, "--training.micro_batch", batch, "--method.batch_norm_group", batch]
        found += ["--training.threads", str(self.threads), "--training.precision", self.precision]
        if self.width:
            found += ["--method.width", str(self.width)]
            found += ["--method.bottleneck", str(8 * self.width)] if self.recipe == "inpainting" else []
        return [*found, "--training.compile", self.compiled] if self.compiled != "off" and checkout == ROOT else found

    def sizes(self) -> dict[str, int]:
        """The arguments of the transcription's networks."""
        if not self.width:
            return {}
        return {"width": self.width, **({"bottleneck": 8 * self.width} if self.recipe == "inpainting" else {})}

    def wish(self, kind: str, folder: Path, checkout: Path = ROOT, compares: bool = False, nudged: bool = False) -> dict[str, Any]:
        """Describes a side for `benchmarks.step_side.opened`.

        Args:
            kind: ours, transcription or before.
            folder: folder of the tensors that all sides are given.
            checkout: folder of the commit that the side imports.
            compares: losses are compared, so that dropout must choose the same values and TF32 is off.
            nudged: change the transcription's initial weights by a millionth, about as far as roundings carry.
        """
        return {
            "kind": kind,
            "recipe": self.recipe,
            "folder": str(folder),
            "threads": self.threads,
            "arguments": self.arguments(checkout),
            "sizes": self.sizes(),
            "same_dropout": compares,
            "nudged": nudged,
            "tf32": not compares,
            "bf16": self.precision == "bf16",
            "eager": kind != OURS or self.compiled == "off",
        }

    def config(self) -> Config[Any]:
        """The settings of ours as the pipeline reads them."""
        return parse(recipes.SETTINGS, self.arguments())


def can_compile() -> bool:
    """True if this commit has the setting training.compile."""
    return any(field.name == "compile" for field in dataclasses.fields(TrainingConfig))


def photographs() -> Path | None:
    """The folder of the photographs; None where there is none."""
    folder = Path(os.environ.get("CONTEXT_ENCODER_DATA", ROOT.parent / "shared" / "data")) / "imagenet_sample"
    return folder if folder.is_dir() else None


def write_given(folder: Path, config: Config[Any]) -> Recipe:
    """Writes the pictures, masks, keys, choices of dropout and initial weights that all sides share; returns the recipe."""
    recipe, batch = recipes.make(config.recipe, config.method, config.seed), config.training.global_batch
    masks = np.zeros((_BATCHES, batch, recipe.image_size, recipe.image_size), np.bool_)
    if recipe.mask is not None:
        for number, mask in enumerate(masks.reshape(-1, *masks.shape[2:])):
            recipe.mask.draw(number, mask)
    keys = torch.from_numpy(np.random.default_rng(0).integers(-(2**63), 2**63 - 1, (_BATCHES, batch)))
    pictures = _pictures(_BATCHES * batch, recipe.image_size).reshape(*masks.shape, 3)
    given: dict[str, Tensor] = {"images": torch.from_numpy(pictures), "masks": torch.from_numpy(masks), "keys": keys}
    if config.recipe == "features":
        ones = torch.ones(batch, recipe.players[0].network.get_submodule("encoder").channels, 6, 6)  # type: ignore[call-overload]
        given["kept"] = torch.stack([keyed_dropout(ones, each, config.method.dropout) > 0 for each in keys])
    for player in recipe.players:
        for number, parameter in enumerate(player.network.parameters()):
            given[f"weight/{player.name}/{number:05d}"] = parameter.detach().contiguous().clone()
    save_file(given, folder / GIVEN)
    return recipe


def _pictures(count: int, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Crops of the photographs, or smooth noise where there are none: uint8 (count, size, size, 3)."""
    found = np.empty((count, size, size, 3), np.uint8)
    folder = photographs()
    if folder is None:
        noise = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
        smooth = torch.nn.functional.interpolate(noise, size=(size, size), mode="bicubic").clamp(0, 255)
        return smooth.byte().permute(0, 2, 3, 1).contiguous().numpy()
    files = sorted(folder.glob("*.JPEG"))
    stored = [files[number % len(files)].read_bytes() for number in range(count)]
    bad = make_decoder("simplejpeg").crops(stored, list(found), CropRule("random_resized", True, 10**8), list(range(count)))
    if any(bad):
        raise SystemExit(f"{folder}: a photograph can't be decoded: {next(filter(None, bad))}")
    return found


class Child:
    """A side's process.

    Args:
        checkout: folder of the commit whose pipeline the side imports.
        wish: the side, see `Settings.wish`.

    Attributes:
        facts: `device`, the GPU's name; `program` and `batches`, bytes of the process before it read anything, and of the batches.

    Raises:
        SideEnded: the side could not start.
    """

    def __init__(self, checkout: Path, wish: Mapping[str, Any]) -> None:
        command = [sys.executable, "-P", str(ROOT / "benchmarks" / "step_side.py"), json.dumps(wish)]
        surroundings = {**os.environ, "PYTHONPATH": str(checkout)}
        if wish["kind"] == OURS:
            inherited.use_huge_pages(surroundings)  # as launch/pretrain.py does for its own process
        self._process = subprocess.Popen(command, env=surroundings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts = self._answer()

    def ask(self, request: str, count: int) -> dict[str, Any]:
        """Asks for something; see `benchmarks.step_side.answer`.

        Raises:
            SideEnded: the side ended.
        """
        if self._process.stdin is None:
            raise SideEnded("has no input")
        print(json.dumps([request, count]), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            raise SideEnded(f"a side ended with status {self._process.wait()} and without an answer")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()
