"""The discriminator never sees the mask: its inputs, and so its gradient, are the same under any, unless it is asked to be conditional."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monitoring import RunMetrics
from pipeline import recipes
from pipeline.config import WatchdogConfig
from pipeline.masking import MaskConfig
from pipeline.recipes.features import FeaturesSettings
from pipeline.recipes.inpainting import InpaintingSettings
from pipeline.recipes.player import Recipe
from pipeline.training.record.run_folder import RunFolder
from pipeline.training.reporting.alarms import Alarms

INPAINTING = InpaintingSettings(image_size=64, width=2, bottleneck=4, batch_norm_group=2)
FEATURES = FeaturesSettings(layout="torchvision", width=2, batch_norm_group=2, adversarial_weight=0.1, mask=MaskConfig(kind="block"))
PAIRS: dict[str, tuple[str, object]] = {
    "inpainting, central": ("inpainting", INPAINTING),
    "inpainting, random": ("inpainting", replace(INPAINTING, mask=MaskConfig(kind="block"), weigh_context=True)),
    "features": ("features", FEATURES),
    "autoencoder": ("autoencoder", FEATURES),
}


class SamePainting(nn.Module):
    """A painter that paints the same, whatever it is shown, but through which a gradient would reach its context."""

    def __init__(self, painting: Tensor) -> None:
        super().__init__()
        self.painting = nn.Parameter(painting)

    def forward(self, context: Tensor, keys: Tensor) -> Tensor:
        return self.painting + 0 * context.mean()


class Recorded(nn.Module):
    """A discriminator that keeps what it is called with."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seen = network, list[Tensor]()

    def forward(self, *regions: Tensor, **named: Tensor) -> Any:
        self.seen += [each.detach().clone() for each in (*regions, *named.values())]
        return self.network(*regions, **named)


def masks(side: int) -> tuple[Tensor, Tensor]:
    """Two masks that share no dropped pixel, each with dropped pixels inside the middle half."""
    one, other = torch.zeros(2, side, side, dtype=torch.bool), torch.zeros(2, side, side, dtype=torch.bool)
    one[:, : side // 2, side // 4 :], other[:, side // 2 :, : side // 2] = True, True
    return one, other


def judged(recipe: Recipe, player: str, dropped: Tensor, painting: Tensor, images: Tensor) -> tuple[list[Tensor], Tensor | None]:
    """All inputs of the discriminator on a player's turn, and the gradient of the discriminator's own loss for the context."""
    whole = next(each.network for each in recipe.players if each.name == "discriminator").train()
    networks: Mapping[str, nn.Module] = {recipe.painter: SamePainting(painting), "discriminator": Recorded(whole)}
    views = {**recipe.views(images, dropped, None, torch.arange(2))}
    views["context"] = views["context"].detach().requires_grad_()
    total = next(each for each in recipe.players if each.name == player).loss(views, networks).total
    gradient = torch.autograd.grad(total.sum(), views["context"], allow_unused=True)[0] if player == "discriminator" else None
    return networks["discriminator"].seen, gradient  # type: ignore[return-value]


def both(name: str, settings: object, player: str) -> list[tuple[list[Tensor], Tensor | None]]:
    recipe = recipes.make(name, settings, 0)
    side = recipe.image_size
    images = torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8)
    target = recipe.views(images, masks(side)[0], None, torch.arange(2))["target"]
    painting = torch.rand_like(target)
    return [judged(recipe, player, dropped, painting, images) for dropped in masks(side)]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("turn", ["discriminator", "painter"])
def test_the_discriminator_sees_neither_mask_nor_context(pair: str, turn: str) -> None:
    name, settings = PAIRS[pair]
    player = "discriminator" if turn == "discriminator" else recipes.RECIPES[name].painter
    (one, gradient), (other, _) = both(name, settings, player)
    assert len(one) == len(other) == (2 if turn == "discriminator" else 1)
    assert all(torch.equal(first, second) for first, second in zip(one, other, strict=True))
    assert gradient is None, "the loss of the discriminator does not depend on the context"


@pytest.mark.parametrize("mask", [MaskConfig(kind="central", overlap=4), MaskConfig(kind="block")])
@pytest.mark.parametrize("turn", ["discriminator", "generator"])
def test_a_conditional_discriminator_sees_the_context_and_with_it_the_hole(mask: MaskConfig, turn: str) -> None:
    settings = replace(INPAINTING, mask=mask, conditional_discriminator=True)
    (one, gradient), (other, _) = both("inpainting", settings, turn)
    assert [torch.equal(first, second) for first, second in zip(one, other, strict=True)] == [True] * (len(one) - 1) + [False]
    assert one[-1].shape == (2, 3, 64, 64)
    if turn == "discriminator":
        assert gradient is not None
        assert gradient.abs().amax(dim=(1, 2, 3)).min() > 0


class Sure(nn.Module):
    """A discriminator that has won."""

    def forward(self, real: Tensor, *painted: Tensor, **_: Tensor) -> tuple[Tensor, ...]:
        return (real.new_full((len(real),), 20.0), *(each.new_full((len(each),), -20.0) for each in painted))


@pytest.mark.parametrize(
    "pair", [*PAIRS.values(), ("inpainting", replace(INPAINTING, conditional_discriminator=True))], ids=[*PAIRS, "inpainting, conditional"]
)
def test_a_discriminator_that_has_won_is_reported_whatever_the_recipe(pair: tuple[str, object], tmp_path: Path) -> None:
    recipe = recipes.make(*pair, 0)
    side, lines = recipe.image_size, list[str]()
    player = next(each for each in recipe.players if each.name == "discriminator")
    views = recipe.views(torch.zeros(2, side, side, 3, dtype=torch.uint8), masks(side)[0], None, torch.arange(2))
    found = player.loss(views, {recipe.painter: SamePainting(torch.zeros_like(views["target"])), "discriminator": Sure()})
    losses = {"discriminator": {name: float(part.mean()) for name, part in found.parts.items()}}
    folder = RunFolder(tmp_path / "run", writes=True)
    try:
        alarms = Alarms(WatchdogConfig(collapse_steps=3), recipe.players, 1, folder, RunMetrics("run", 0, 1, "node"), lines.append)
        for step in range(1, 6):
            alarms.check_collapse(step, losses)
    finally:
        folder.close()
    (line,) = lines
    assert line.startswith("step 3: the discriminator has collapsed (adversarial ")
    assert "method.discriminator_optimiser.learning_rate" in line
