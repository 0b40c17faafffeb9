"""How fast is a training step, beside a textbook's transcription of the same networks and losses?

Every side is a process of its own on the same cores, told by turns to take some steps: ours is the pipeline's own step, as the training
loop calls it; the transcription is benchmarks/transcription.py; a checkout of another commit may be a third. benchmarks/README.md has the
method.

    python -m benchmarks.step
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.machine import measured_here
from benchmarks.step_side import GIVEN
from pipeline import recipes
from pipeline.config import Config, parse
from pipeline.model.sample_random import keyed_dropout

ROOT = Path(__file__).resolve().parent.parent
BATCHES = {"features": 32, "inpainting": 64}
TARGETS = {"features": 1.15, "inpainting": 1.25}
BATCH_COUNT = 4  # batches in memory, which come again and again


class Child:
    """A side's process.

    Args:
        checkout: folder of the commit whose pipeline the side imports.
        wish: what the side is; see `benchmarks.step_side.opened`.
    """

    def __init__(self, checkout: Path, wish: Mapping[str, Any]) -> None:
        command = [sys.executable, "-P", str(ROOT / "benchmarks" / "step_side.py"), json.dumps(wish)]
        self._process = subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": str(checkout)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.facts = self._answer()

    def ask(self, request: str, count: int) -> dict[str, Any]:
        """Asks for something; see `benchmarks.step_side.REQUESTS`."""
        assert self._process.stdin is not None
        print(json.dumps([request, count]), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a side ended without an answer: its last words are above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()


def arguments_of(recipe: str, options: argparse.Namespace, batch: int) -> list[str]:
    """The pipeline's command line: the recipe's own configuration, with one batch-norm group a batch, as `nn.BatchNorm2d` has it."""
    found = ["--config", str(ROOT / "launch" / "configs" / f"{recipe}.yaml"), "--data.shards", "none"]
    found += ["--training.global_batch", str(batch), "--training.micro_batch", str(batch), "--method.batch_norm_group", str(batch)]
    found += ["--training.threads", str(options.threads), "--training.precision", options.precision]
    return found


def write_given(folder: Path, config: Config[Any], seed: int = 0) -> None:
    """Writes the pictures, masks, keys, dropout's choice and initial weights that all sides share."""
    recipe, batch = recipes.make(config.recipe, config.method, config.seed), config.training.global_batch
    side, draws = recipe.image_size, np.random.default_rng(seed)
    masks = np.empty((BATCH_COUNT, batch, side, side), np.bool_)
    for number, mask in enumerate(masks.reshape(-1, side, side)):
        assert recipe.mask is not None
        recipe.mask.draw(number, mask)
    noise = torch.from_numpy(draws.uniform(0, 255, (BATCH_COUNT * batch, 3, 8, 8))).float()
    smooth = torch.nn.functional.interpolate(noise, size=(side, side), mode="bicubic").clamp(0, 255).byte().permute(0, 2, 3, 1)
    keys = torch.from_numpy(draws.integers(-(2**63), 2**63 - 1, (BATCH_COUNT, batch)))
    given: dict[str, Tensor] = {"images": smooth.reshape(BATCH_COUNT, batch, side, side, 3).contiguous(), "masks": torch.from_numpy(masks)}
    given["keys"] = keys
    if config.recipe == "features":
        maps = recipe.players[0].network.encoder.channels
        ones = torch.ones(batch, maps, 6, 6)
        given["kept"] = torch.stack([keyed_dropout(ones, each, config.method.dropout) > 0 for each in keys])
    for player in recipe.players:
        for number, parameter in enumerate(player.network.parameters()):
            given[f"weight/{player.name}/{number:05d}"] = parameter.detach().contiguous().clone()
    save_file(given, folder / GIVEN)


def measure(recipe: str, options: argparse.Namespace) -> str:
    """Measures a recipe; returns its lines of the table."""
    batch = options.batch or BATCHES[recipe]
    arguments = arguments_of(recipe, options, batch)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="step-"))
        write_given(Path(folder), parse(recipes.SETTINGS, arguments))
        wish = {"recipe": recipe, "folder": folder, "threads": options.threads, "arguments": arguments, "sizes": {}, "kept": False}
        kinds = {"ours": ROOT, "transcription": ROOT, **({"before": options.before} if options.before else {})}
        children = {kind: stack.enter_context(Child(checkout, {**wish, "kind": kind})) for kind, checkout in kinds.items()}
        rates: dict[str, list[float]] = {kind: [] for kind in children}
        order = list(children)
        for _ in range(options.rounds):
            for kind in order:
                seconds = children[kind].ask("steps", options.steps)["seconds"]
                rates[kind].append(options.steps * batch / seconds)
            order = [*order[1:], order[0]]
    lines = []
    for kind in (kind for kind in rates if kind != "ours"):
        ratios = sorted(a / b for a, b in zip(rates["ours"], rates[kind], strict=True))
        middle = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
        lines.append(
            f"| {recipe} | {batch} | {kind} | {statistics.median(rates['ours']):.2f} | {statistics.median(rates[kind]):.2f} | {middle} |"
        )
    return "\n".join(lines)


def compare_losses(recipe: str, options: argparse.Namespace) -> str:
    """Takes the same steps on both sides; returns a line for each loss."""
    batch = options.batch or 8
    arguments = arguments_of(recipe, options, batch)
    with tempfile.TemporaryDirectory(prefix="step-") as folder:
        write_given(Path(folder), parse(recipes.SETTINGS, arguments))
        wish = {"recipe": recipe, "folder": folder, "threads": options.threads, "arguments": arguments, "sizes": {}, "kept": True}
        found = []
        for kind in ("ours", "transcription"):
            with Child(ROOT, {**wish, "kind": kind}) as child:
                found.append(child.ask("losses", options.losses)["losses"])
    lines = []
    for name in found[1][0]:
        differences = [abs(a[name] - b[name]) / abs(b[name]) for a, b in zip(*found, strict=True)]
        lines.append(
            f"| {recipe} | {name} | {found[1][0][name]:.4f} | {found[1][-1][name]:.4f} | {max(differences):.1e} | {differences[0]:.1e} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=list(BATCHES), action="append")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--losses", type=int, default=0)
    parser.add_argument("--before", type=Path)
    options = parser.parse_args(arguments)
    for recipe in options.recipe or list(BATCHES):
        if options.losses:
            print(compare_losses(recipe, options))
        else:
            print(measure(recipe, options))
    print(measured_here())
    return 0


if __name__ == "__main__":
    sys.exit(main())
