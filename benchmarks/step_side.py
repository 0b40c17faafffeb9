"""One side of `benchmarks.step`: a process that holds one training step, and answers requests on standard input, a JSON line each.

It is run by its path, with PYTHONPATH choosing the checkout whose pipeline it trains with, so that two commits take turns on one machine.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor, nn

GIVEN = "given.safetensors"
"""File of the pictures, masks, keys, choices of dropout and initial weights that all sides share."""
_SQUARE = {"cpu": 2048, "cuda": 8192}  # side of the matrices whose product is the ceiling


class Side(Protocol):
    """A training step with its networks.

    Attributes:
        networks: networks by the players' names.
        device: device of the networks.
        batches: bytes of the batches in memory.
    """

    networks: dict[str, nn.Module]
    device: torch.device
    batches: int

    def step(self, wants_losses: bool = False) -> dict[str, float]:
        """Takes the next step.

        Args:
            wants_losses: return the losses of this very step by `player/part`.
        """
        ...

    def parts(self) -> list[tuple[Any, str, str]]:
        """Lists (object, method, name) of the methods that the table of layers shows by that name."""
        ...


class Pipeline:
    """The pipeline's own step, as its training loop calls it.

    Args:
        given: the shared tensors.
        config: settings of the run.
        world: ranks of the run, which is this process alone.
    """

    def __init__(self, given: Mapping[str, Tensor], config: Any, world: Any) -> None:
        from pipeline import recipes  # noqa: PLC0415 - of the checkout that PYTHONPATH chose; the transcription does without
        from pipeline.stream.loader import Batch  # noqa: PLC0415
        from pipeline.training.resume import build_engines  # noqa: PLC0415
        from pipeline.training.step import TrainStep, rate_factor  # noqa: PLC0415

        recipe = recipes.make(config.recipe, config.method, config.seed)
        self._step = TrainStep(recipe, build_engines(recipe, None, world, config.training), world, config.training)
        self._config, self._rate, self._taken = config, rate_factor, 0
        ids = torch.arange(given["keys"].shape[1])
        rows = zip(given["images"], given["masks"], given["keys"], strict=True)
        self._batches = [Batch(images, masks, None, ids, 0, index, keys) for index, (images, masks, keys) in enumerate(rows)]
        self._start, self._arrive = _copies(world.device)
        self._next = self._start(self._batches[0])
        self.device, self.batches = world.device, sum(value.nbytes for value in given.values())
        self.networks = {player.name: player.network for player in recipe.players}

    def step(self, wants_losses: bool = False) -> dict[str, float]:
        """Takes the next step; see `Side`. Losses are read as often as the training loop reads them."""
        began, phases, batch = time.perf_counter(), self._step.phases, self._next
        self._next = self._start(self._batches[(self._taken + 1) % len(self._batches)])
        phases.begin()
        self._arrive(batch, phases)
        rate = self._rate(self._config.schedule, self._taken, self._config.training.steps)
        result = self._step(batch, rate)
        phases.end(time.perf_counter() - began)
        self._taken += 1
        if wants_losses or self._taken % self._config.training.log_every == 0:
            phases.read()
            return {f"{player}/{part}": value for player, parts in result.read().items() for part, value in parts.items()}
        return {}

    def parts(self) -> list[tuple[Any, str, str]]:
        """Lists what the table of layers shows besides layers; see `Side`."""
        return [(self._step, "views", "views"), *((engine, "update", "update") for engine in self._step.engines)]


def _copies(device: torch.device) -> tuple[Callable[[Any], Any], Callable[[Any, Any], None]]:
    """How a batch goes to a GPU beside the step before: the start of its copy and its arrival. Older commits copy it in the step."""
    try:
        ahead = importlib.import_module("pipeline.training.device_batches")
    except ModuleNotFoundError:
        ahead = None
    copies = ahead.DeviceCopies.to(device) if ahead else None
    if ahead is None or copies is None:
        return lambda batch: batch, lambda batch, phases: None  # noqa: ARG005
    return copies.start, ahead.arrive


class Transcription:
    """The textbook's step.

    Args:
        given: the shared tensors.
        textbook: recipe of benchmarks/transcription.py with its networks.
    """

    def __init__(self, given: Mapping[str, Tensor], textbook: Any) -> None:
        self._textbook, self._given, self._taken = textbook, given, 0
        self.networks, self.device = textbook.networks, textbook.device
        self.batches = sum(value.nbytes for value in given.values())

    def step(self, wants_losses: bool = False) -> dict[str, float]:  # noqa: ARG002 - a textbook reads its losses in every step
        """Takes the next step; see `Side`."""
        index = self._taken % len(self._given["images"])
        self._taken += 1
        kept = self._given["kept"][index].float().to(self.device) if "kept" in self._given else None
        losses: dict[str, float] = self._textbook.step(self._given["images"][index], self._given["masks"][index], kept)
        return losses

    def parts(self) -> list[tuple[Any, str, str]]:
        """Lists nothing; see `Side`."""
        return []


def read_given(folder: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """Reads the shared tensors whose names are wanted."""
    with safe_open(folder / GIVEN, "pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys() if wanted(name)}  # noqa: SIM118 - not a dict


def transcribed(wish: Mapping[str, Any], device: torch.device) -> Transcription:
    """Makes the transcription of a recipe with the shared weights.

    Args:
        wish: the side, see `benchmarks.step_run.Settings.wish`.
        device: device of the networks.
    """
    from benchmarks.transcription import TEXTBOOK, copy_weights  # noqa: PLC0415 - the pipeline's side does without

    folder, textbook = Path(wish["folder"]), TEXTBOOK[wish["recipe"]](device, **wish["sizes"])
    weights = read_given(folder, lambda name: name.startswith("weight/"))
    players: dict[str, list[Tensor]] = {}
    for name in sorted(weights):
        players.setdefault(name.split("/")[1], []).append(weights[name])
    copy_weights(textbook, players)
    if wish["nudged"]:
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in (each for network in textbook.networks.values() for each in network.parameters()):
                parameter.mul_(1 + 1e-6 * torch.randn_like(parameter).sign())
    # to compare losses, dropout takes the values that the pipeline drops; otherwise it is `nn.Dropout`
    return Transcription(read_given(folder, ["images", "masks", *(["kept"] if wish["same_dropout"] else [])].__contains__), textbook)


@contextmanager
def opened(wish: Mapping[str, Any]) -> Iterator[Side]:
    """Makes a side.

    Args:
        wish: the side, see `benchmarks.step_run.Settings.wish`.
    """
    torch.backends.cudnn.allow_tf32 = wish["tf32"]
    if wish["kind"] == "transcription":
        torch.set_num_threads(wish["threads"])
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        yield transcribed(wish, device)
        return
    settings, recipes = importlib.import_module("pipeline.config"), importlib.import_module("pipeline.recipes")
    config = settings.parse(recipes.SETTINGS, wish["arguments"])
    with importlib.import_module("pipeline.training.ranks.world").join(config.training) as world:
        given = read_given(Path(wish["folder"]), ["images", "masks", "keys"].__contains__)
        if world.device.type == "cuda":
            given = {name: value.pin_memory() for name, value in given.items()}
        yield Pipeline(given, config, world)


def finished(device: torch.device) -> float:
    """Waits for the device; returns the seconds of a clock."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def steps(side: Side, count: int) -> dict[str, Any]:
    """Takes a step that is not measured, then `count` that are; returns their seconds."""
    side.step()
    began = finished(side.device)
    for _ in range(count):
        side.step()
    return {"seconds": finished(side.device) - began}


def losses(side: Side, count: int) -> dict[str, Any]:
    """Takes `count` steps; returns the losses of each."""
    return {"losses": [side.step(wants_losses=True) for _ in range(count)]}


def ceiling(side: Side, count: int, kind: torch.dtype) -> dict[str, Any]:
    """Multiplies large square matrices; returns the most floating-point operations a second of `count` products."""
    rows = _SQUARE[side.device.type]
    first, second = (torch.randn(rows, rows, device=side.device, dtype=kind) for _ in range(2))
    torch.mm(first, second)
    found = 0.0
    for _ in range(count):
        began = finished(side.device)
        torch.mm(first, second)
        found = max(found, 2 * rows**3 / (finished(side.device) - began))
    return {"flops": found}


def answer(side: Side, request: str, count: int, wish: Mapping[str, Any]) -> dict[str, Any]:
    """Answers a request: steps, losses, ceiling, memory or layers."""
    found: dict[str, Any]
    if request == "ceiling":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32  # convolutions use TF32 where it is allowed them
        return ceiling(side, count, torch.bfloat16 if wish["bf16"] else torch.float32)
    if request == "memory":
        found = importlib.import_module("benchmarks.step_memory").measured(side, count, wish["eager"])
        return found
    if request == "layers":
        found = importlib.import_module("benchmarks.step_layers").measured(side, count)
        return found
    return {"steps": steps, "losses": losses}[request](side, count)


def main() -> None:
    """Answers the requests until standard input ends, on the standard output that the process started with."""
    wish, answers = json.loads(sys.argv[1]), sys.stdout
    sys.stdout = sys.stderr  # what a library prints must not get between the answers
    if wish["kind"] != "transcription":
        for package in ("shards", "monitoring", "pipeline.training.step", "pipeline.training.resume"):
            importlib.import_module(package)  # of the checkout that PYTHONPATH chose
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the benchmarks are those of this file
    memory = importlib.import_module("benchmarks.step_memory")
    program = memory.resident(peak=False)
    with opened(wish) as side:
        memory.forget_peak(side.device)
        facts = {"device": _name(side.device), "program": program, "batches": side.batches}
        print(json.dumps(facts), file=answers, flush=True)
        for line in sys.stdin:
            request, count = json.loads(line)
            print(json.dumps(answer(side, request, count, wish)), file=answers, flush=True)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


if __name__ == "__main__":
    main()
