"""The operations that are counted for a picture are those of a step, by torch's own counter and by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, conv_backward_flop

from pipeline import recipes
from pipeline.config import TrainingConfig
from pipeline.masking import MaskConfig
from pipeline.recipes.player import Recipe
from pipeline.stream.loader import Batch
from pipeline.training.engine.engine import ReplicatedEngine
from pipeline.training.ranks.world import World, join
from pipeline.training.reporting.flops import flops_per_image
from pipeline.training.step import TrainStep

aten = torch.ops.aten
FEATURES = {"width": 12}
INPAINTING = {"width": 4, "bottleneck": 12, "batch_norm_group": 2}
PATCHES = {"patch": 67, "gap": 14, "width": 12, "units": 5, "batch_norm_group": 2}
LABELS = {"width": 6, "units": 7, "classes": 5}
NORMALISED = {"layout": "torchvision", "width": 8, "pooling": "strided", "batch_norm": True, "batch_norm_group": 2}
JUDGED = {"adversarial_weight": 0.001, "batch_norm_group": 2, "target_size": 64}
STEPS: list[tuple[str, Mapping[str, Any]]] = [
    ("features", FEATURES),
    ("features", {**FEATURES, **JUDGED}),
    ("features", NORMALISED),
    ("inpainting", INPAINTING),
    ("inpainting", {**INPAINTING, "image_size": 64, "noise": 3}),
    ("inpainting", {**INPAINTING, "mask": MaskConfig(kind="region")}),
    ("inpainting", {**INPAINTING, "conditional_discriminator": True}),
    ("autoencoder", {**FEATURES, "mixing_kernel": 3, "target_size": 161}),
    ("denoising", FEATURES),
    ("labels", LABELS),
    ("relative_position", PATCHES),
]


def made(name: str, settings: Mapping[str, Any]) -> Recipe:
    return recipes.make(name, recipes.SETTINGS[name](**settings), 0)


def convolution_backward(gradient: Any, given: Any, weight: Any, *rest: Any, **named: Any) -> int:
    """Corrects torch's count of the gradients of a convolution: it counts those of the weights once for each group.

    Args:
        gradient: gradient of the result.
        given: input.
        weight: weights.
        rest: bias sizes, stride, padding, dilation, transposed, output padding, groups and the mask of the gradients that are computed.
        named: `out_val`, the gradients.
    """
    transposed, groups, mask = rest[4], rest[6], rest[7]
    places = (given if transposed else gradient).shape[2:].numel()
    once = 2 * weight.numel() * len(given) * places
    return int(conv_backward_flop(gradient, given, weight, *rest, **named)) - (groups - 1) * once * mask[1]


convolution_backward._get_raw = True  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with join(TrainingConfig()) as found:
        yield found


@pytest.mark.parametrize(("name", "settings"), STEPS)
def test_a_step_costs_what_is_counted_by_torchs_own_counter(world: World, name: str, settings: Mapping[str, Any]) -> None:
    recipe, count = made(name, settings), 2
    counted = flops_per_image(recipe)
    training = TrainingConfig(global_batch=count, micro_batch=count)
    step = TrainStep(recipe, [ReplicatedEngine(player, world, training.max_gradient_norm) for player in recipe.players], world, training)
    side, ids = recipe.image_size, torch.arange(count)
    images, masks = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8), torch.zeros(count, side, side, dtype=torch.bool)
    masks[:, : side // 2] = True
    with FlopCounterMode(display=False, custom_mapping={aten.convolution_backward: convolution_backward}) as reference:  # type: ignore[no-untyped-call]
        step(Batch(images, masks, ids, ids, 0, 0, ids), 1.0)
    assert reference.get_total_flops() == count * counted > 0


def test_every_recipe_is_compared_with_torchs_own_counter() -> None:
    assert {name for name, _ in STEPS} == recipes.RECIPES.keys()


def test_the_published_features_network_is_counted_by_hand() -> None:
    """Layer by layer: weights of a map x maps x places (section 5.2, figure 9; the decoder's sizes are those of docs/method.md)."""
    encoder = [
        (3 * 11 * 11) * 96 * (55 * 55),
        (96 // 2 * 5 * 5) * 256 * (27 * 27),  # two groups: each map sees half of the maps before
        (256 * 3 * 3) * 384 * (13 * 13),
        (384 // 2 * 3 * 3) * 384 * (13 * 13),
        (384 // 2 * 3 * 3) * 256 * (13 * 13),
    ]
    channelwise, mixing = (6 * 6) * 256 * (6 * 6), 256 * 256 * (6 * 6)
    decoder = [
        (128 * 5 * 5) * 256 * (6 * 6),  # an up-convolution: every place of its input goes into a kernel's places of the result
        (64 * 5 * 5) * 128 * (11 * 11),
        (64 * 5 * 5) * 64 * (21 * 21),
        (32 * 5 * 5) * 64 * (41 * 41),
        (3 * 5 * 5) * 32 * (81 * 81),
    ]
    resize = 3 * (227 * 161 * 161 + 227 * 161 * 227)  # rows, then columns, of three channels
    layers = sum(encoder) + channelwise + mixing + sum(decoder)
    forward, weights, inputs = layers + resize, layers, layers + resize - encoder[0]  # pictures need no gradient, a resize has no weights
    assert flops_per_image(made("features", {})) == 2 * (forward + weights + inputs) == 5_177_652_048


def test_a_generator_and_its_discriminator_are_counted_by_hand() -> None:
    """A step of the pair paints once and judges three times, whatever an implementation repeats (section 5.1, the released code)."""
    w, code = 4, 12  # 64 and 4000 in the paper
    encoder = [
        (3 * 4 * 4) * w * (64 * 64),
        (w * 4 * 4) * w * (32 * 32),
        (w * 4 * 4) * 2 * w * (16 * 16),
        (2 * w * 4 * 4) * 4 * w * (8 * 8),
        (4 * w * 4 * 4) * 8 * w * (4 * 4),
        (8 * w * 4 * 4) * code,
    ]
    decoder = [
        (8 * w * 4 * 4) * code,
        (4 * w * 4 * 4) * 8 * w * (4 * 4),
        (2 * w * 4 * 4) * 4 * w * (8 * 8),
        (w * 4 * 4) * 2 * w * (16 * 16),
        (3 * 4 * 4) * w * (32 * 32),
    ]
    judge = [
        (3 * 4 * 4) * w * (32 * 32),
        (w * 4 * 4) * 2 * w * (16 * 16),
        (2 * w * 4 * 4) * 4 * w * (8 * 8),
        (4 * w * 4 * 4) * 8 * w * (4 * 4),
        8 * w * 4 * 4,
    ]
    painting, judging = sum(encoder) + sum(decoder), sum(judge)
    generator = 3 * painting - encoder[0]  # forward, weights, inputs but for the context
    discriminator = 2 * (3 * judging - judge[0])  # the same, of a real and of a painted region
    verdict = 2 * judging  # of the painting by the discriminator after its update: forward, and inputs alone
    assert flops_per_image(made("inpainting", INPAINTING)) == 2 * (generator + discriminator + verdict)
