"""One side of `benchmarks.step`: a process that holds one training step, and answers requests on standard input, a JSON line each.

It is run by its path, with PYTHONPATH choosing the checkout whose pipeline it trains with, so that two commits take turns on one machine.
So it imports of the benchmarks only the transcription, for that side alone, and knows of the pipeline only what older commits have too.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

GIVEN = "given.safetensors"
"""File of the pictures, masks, keys and initial weights that all sides share."""


class Side(Protocol):
    """A training step with its networks.

    Attributes:
        networks: networks by the players' names.
    """

    networks: dict[str, nn.Module]

    def step(self, wants_losses: bool) -> dict[str, float]:
        """Takes the next step.

        Args:
            wants_losses: return the losses of this very step by `player/part`.
        """
        ...


class Pipeline:
    """The pipeline's own step, as its training loop calls it.

    Args:
        wish: what the benchmark asked for.
        given: the shared tensors.
        world: ranks of the run, which is this process alone.
        config: settings of the run.
    """

    def __init__(self, given: Mapping[str, Tensor], config: Any, world: Any) -> None:
        from pipeline import recipes  # noqa: PLC0415 - the checkout that PYTHONPATH chose; the transcription's side has none
        from pipeline.stream.loader import Batch  # noqa: PLC0415
        from pipeline.training.resume import build_engines  # noqa: PLC0415
        from pipeline.training.step import TrainStep, rate_factor  # noqa: PLC0415

        recipe = recipes.make(config.recipe, config.method, config.seed)
        self._step = TrainStep(recipe, build_engines(recipe, None, world, config.training), world, config.training)
        self._config, self._rate, self._taken = config, rate_factor, 0
        pinned = torch.Tensor.pin_memory if world.device.type == "cuda" else torch.Tensor.contiguous
        rows = [[pinned(part) for part in parts] for parts in zip(given["images"], given["masks"], given["keys"], strict=True)]
        ids = torch.arange(given["keys"].shape[1])
        self._batches = [Batch(images, masks, None, ids, 0, index, keys) for index, (images, masks, keys) in enumerate(rows)]
        self.networks = {player.name: player.network for player in recipe.players}

    def step(self, wants_losses: bool) -> dict[str, float]:
        """Takes the next step; see `Side`. Losses are read as often as the training loop reads them."""
        began, phases = time.perf_counter(), self._step.phases
        phases.begin()
        rate = self._rate(self._config.schedule, self._taken, self._config.training.steps)
        result = self._step(self._batches[self._taken % len(self._batches)], rate)
        phases.end(time.perf_counter() - began)
        self._taken += 1
        if wants_losses or self._taken % self._config.training.log_every == 0:
            phases.read()
            return {f"{player}/{part}": value for player, parts in result.read().items() for part, value in parts.items()}
        return {}


class Transcription:
    """The textbook's step.

    Args:
        given: the shared tensors.
        recipe: name of the recipe.
        sizes: arguments of the transcription's networks.
        device: device of the networks.
        kept: take the values that dropout keeps from `given`, so that the losses can be compared.
    """

    def __init__(self, given: Mapping[str, Tensor], recipe: str, sizes: Mapping[str, int], device: torch.device, kept: bool) -> None:
        from benchmarks.transcription import TEXTBOOK, copy_weights  # noqa: PLC0415 - an older checkout lacks it

        self._textbook = TEXTBOOK[recipe](device, **sizes)
        copy_weights(self._textbook, weights_of(given))
        self.networks, self._given, self._taken = self._textbook.networks, given, 0
        self._kept = given["kept"].float().to(device) if kept and "kept" in given else None

    def step(self, wants_losses: bool) -> dict[str, float]:  # noqa: ARG002 - a textbook reads its losses in every step
        """Takes the next step; see `Side`."""
        index = self._taken % len(self._given["images"])
        self._taken += 1
        return self._textbook.step(
            self._given["images"][index], self._given["masks"][index], None if self._kept is None else self._kept[index]
        )


def weights_of(given: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    """The initial parameters of each player in the order of its network, from their names `weight/PLAYER/NUMBER`."""
    found: dict[str, list[Tensor]] = {}
    for key in sorted(key for key in given if key.startswith("weight/")):
        found.setdefault(key.split("/")[1], []).append(given[key])
    return found


@contextmanager
def opened(wish: Mapping[str, Any]) -> Iterator[tuple[Side, torch.device]]:
    """Makes a side.

    Args:
        wish: kind, recipe, folder, threads, arguments of the pipeline's command line, sizes, kept; see `benchmarks.step`.

    Yields:
        The side and its device.
    """
    given = load_file(Path(wish["folder"]) / GIVEN)
    if wish["kind"] == "transcription":
        torch.set_num_threads(wish["threads"])
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        yield Transcription(given, wish["recipe"], wish["sizes"], device, wish["kept"]), device
        return
    from pipeline import config as settings, recipes  # noqa: PLC0415, I001
    from pipeline.training.ranks.world import join  # noqa: PLC0415

    config = settings.parse(recipes.SETTINGS, wish["arguments"])
    with join(config.training) as world:
        yield Pipeline(given, config, world), world.device


def finished(device: torch.device) -> float:
    """Waits for the device; returns the seconds of a clock."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def steps(side: Side, device: torch.device, count: int) -> dict[str, Any]:
    """Takes a step that is not measured, then `count` that are; returns their seconds."""
    side.step(wants_losses=False)
    began = finished(device)
    for _ in range(count):
        side.step(wants_losses=False)
    return {"seconds": finished(device) - began}


def losses(side: Side, device: torch.device, count: int) -> dict[str, Any]:  # noqa: ARG001
    """Takes `count` steps; returns the losses of each."""
    return {"losses": [side.step(wants_losses=True) for _ in range(count)]}


REQUESTS: dict[str, Callable[[Side, torch.device, int], dict[str, Any]]] = {"steps": steps, "losses": losses}


def main() -> None:
    """Answers the requests until standard input ends. The answers go to the standard output that the process started with."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints must not get between the answers
    with opened(json.loads(sys.argv[1])) as (side, device):
        print(json.dumps({"torch": torch.__version__, "device": str(device)}), file=answers, flush=True)
        for line in sys.stdin:
            request, count = json.loads(line)
            print(json.dumps(REQUESTS[request](side, device, count)), file=answers, flush=True)


if __name__ == "__main__":
    main()
