"""A step of a pair: the discriminator moves first, then the painter, judged by the discriminator as it is after its move."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import recipes
from pipeline.config import OptimiserConfig, TrainingConfig
from pipeline.recipes.inpainting import InpaintingSettings
from pipeline.stream.batch.batch import Batch
from pipeline.training.engine.engine import ReplicatedEngine
from pipeline.training.engine.optimiser_state import make_optimiser
from pipeline.training.ranks.world import join
from pipeline.training.step import TrainStep

DOWNHILL = OptimiserConfig(kind="sgd", learning_rate=0.5, momentum=0.0)
ADVERSARIAL = InpaintingSettings(
    image_size=64,
    width=2,
    bottleneck=4,
    batch_norm_group=2,
    reconstruction_weight=0.0,
    adversarial_weight=1.0,
    optimiser=DOWNHILL,
    discriminator_optimiser=DOWNHILL,
)


def slopes(recipe: recipes.Recipe, player: str, networks: Mapping[str, nn.Module], batch: Batch) -> list[Tensor]:
    """The gradient of the mean of a player's loss for the weights of its network."""
    for name, network in networks.items():
        network.requires_grad_(name == player)
    views = recipe.views(batch.images, batch.masks, None, batch.keys)
    total = next(each for each in recipe.players if each.name == player).loss(views, networks).total
    return list(torch.autograd.grad(total.mean(), list(networks[player].parameters())))


def moved(before: nn.Module, after: nn.Module) -> list[Tensor]:
    """The gradient that plain steps of rate 0.5 went down."""
    return [2 * (old - new).detach() for old, new in zip(before.parameters(), after.parameters(), strict=True)]


def apart(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest difference, relative to the largest value."""
    first, second = (torch.cat([each.flatten() for each in values]) for values in (one, other))
    return float((first - second).abs().max() / second.abs().max())


def test_the_painter_is_judged_by_the_discriminator_after_its_move() -> None:
    recipe = recipes.make("inpainting", ADVERSARIAL, 3)
    images, ids = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)), torch.arange(2)
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    assert recipe.mask is not None
    for row in masks:
        recipe.mask.draw(0, row.numpy())
    batch = Batch(images, masks, None, ids, 0, 0, ids)
    networks = {player.name: player.network.train() for player in recipe.players}
    before = copy.deepcopy(networks)
    training = TrainingConfig(global_batch=2, micro_batch=2)
    with join(training) as world:
        engines = [ReplicatedEngine(player, world, 0.0) for player in recipe.players]
        TrainStep(recipe, engines, world, training)(batch, rate=1.0)
    after = {name: networks[name] for name in before}
    old, new = before["discriminator"], after["discriminator"]
    assert apart(moved(old, new), slopes(recipe, "discriminator", copy.deepcopy(before), batch)) < 1e-3
    gradient = moved(before["generator"], after["generator"])
    by_new, by_old = (
        slopes(recipe, "generator", {"generator": before["generator"], "discriminator": judge}, batch)
        for judge in (copy.deepcopy(new), old)
    )
    assert apart(gradient, by_new) < 1e-3
    assert apart(gradient, by_old) > 0.01


def test_the_steps_of_adam() -> None:
    """Kingma and Ba's update with both moments corrected for their start, at the rate and betas of the released code."""
    config = OptimiserConfig(learning_rate=2e-3, betas=(0.5, 0.999), epsilon=1e-8)
    numbers = np.random.default_rng(0)
    start, gradients = numbers.normal(size=6), numbers.normal(size=(5, 6))
    parameter = nn.Parameter(torch.tensor(start, dtype=torch.float32))
    optimiser = make_optimiser(config, [parameter])
    value, first, second = start.copy(), np.zeros(6), np.zeros(6)
    for step, gradient in enumerate(gradients, start=1):
        parameter.grad = torch.tensor(gradient, dtype=torch.float32)
        optimiser.step()
        for place in range(6):
            first[place] = 0.5 * first[place] + 0.5 * gradient[place]
            second[place] = 0.999 * second[place] + 0.001 * gradient[place] ** 2
            value[place] -= 2e-3 * (first[place] / (1 - 0.5**step)) / ((second[place] / (1 - 0.999**step)) ** 0.5 + 1e-8)
    assert np.allclose(parameter.detach().numpy(), value, rtol=1e-5)
    assert np.abs(value - start).max() > 1e-3
