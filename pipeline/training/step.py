"""One step: every player takes its turn on the batch, in micro-batches that fit the device.

Every loss is a mean over the samples of the global batch. A rank scales its part by ranks / batch, so that DDP's average over the ranks is
exactly that mean, however uneven the ranks' slices of the batch are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pipeline.config import Config, ScheduleConfig, TrainingConfig
from pipeline.mapping import ConfigError
from pipeline.model.batch_norm import discard_statistics, fold_statistics
from pipeline.recipes.player import PAINTING, Losses, Networks, PaintingRecipe, Paintings, Recipe, Views
from pipeline.stream.dataset import Dataset
from pipeline.stream.loader import Batch
from pipeline.stream.order import rank_slice
from pipeline.training.device_batches import host_labels
from pipeline.training.engine.engine import MEMORY_FORMATS, Engine, evaluating
from pipeline.training.labels import refuse_labels
from pipeline.training.phases import Phases
from pipeline.training.ranks.world import World
from shards.counting import counted
from shards.errors import ExplainedError


class NonFiniteError(ExplainedError):
    """Too many steps in a row had a gradient that is not finite."""


@dataclass
class StepResult:
    """Losses and gradient norms of one step. They stay on the device, the losses summed over the ranks, so that reading them can wait.

    Attributes:
        names: (player, part) of each loss; the part `total` is the loss that was minimised.
        losses: float64 (len(names),), means over the global batch.
        norms: gradient norm by player, before clipping, float32 (). The weights of a player whose norm is not finite stay as they were.
    """

    names: list[tuple[str, str]] = field(default_factory=list)
    losses: Tensor | None = None
    norms: dict[str, Tensor] = field(default_factory=dict)

    def read(self) -> dict[str, dict[str, float]]:
        """Returns the losses as numbers: player -> part -> mean over the global batch. Waits for the device."""
        found: dict[str, dict[str, float]] = {}
        values = self.losses.tolist() if self.losses is not None else []
        for (player, part), value in zip(self.names, values, strict=True):
            found.setdefault(player, {})[part] = value
        return found

    @cached_property
    def gradient_norms(self) -> dict[str, float]:
        """Gradient norms as numbers, by player. Waits for the device."""
        return dict(zip(self.norms, torch.stack(list(self.norms.values())).tolist(), strict=True)) if self.norms else {}

    @property
    def skipped(self) -> list[str]:
        """Players whose weights were left as they were because their gradient was not finite. Waits for the device."""
        return [player for player, norm in self.gradient_norms.items() if not math.isfinite(norm)]


def micro_batches(count: int, largest_count: int, micro_batch: int, unit: int) -> list[slice]:
    """Cuts a rank's slice of the batch into micro-batches, the same number on every rank.

    Args:
        count: samples of this rank.
        largest_count: samples of the rank that has most.
        micro_batch: most samples that go through the device at once.
        unit: samples that stay together.

    Returns:
        Slices in order that cover the rank's samples. If another rank has a unit more, the first slice may be empty; the last never is.

    Raises:
        ConfigError: a unit does not fit into a micro-batch.
    """
    if micro_batch < unit:
        raise ConfigError(f"training.micro_batch: {micro_batch} is less than the batch-norm group of {unit}, which must not be divided")
    units, parts = count // unit, math.ceil(largest_count / (micro_batch // unit * unit))
    return [slice(part * units // parts * unit, (part + 1) * units // parts * unit) for part in range(parts)]


def largest_slice(global_batch: int, world_size: int, unit: int) -> int:
    """Counts the samples of the rank that has most of a global batch.

    Args:
        global_batch: samples of the global batch.
        world_size: ranks of the run.
        unit: samples that stay together.
    """
    slices = (rank_slice(global_batch, rank, world_size, unit) for rank in range(world_size))
    return max(int(each.stop - each.start) for each in slices)


def rate_factor(config: ScheduleConfig, step: int, steps: int) -> float:
    """Returns the factor of every learning rate in a step.

    Args:
        config: schedule of the run.
        step: number of the step, from 0.
        steps: steps of the whole run.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.kind == "cosine":
        progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
        return config.final_factor + (1 - config.final_factor) * 0.5 * (1 + math.cos(math.pi * progress))
    if config.kind == "step":
        return config.step_factor ** ((step - config.warmup_steps) // config.step_every)
    return 1.0


def rate_jump(before: Mapping[str, Any], now: Config[Any], step: int) -> str:
    """Says that the learning rates do not go on as they would have, because the schedule is another one or ends at another step.

    Args:
        before: settings of the checkpoint, as plain values.
        now: settings of this attempt.
        step: steps that are done, at least 1.

    Returns:
        A sentence with the factors of both steps; empty where the rates go on as planned.
    """
    names = {item.name for item in fields(ScheduleConfig)}
    schedule = ScheduleConfig(**{name: value for name, value in before["schedule"].items() if name in names})
    planned, steps = int(before["training"]["steps"]), now.training.steps
    last, after = rate_factor(schedule, step - 1, planned), rate_factor(now.schedule, step, steps)
    if after == rate_factor(schedule, step, planned):
        return ""
    ends = f"ends at step {steps} instead of {planned}" if schedule == now.schedule else "is another one"
    return f"the schedule {ends}: the factor of the learning rates was {last:.4g} in step {step}, and is {after:.4g} in step {step + 1}"


class TrainStep:
    """Trains the players on batches.

    Args:
        recipe: recipe that makes the views.
        engines: engines of the players in the order of their turns.
        world: ranks of the run.
        training: settings of batch sizes, precision and the limit of non-finite steps.
        datasets: data sets of the batches, to name them in messages.

    Attributes:
        largest_slice: samples of the rank that has most of a global batch.
        phases: times the parts of a step. The caller (the loop) starts and ends each step on it.
    """

    def __init__(
        self, recipe: Recipe, engines: Sequence[Engine], world: World, training: TrainingConfig, datasets: Sequence[Dataset] = ()
    ) -> None:
        self.recipe = recipe
        self._datasets = datasets
        self.engines = engines
        self.world = world
        self.training = training
        self.largest_slice = largest_slice(training.global_batch, world.size, recipe.unit)
        self._format = MEMORY_FORMATS[training.memory_format]
        self.nonfinite_in_a_row = 0
        self._unjudged: list[StepResult] = []
        self.phases = Phases.of(world.device)
        for each in engines:
            each.time_waits(self.phases.collective)
        self.in_lockstep = any(each.in_lockstep for each in engines)  # a turn goes through the other players' networks, too

    def __call__(self, batch: Batch, rate: float) -> StepResult:
        """Takes one step on this rank's slice of a batch.

        Args:
            batch: this rank's slice of the global batch.
            rate: factor of the learning rates.

        Raises:
            LabelUnknown: a label is that of no class of the recipe.
            NonFiniteError: more than training.max_nonfinite_steps steps in a row had a gradient that is not finite. On a GPU this is
                found up to training.log_every steps later, because looking at once would wait for the device; no weights moved meanwhile.
        """
        refuse_labels(self.recipe, host_labels(batch), batch.sample_ids, self._datasets)
        result = StepResult()
        sums: list[Tensor] = []
        parts = micro_batches(len(batch.sample_ids), self.largest_slice, self.training.micro_batch, self.recipe.unit)
        made = self._made_once(batch, parts)
        for engine in self.engines:
            self._turn(engine, batch, parts, rate, result, sums, made)
        result.losses = self._sum(torch.stack(sums)) / self.training.global_batch
        self._judge(result)
        return result

    def views(self, batch: Batch, part: slice) -> Views:
        """Makes the views of a part of a batch, on the device."""

        def move(tensor: Tensor) -> Tensor:
            return tensor[part].to(self.world.device, non_blocking=True)

        with torch.no_grad():
            self.phases.enter("host_to_device")
            labels = move(batch.labels) if batch.labels is not None else None
            moved = move(batch.images), move(batch.masks), labels, move(batch.keys)
            self.phases.enter("forward")
            views = self.recipe.views(*moved)
            return {name: view.contiguous(memory_format=self._format) if view.dim() == 4 else view for name, view in views.items()}

    def networks(self, turn: Engine) -> Networks:
        """Returns every network by name: wrapped for the engine whose turn it is, bare for the others."""
        return {each.player.name: each.wrapped if each is turn else each.bare for each in self.engines}

    def paintings(self, batch: Batch) -> Paintings | None:
        """Paints the first `training.pictures` samples of this rank, for a grid; None if the recipe paints none.

        Every rank must call it, because weights that are divided among the ranks are gathered in a forward pass of all of them.
        """
        if not isinstance(self.recipe, PaintingRecipe):
            return None
        with evaluating(self.engines) as networks:
            views = self.views(batch, slice(0, min(self.training.pictures, len(batch.sample_ids))))
            return self.recipe.paintings(views, self.recipe.paint(views, networks))

    def _made_once(self, batch: Batch, parts: Sequence[slice]) -> Views | None:
        """Makes what all turns use: the views, and the painting of the player that paints, with its graph.

        Returns None where the batch is divided into micro-batches, because everything would have to be kept until the last turn: each turn
        then makes its own.
        """
        if len(parts) > 1:
            return None
        views = self.views(batch, parts[0])
        for engine in self.engines:
            if engine.player.paint is not None and len(self.engines) > 1:
                engine.network.requires_grad_(True)
                with engine.micro_step(last=True), self._precision():
                    return {**views, PAINTING: engine.player.paint(views, self.networks(engine))}
        return views

    def _turn(
        self, engine: Engine, batch: Batch, parts: Sequence[slice], rate: float, result: StepResult, sums: list[Tensor], made: Views | None
    ) -> None:
        for each in self.engines:
            each.network.requires_grad_(each is engine)
        networks, totals = self.networks(engine), dict[str, Tensor]()
        for part in parts:
            if part.start == part.stop:
                if self.in_lockstep:
                    self._idle(engine, batch, networks)
                continue
            with engine.micro_step(last=part is parts[-1]):
                losses = self._losses(engine, made or self.views(batch, part), networks)
                total = losses.total.sum()
                # a non-finite loss makes the gradient non-finite, on every rank and without waiting for the device
                scale = torch.where(torch.isfinite(total.detach()), self.world.size / self.training.global_batch, math.nan)
                self._backward(engine, total * scale)
            _accumulate(totals, {"total": losses.total.detach(), **losses.parts})
        self._update(engine, rate, result)
        result.names.extend((engine.player.name, part) for part in totals)
        sums.extend(totals.values())

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.training.precision == "bf16")

    def _losses(self, engine: Engine, views: Views, networks: Networks) -> Losses:
        if PAINTING in views and engine.player.paint is None:
            views = {**views, PAINTING: views[PAINTING].detach()}
        self.phases.enter("forward")
        with self._precision():
            return engine.player.loss(views, networks)

    def _backward(self, engine: Engine, loss: Tensor) -> None:
        self.phases.backward(loss, waits=self.world.size > 1)
        engine.backward(loss)
        self.phases.enter("")

    def _sum(self, values: Tensor) -> Tensor:
        with self.phases.collective():
            return self.world.sum(values)

    def _idle(self, engine: Engine, batch: Batch, networks: Networks) -> None:
        """Runs a pass with weight 0 beside the ranks that have a unit more. No gradient, statistics or random numbers remain of it.

        The pass repeats samples of this rank, so that it is finite if their own pass is. It is the first pass of a turn, so there are no
        other statistics to lose.
        """
        devices = [self.world.device] if self.world.device.type == "cuda" else []
        with torch.random.fork_rng(devices), engine.micro_step(last=False):
            losses = self._losses(engine, self.views(batch, slice(0, self.recipe.unit)), networks)
            self._backward(engine, losses.total.sum() * 0.0)
        discard_statistics(engine.network)

    def _update(self, engine: Engine, rate: float, result: StepResult) -> None:
        self.phases.enter("optimiser")
        result.norms[engine.player.name] = norm = engine.update(rate)  # equal on every rank, so that all ranks decide alike
        self.phases.enter("")
        fold_statistics(engine.network, self._sum, torch.isfinite(norm))

    def _judge(self, result: StepResult) -> None:
        """Counts the steps in a row that were skipped, without making a GPU wait in every step."""
        self._unjudged.append(result)
        if self.world.device.type == "cuda" and len(self._unjudged) < self.training.log_every:
            return
        for each in self._unjudged:
            self.nonfinite_in_a_row = self.nonfinite_in_a_row + 1 if each.skipped else 0
            if self.nonfinite_in_a_row > self.training.max_nonfinite_steps:
                raise NonFiniteError(
                    f"{counted(self.nonfinite_in_a_row, 'step')} in a row gave a gradient that is not finite ({', '.join(each.skipped)}): "
                    "lower the learning rate, set training.max_gradient_norm, or train in fp32. The last checkpoint is from before"
                )
        self._unjudged.clear()


def _accumulate(totals: dict[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        summed = value.detach().double().sum()
        totals[name] = totals[name] + summed if name in totals else summed
