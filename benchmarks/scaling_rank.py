"""One rank of benchmarks/scaling.py: measures steps alone, apart and together, and counts what a step sends. Rank 0 writes JSON.

accelerate launch --config_file launch/accelerate/cpu.yaml benchmarks/scaling_rank.py --output FILE --config FILE.yaml ...
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline import recipes
from pipeline.config import Config, parse
from pipeline.recipes.player import Recipe
from pipeline.stream.loader import Batch
from pipeline.training.engine.engine import Engine
from pipeline.training.ranks.world import World, join
from pipeline.training.reporting.flops import flops_per_image
from pipeline.training.resume import build_engines
from pipeline.training.step import TrainStep

_COLLECTIVES = {
    "all_reduce": "all_reduce",
    "reduce_scatter_tensor": "reduce_scatter",
    "all_gather_into_tensor": "all_gather",
    "all_gather": "all_gather",
    "reduce": "reduce",
    "broadcast": "broadcast",
}
"""Function of torch.distributed -> key of benchmarks.scaling_model.SENT."""


class Alone(World):
    """A rank that believes to be the only one: nothing is wrapped and nothing is summed."""

    @classmethod
    def of(cls, world: World) -> Alone:
        """Returns the rank alone."""
        values = {item.name: getattr(world, item.name) for item in fields(World)}
        return cls(**{**values, "rank": 0, "size": 1, "local_rank": 0, "local_size": 1})

    def wrap(self, network: nn.Module) -> nn.Module:
        return network.to(self.device)


class Count:
    """Counts collectives that Python code starts, while `on`. DDP's own are counted by `Buckets`.

    Attributes:
        calls: (kind, bytes of the whole tensor, whether it runs beside the computation) of each call.
    """

    def __init__(self) -> None:
        self.on = False
        self.calls: list[tuple[str, int, bool]] = []
        for name, kind in _COLLECTIVES.items():
            setattr(dist, name, self._counted(getattr(dist, name), name, kind))

    def _counted(self, call: Callable[..., Any], name: str, kind: str) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            if self.on:
                given = [*arguments, *named.values()]
                tensors = [each for each in given[:2] if isinstance(each, Tensor)]
                pieces = arguments[0] if name == "all_gather" else tensors
                size = sum(map(_bytes, pieces)) if name == "all_gather" else max(map(_bytes, tensors))
                self.calls.append((kind, size, bool(named.get("async_op"))))
            return call(*arguments, **named)

        return counted


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class Buckets:
    """Notes when the buckets of one player's DDP are complete, in steps in which nothing is sent.

    Args:
        engine: engine of the player, replicated on several ranks.
    """

    def __init__(self, engine: Engine) -> None:
        self.sizes: list[int] = []
        self.moments: list[Any] = []
        self._began: Any = None
        self._backward = engine.backward
        engine.backward = self._timed  # type: ignore[method-assign]
        # a function without annotations, because torch refuses those that are text
        engine.wrapped.register_comm_hook(None, lambda _, bucket: self._complete(bucket))  # type: ignore[operator]

    def _timed(self, loss: Tensor) -> None:
        self.sizes, self.moments = [], []
        self._began = _mark()
        self._backward(loss)

    def _complete(self, bucket: Any) -> torch.futures.Future[Tensor]:
        self.sizes.append(_bytes(bucket.buffer()))
        self.moments.append(_mark())
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    def found(self, step: float) -> dict[str, Any]:
        """Returns the fraction of the step that the backward pass takes, and the size and the moment of each bucket.

        Args:
            step: seconds of the step.
        """
        seconds = [_between(self._began, moment) for moment in self.moments]
        pairs = zip(self.sizes, seconds, strict=True)
        return {"backward": min(1.0, seconds[-1] / step), "buckets": [[size, moment / seconds[-1]] for size, moment in pairs]}


def _on_gpu() -> bool:
    return torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in {"1", "true", "yes"}


def _mark() -> Any:
    """Marks this moment in the order of the device's work."""
    if not _on_gpu():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(start: Any, end: Any) -> float:
    return float(end - start) if isinstance(start, float) else float(start.elapsed_time(end)) / 1000


class Training:
    """The step of a run on batches of noise in memory, alone or together with the other ranks.

    Args:
        config: settings of the run.
        recipe: recipe with its players.
        world: all ranks, or this one alone.
        stack: closes the engines.
    """

    def __init__(self, config: Config[Any], recipe: Recipe, world: World, stack: ExitStack) -> None:
        self._training, self._recipe, self._world = config.training, recipe, world
        self.engines = [stack.enter_context(each) for each in build_engines(recipe, None, world, config.training)]

    def steps(self, pictures: int) -> Callable[[int], None]:
        """Returns a function that takes steps of so many pictures a rank."""
        batch = noise(self._recipe, pictures)
        training = replace(self._training, global_batch=pictures * self._world.size)
        step = TrainStep(self._recipe, self.engines, self._world, training)

        def take(count: int) -> None:
            for _ in range(count):
                summing = self._world.start_sum(torch.zeros(4, dtype=torch.int64))  # as the loop does
                step(batch, 1e-3)
                self._world.finish(summing)
            _synchronise()

        return take


def noise(recipe: Recipe, pictures: int) -> Batch:
    """Makes a batch of noise with a square hole."""
    side = recipe.image_size
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (pictures, side, side, 3), dtype=torch.uint8, generator=generator)
    masks = torch.zeros(pictures, side, side, dtype=torch.bool)
    masks[:, side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = True
    if _on_gpu():
        images, masks = images.pin_memory(), masks.pin_memory()
    numbers = torch.arange(pictures)
    return Batch(images, masks, torch.zeros_like(numbers), numbers, 0, 0, numbers)


def _synchronise() -> None:
    if _on_gpu():
        torch.cuda.synchronize()


def _meet(world: World, seconds: float = 0.0) -> float:
    """Waits for all ranks, and returns the largest of their numbers."""
    largest = torch.tensor(seconds, dtype=torch.float64)
    if world.size > 1:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return float(largest)


def _timed(world: World, take: Callable[[int], None], count: int, takes_part: bool = True) -> float:
    """Returns the seconds of a step on the slowest rank; ranks that do not take part wait meanwhile."""
    if takes_part:
        take(1)
    _meet(world)
    began = time.perf_counter()
    if takes_part:
        take(count)
    return _meet(world, (time.perf_counter() - began if takes_part else 0.0) / count)


def _links(world: World) -> dict[str, float]:
    """Measures the all-reduce of the devices and that of the processors: seconds a hop, and bytes a second of a ring."""
    found, ranks = {}, world.size
    devices = {"device": world.device, "host": torch.device("cpu")}
    for name, device in devices.items():
        for size, count in {4: 200, 1 << 22: 5}.items():
            values = torch.zeros(size, device=device)
            dist.all_reduce(values)
            _synchronise()
            _meet(world)
            began = time.perf_counter()
            for _ in range(count):
                dist.all_reduce(values)
            _synchronise()
            seconds = _meet(world, (time.perf_counter() - began) / count)
            found[f"{name}_latency" if size == 4 else f"{name}_bandwidth"] = (
                seconds / (2 * (ranks - 1)) if size == 4 else 2 * (ranks - 1) / ranks * _bytes(values) / seconds
            )
    return found


def measure(config: Config[Any], world: World, count: Count, options: argparse.Namespace, stack: ExitStack) -> dict[str, Any]:
    """Measures one configuration on these ranks, the kinds of step taking turns in rounds; see benchmarks/README.md."""
    recipe = recipes.make(config.recipe, config.method, config.seed)
    batch, unit = config.training.global_batch, recipe.unit
    share = batch // unit // max(2, world.size) * unit
    other = share or 2 * batch  # a second size, to tell what a step costs beside its pictures
    found: dict[str, Any] = {"flops": flops_per_image(recipe), "batch": batch, "other": other, "ranks": world.size}
    alone = Training(config, recipes.make(config.recipe, config.method, config.seed), Alone.of(world), stack)
    kinds = {"one": (alone.steps(batch), world.is_first), "one, other": (alone.steps(other), world.is_first)}
    if world.size > 1:
        together = Training(config, recipe, world, stack)
        kinds |= {"apart": (alone.steps(batch), True), "weak": (together.steps(batch), True)}
        if share * world.size == batch:
            kinds["strong"] = (together.steps(share), True)
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    names = list(kinds)
    for number in range(options.rounds):
        for name in (*names[number % len(names) :], *names[: number % len(names)]):
            seconds[name].append(_timed(world, kinds[name][0], options.steps, kinds[name][1]))
    found["seconds"] = seconds
    if world.size > 1:
        found |= _links(world) | counted(together, batch, count)
    return found


def counted(together: Training, pictures: int, count: Count) -> dict[str, Any]:
    """Counts the collectives of a step, and of a DDP also its buckets, in steps that send no gradient."""
    replicated = [each for each in together.engines if hasattr(each.wrapped, "register_comm_hook")]
    buckets = [Buckets(each) for each in replicated]
    take = together.steps(pictures)
    take(1)
    count.on, began = True, time.perf_counter()
    take(1)
    count.on, seconds = False, time.perf_counter() - began
    return {"calls": count.calls, "turns": [each.found(seconds) for each in buckets]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and writes the file."""
    parser = argparse.ArgumentParser(description="One rank of benchmarks/scaling.py.")
    parser.add_argument("--output", type=Path, required=True, help="file that rank 0 writes")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each kind of step; 0 counts alone")
    parser.add_argument("--steps", type=int, default=3, help="steps of a measurement")
    options, settings = parser.parse_known_args(arguments)
    config = parse(recipes.SETTINGS, [*settings, "--data.shards", "none"])
    count = Count()
    with ExitStack() as stack:
        world = stack.enter_context(join(config.training))
        if options.rounds:
            found = measure(config, world, count, options, stack)
        else:
            recipe = recipes.make(config.recipe, config.method, config.seed)
            found = counted(Training(config, recipe, world, stack), config.training.micro_batch, count)
        if world.is_first:
            options.output.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
