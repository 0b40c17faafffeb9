"""One step: every player takes its turn on the batch, in micro-batches that fit the device.

Every loss is a mean over the samples of the global batch. A rank scales its part by ranks / batch, so that the average over the ranks that
DDP takes is that mean exactly, however uneven the shares are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.config import ScheduleConfig
from pipeline.mapping import ConfigError
from pipeline.model.batch_norm import discard_statistics, fold_statistics
from pipeline.recipes.player import Losses, Networks, Recipe, Views
from pipeline.stream.loader import Batch
from pipeline.training.engine.engine import Contestant
from pipeline.training.phases import Phases
from pipeline.training.ranks.world import World
from shards.errors import ExplainedError


class NonFiniteError(ExplainedError):
    """Too many steps in a row gave a loss or gradient that is not a number."""


@dataclass
class StepResult:
    """What one step gave, on the device and summed over the ranks, so that reading it can wait.

    Attributes:
        names: (player, part) of each loss; the part `total` is what was minimised.
        losses: float64 (len(names),), means over the global batch.
        gradient_norms: by player, before clipping.
        skipped: players whose weights were left as they were because something was not finite.
    """

    names: list[tuple[str, str]] = field(default_factory=list)
    losses: Tensor | None = None
    gradient_norms: dict[str, float] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def read(self) -> dict[str, dict[str, float]]:
        """The losses as numbers: player -> part -> mean over the global batch. Waits for the device."""
        found: dict[str, dict[str, float]] = {}
        values = self.losses.tolist() if self.losses is not None else []
        for (player, part), value in zip(self.names, values, strict=True):
            found.setdefault(player, {})[part] = value
        return found


def micro_batches(share: int, largest_share: int, micro_batch: int, unit: int) -> list[slice]:
    """Cuts a rank's share into micro-batches, as many on every rank.

    Args:
        share: samples of this rank.
        largest_share: samples of the rank that has most.
        micro_batch: most samples that go through the device at once.
        unit: samples that stay together.

    Returns:
        Slices in order that cover the share; where another rank has a unit more the first may be empty, the last never is.

    Raises:
        ConfigError: a unit does not fit a micro-batch.
    """
    if micro_batch < unit:
        raise ConfigError(f"training.micro_batch: {micro_batch} is less than the batch-norm group of {unit}, which must not be divided")
    units, count = share // unit, math.ceil(largest_share / (micro_batch // unit * unit))
    return [slice(part * units // count * unit, (part + 1) * units // count * unit) for part in range(count)]


def rate_factor(config: ScheduleConfig, step: int, steps: int) -> float:
    """What every learning rate is multiplied by in a step.

    Args:
        config: the schedule.
        step: from 0.
        steps: of the whole run.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.kind == "cosine":
        progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
        return config.final_factor + (1 - config.final_factor) * 0.5 * (1 + math.cos(math.pi * progress))
    if config.kind == "step":
        return config.step_factor ** ((step - config.warmup_steps) // config.step_every)
    return 1.0


class TrainStep:
    """Trains the players on batches.

    Args:
        recipe: makes the views.
        contestants: the players in the order of their turns.
        world: the ranks.
        global_batch: samples over all ranks.
        largest_share: samples of the rank that has most.
        micro_batch: most samples at once.
        bf16: compute the networks in bfloat16.
        max_nonfinite_steps: in a row, before NonFiniteError.

    Attributes:
        phases: is told where a step is; begun and ended by whoever takes the steps.
    """

    def __init__(
        self,
        recipe: Recipe,
        contestants: Sequence[Contestant],
        world: World,
        *,
        global_batch: int,
        largest_share: int,
        micro_batch: int,
        bf16: bool,
        max_nonfinite_steps: int,
    ) -> None:
        self.recipe = recipe
        self.contestants = contestants
        self.world = world
        self.global_batch = global_batch
        self.largest_share = largest_share
        self.micro_batch = micro_batch
        self.bf16 = bf16
        self.max_nonfinite_steps = max_nonfinite_steps
        self.nonfinite_in_a_row = 0
        self.phases = Phases.of(world.device)
        for each in contestants:
            each.time_waits(self.phases.collective)
        self.in_lockstep = any(each.in_lockstep for each in contestants)  # a turn goes through the other players' networks, too

    def __call__(self, batch: Batch, rate: float) -> StepResult:
        """One step on this rank's share of a batch, with the learning rates times `rate`.

        Raises:
            NonFiniteError: once too often.
        """
        result = StepResult()
        sums: list[Tensor] = []
        parts = micro_batches(len(batch.sample_ids), self.largest_share, self.micro_batch, self.recipe.unit)
        for contestant in self.contestants:
            self._turn(contestant, batch, parts, rate, result, sums)
        result.losses = self._sum(torch.stack(sums)) / self.global_batch
        self._guard(result)
        return result

    def views(self, batch: Batch, part: slice) -> Views:
        """The views of a part of a batch, on the device."""

        def move(tensor: Tensor) -> Tensor:
            return tensor[part].to(self.world.device, non_blocking=True)

        with torch.no_grad():
            self.phases.enter("host_to_device")
            labels = move(batch.labels) if batch.labels is not None else None
            moved = move(batch.images), move(batch.masks), labels, move(batch.keys)
            self.phases.enter("forward")
            return self.recipe.views(*moved)

    def networks(self, turn: Contestant | None = None) -> Networks:
        """Every network by name: the one whose turn it is wrapped, the others bare."""
        return {each.player.name: each.wrapped if each is turn else each.bare for each in self.contestants}

    def _turn(
        self, contestant: Contestant, batch: Batch, parts: Sequence[slice], rate: float, result: StepResult, sums: list[Tensor]
    ) -> None:
        for each in self.contestants:
            each.network.requires_grad_(each is contestant)
        networks, totals = self.networks(contestant), dict[str, Tensor]()
        for part in parts:
            if part.start == part.stop:
                if self.in_lockstep:
                    self._idle(contestant, batch, networks)
                continue
            with contestant.micro_step(last=part is parts[-1]):
                losses = self._losses(contestant, batch, part, networks)
                total = losses.total.sum()
                # a loss that is not finite makes the gradient so, on every rank and without waiting for the device
                scale = torch.where(torch.isfinite(total.detach()), self.world.size / self.global_batch, math.nan)
                self._backward(contestant, total * scale)
            _accumulate(totals, {"total": losses.total.detach(), **losses.parts})
        self._update(contestant, rate, result)
        result.names.extend((contestant.player.name, part) for part in totals)
        sums.extend(totals.values())

    def _losses(self, contestant: Contestant, batch: Batch, part: slice, networks: Networks) -> Losses:
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.bf16):
            return contestant.player.loss(self.views(batch, part), networks)

    def _backward(self, contestant: Contestant, loss: Tensor) -> None:
        self.phases.backward(loss, waits=self.world.size > 1)
        contestant.backward(loss)
        self.phases.enter("")

    def _sum(self, values: Tensor) -> Tensor:
        with self.phases.collective():
            return self.world.sum(values)

    def _idle(self, contestant: Contestant, batch: Batch, networks: Networks) -> None:
        """A pass with weight 0 beside the ranks that have a unit more: no gradient, no statistics, no random number of it remains.

        It repeats samples of the share, so that it is finite where their own pass is. It is the first of a turn: there are no other
        statistics to lose.
        """
        devices = [self.world.device] if self.world.device.type == "cuda" else []
        with torch.random.fork_rng(devices), contestant.micro_step(last=False):
            losses = self._losses(contestant, batch, slice(0, self.recipe.unit), networks)
            self._backward(contestant, losses.total.sum() * 0.0)
        discard_statistics(contestant.network)

    def _update(self, contestant: Contestant, rate: float, result: StepResult) -> None:
        self.phases.enter("optimiser")
        norm = contestant.update(rate)  # equal on every rank, so every rank decides alike
        self.phases.enter("")
        result.gradient_norms[contestant.player.name] = norm
        if math.isfinite(norm):
            fold_statistics(contestant.network, self._sum)
        else:
            discard_statistics(contestant.network)
            result.skipped.append(contestant.player.name)

    def _guard(self, result: StepResult) -> None:
        self.nonfinite_in_a_row = self.nonfinite_in_a_row + 1 if result.skipped else 0
        if self.nonfinite_in_a_row > self.max_nonfinite_steps:
            raise NonFiniteError(
                f"{self.nonfinite_in_a_row} steps in a row gave a gradient that is not finite ({', '.join(result.skipped)}): "
                "lower the learning rate, set training.max_gradient_norm, or train in fp32. The last checkpoint is from before"
            )


def _accumulate(totals: dict[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        summed = value.detach().double().sum()
        totals[name] = totals[name] + summed if name in totals else summed
