"""The arithmetic of a step: micro-batches, schedules and exact gradients, however uneven the ranks' slices are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline import recipes
from pipeline.config import Config, OptimiserConfig, ScheduleConfig, TrainingConfig, to_mapping
from pipeline.mapping import ConfigError
from pipeline.model.batch_norm import GroupedBatchNorm2d
from pipeline.recipes.inpainting import InpaintingSettings
from pipeline.recipes.player import Losses, Player
from pipeline.stream.loader import Batch
from pipeline.stream.order import rank_slice
from pipeline.training.engine.engine import Engine, ReplicatedEngine
from pipeline.training.engine.optimiser_state import make_optimiser
from pipeline.training.engine.zero import ShardedEngine
from pipeline.training.ranks.world import World, join
from pipeline.training.resume import build_engines
from pipeline.training.step import NonFiniteError, TrainStep, micro_batches, rate_factor, rate_jump

MODES = ["ddp", "zero1", "zero2", "zero3"]


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 8), st.integers(1, 100))
def test_every_rank_takes_the_same_number_of_micro_steps_and_the_last_is_never_empty(units: int, world: int, unit: int, micro: int) -> None:
    world = min(world, units)
    micro = max(micro, unit)
    shares = [rank_slice(units * unit, rank, world, unit) for rank in range(world)]
    sizes = [part.stop - part.start for part in shares]
    cut = [micro_batches(size, max(sizes), micro, unit) for size in sizes]
    assert len({len(parts) for parts in cut}) == 1
    for size, parts in zip(sizes, cut, strict=True):
        assert parts[0].start == 0
        assert parts[-1].stop == size
        assert all(part.start < part.stop for part in parts[1:])  # what a turn has done before an empty part would be lost
        assert all(left.stop == right.start for left, right in itertools.pairwise(parts))
        assert all((part.stop - part.start) <= micro and (part.stop - part.start) % unit == 0 for part in parts)


def test_a_batch_norm_group_that_fits_no_micro_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"training\.micro_batch: 32 is less than the batch-norm group of 64"):
        micro_batches(64, 64, 32, 64)


LONG = Config(method=None, training=TrainingConfig(steps=8))


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (ScheduleConfig("cosine"), ScheduleConfig("cosine"), "ends at step 8 instead of 4: the factor of the learning rates was 0.1464"),
        (
            ScheduleConfig("cosine", final_factor=0.5),
            ScheduleConfig("cosine", final_factor=0.5),
            "was 0.5732 in step 4, and is 0.75",
        ),
        (
            ScheduleConfig("cosine"),
            ScheduleConfig("constant"),
            "is another one: the factor of the learning rates was 0.1464",
        ),
        (
            ScheduleConfig(),
            ScheduleConfig("step", step_every=2),
            "was 1 in step 4, and is 0.25 in step 5",
        ),
        (ScheduleConfig(), ScheduleConfig(), ""),
        (ScheduleConfig("step", step_every=2), ScheduleConfig("step", step_every=2), ""),
        (ScheduleConfig("cosine", warmup_steps=6), ScheduleConfig("cosine", warmup_steps=6), ""),
    ],
)
def test_learning_rates_that_jump_where_a_run_continues_are_said_with_both(before: ScheduleConfig, now: ScheduleConfig, said: str) -> None:
    kept = to_mapping(replace(LONG, schedule=before, training=TrainingConfig(steps=4)))
    found = rate_jump({**kept, "schedule": {**kept["schedule"], "of_another_version": 1}}, replace(LONG, schedule=now), step=4)
    assert said in found
    assert bool(said) == bool(found)


def test_schedules() -> None:
    warm = ScheduleConfig("constant", warmup_steps=4)
    assert [rate_factor(warm, step, 100) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    cosine = ScheduleConfig("cosine", warmup_steps=10, final_factor=0.1)
    assert rate_factor(cosine, 10, 110) == 1.0
    assert math.isclose(rate_factor(cosine, 60, 110), 0.55)
    assert rate_factor(cosine, 109, 110) < 0.101
    falling = ScheduleConfig("step", step_every=10, step_factor=0.5)
    assert [rate_factor(falling, step, 100) for step in (0, 9, 10, 19, 20)] == [1.0, 1.0, 0.5, 0.5, 0.25]


class Line:
    """A recipe of one linear player: its gradient is known by hand."""

    name = "line"
    image_size, unit, mask = 4, 1, None

    def __init__(self) -> None:
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(48, 1, bias=False), GroupedBatchNorm(1))
        nn.init.constant_(self.network[1].weight, 0.01)
        self.players = (Player("line", self.network, self.loss, OptimiserConfig(kind="sgd", learning_rate=0.5, momentum=0.0)),)

    def views(self, images: Tensor, masks: Tensor, labels: Tensor | None, keys: Tensor) -> dict[str, Tensor]:
        return {"images": images.float() / 255}

    def loss(self, views: dict[str, Tensor], networks: dict[str, nn.Module]) -> Losses:
        return Losses(networks["line"](views["images"]).flatten() * self.factor + self.offset, {})

    factor = 1.0
    offset = 0.0


class GroupedBatchNorm(nn.Module):
    """Passes on; accumulates like batch norm, so that a test sees what becomes of it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupedBatchNorm2d(channels, 1)
        self.norm.requires_grad_(True)

    def forward(self, values: Tensor) -> Tensor:
        self.norm(values[:, :, None, None].expand(-1, -1, 2, 2))
        return values


def make_engine(player: Player, world: World, training: TrainingConfig) -> Engine:
    return ReplicatedEngine(player, world, training.max_gradient_norm) if training.mode == "ddp" else ShardedEngine(player, world, training)


def make_step(recipe: Line, world: World, training: TrainingConfig, micro_batch: int = 3) -> TrainStep:
    training = replace(training, global_batch=8, micro_batch=micro_batch)
    return TrainStep(recipe, [make_engine(recipe.players[0], world, training)], world, training)  # type: ignore[arg-type]


def weight(step: TrainStep) -> Tensor:
    """Returns the weight of the line, float32 (48,)."""
    return step.engines[0].full_state()["line"]["1.weight"][0].clone()


@pytest.fixture(params=MODES)
def training(request: pytest.FixtureRequest) -> TrainingConfig:
    return TrainingConfig(mode=request.param, max_nonfinite_steps=1)


@pytest.fixture
def world(training: TrainingConfig) -> Iterator[World]:
    with join(training) as found:
        yield found


@pytest.fixture
def batch() -> Batch:
    torch.manual_seed(3)
    images = torch.randint(0, 256, (8, 4, 4, 3), dtype=torch.uint8)
    ids = torch.arange(8)
    return Batch(images, torch.zeros(8, 4, 4, dtype=torch.bool), None, ids, 0, 0, ids)


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_the_step_is_the_rate_times_the_mean_gradient(world: World, training: TrainingConfig, batch: Batch, micro_batch: int) -> None:
    step = make_step(Line(), world, training, micro_batch)
    result = step(batch, rate=0.5)
    gradient = (batch.images.float() / 255).flatten(1).mean(0)
    assert torch.allclose(weight(step), 0.01 - 0.5 * 0.5 * gradient, atol=1e-6)
    assert result.gradient_norms["line"] == pytest.approx(float(gradient.norm()), rel=1e-5)
    assert result.read()["line"]["total"] == pytest.approx(float((batch.images.float() / 255).flatten(1).sum(1).mean() * 0.01), rel=1e-5)
    step.engines[0].close()


def test_a_large_gradient_is_scaled_down_to_the_limit(world: World, training: TrainingConfig, batch: Batch) -> None:
    step = make_step(Line(), world, replace(training, max_gradient_norm=0.1))
    result = step(batch, rate=1.0)
    assert result.gradient_norms["line"] > 1
    assert float((weight(step) - 0.01).norm()) == pytest.approx(0.5 * 0.1, rel=1e-4)
    step.engines[0].close()


def test_a_gradient_that_is_not_finite_leaves_weights_and_statistics_alone(world: World, training: TrainingConfig, batch: Batch) -> None:
    recipe = Line()
    step = make_step(recipe, world, training)
    recipe.factor = float("inf")
    result = step(batch, rate=1.0)
    assert result.skipped == ["line"]
    assert not math.isfinite(result.gradient_norms["line"])
    assert torch.all(weight(step) == 0.01)
    recipe.factor = 1.0
    norm = recipe.network[2].norm
    assert float(norm.accumulated.abs().sum()) == 0
    assert float(norm.running_mean) == 0
    step(batch, rate=1.0)
    assert float(norm.running_mean) != 0
    assert step.nonfinite_in_a_row == 0
    recipe.offset = float("inf")  # of the loss alone: its gradient is finite
    before = weight(step)
    assert step(batch, rate=1.0).skipped == ["line"]
    assert torch.equal(weight(step), before)
    step.nonfinite_in_a_row = 0
    recipe.offset, recipe.factor = 0.0, float("nan")
    step(batch, rate=1.0)
    with pytest.raises(NonFiniteError, match="2 steps in a row"):
        step(batch, rate=1.0)
    assert torch.all(weight(step).isfinite())
    step.engines[0].close()


def test_an_optimiser_that_cannot_be_made_is_named() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    for config in (
        OptimiserConfig(betas=(1.5, 0.9)),
        OptimiserConfig(learning_rate=float("nan")),
        OptimiserConfig(kind="sgd", momentum=-1.0),
    ):
        with pytest.raises(ConfigError, match="method: optimiser: Invalid"):
            make_optimiser(config, [parameter])


def inpainting_step(stack: ExitStack, micro: int, memory_format: str = "channels_last") -> tuple[TrainStep, list[int]]:
    """The step of a narrow inpainting recipe with seeded weights, and a list that grows by one with every call of the generator."""
    training = TrainingConfig(global_batch=4, micro_batch=micro, memory_format=memory_format)  # type: ignore[arg-type]
    method = InpaintingSettings(image_size=64, width=4, bottleneck=8, batch_norm_group=2)
    recipe = recipes.make("inpainting", method, seed=5)
    world = stack.enter_context(join(training))
    step, calls = TrainStep(recipe, build_engines(recipe, None, world, training), world, training), list[int]()
    step.engines[1].network.register_forward_pre_hook(lambda *_: calls.append(len(calls)))
    return step, calls


def game(micro: int, memory_format: str = "channels_last") -> tuple[list[dict[str, dict[str, float]]], int]:
    """Losses of two steps, and the number of the generator's calls."""
    images = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    masks = torch.zeros(4, 64, 64, dtype=torch.bool)
    masks[:, 16:48, 16:48] = True
    numbers = torch.arange(4)
    with ExitStack() as stack:
        step, calls = inpainting_step(stack, micro, memory_format)
        found = [step(Batch(images, masks, None, numbers, 0, index, numbers), 1.0).read() for index in range(2)]
        return found, len(calls)


def test_the_generator_paints_once_a_step_for_both_players() -> None:
    """Micro-batches paint again in each turn, because all their graphs would have to be kept; the game is the same."""
    whole, once = game(4)
    cut, again = game(2)
    assert (once, again) == (2, 8)
    for one, other in zip(whole, cut, strict=True):
        for player, losses in one.items():
            assert losses == pytest.approx(other[player], rel=1e-4)


def test_the_memory_format_changes_roundings_alone() -> None:
    last, plain = game(4)[0], game(4, "contiguous")[0]
    for one, other in zip(last, plain, strict=True):
        for player, losses in one.items():
            assert losses == pytest.approx(other[player], rel=1e-4)
