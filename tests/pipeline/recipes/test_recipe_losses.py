"""The losses of every player are computed again in float64 from pictures, masks, paintings and verdicts alone."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from pipeline import recipes
from pipeline.masking import MaskConfig
from pipeline.recipes.features import FeaturesSettings
from pipeline.recipes.inpainting import InpaintingSettings
from pipeline.recipes.player import Losses, Recipe

Numbers = NDArray[np.float64]
INPAINTING: dict[str, Any] = {"image_size": 64, "width": 2, "bottleneck": 4, "batch_norm_group": 2}
BLOCK = MaskConfig(kind="block")  # a region of whatever shape
FEATURES: dict[str, Any] = {"layout": "torchvision", "width": 2, "batch_norm_group": 2, "mask": BLOCK}


def central(overlap: int) -> MaskConfig:
    return MaskConfig(kind="central", overlap=overlap)


CASES: dict[str, tuple[str, object]] = {
    "features, L2": ("features", FeaturesSettings(**FEATURES, norm="l2", batch_norm=True)),
    "features, a smaller target": ("features", FeaturesSettings(**FEATURES, target_size=81)),
    "features, joint": ("features", FeaturesSettings(**FEATURES, reconstruction_weight=0.9, adversarial_weight=0.1)),
    "autoencoder": ("autoencoder", FeaturesSettings(**FEATURES, norm="l2")),
    "inpainting, overlap 4": ("inpainting", InpaintingSettings(**INPAINTING, mask=central(4))),
    "inpainting, overlap 7": ("inpainting", InpaintingSettings(**INPAINTING, mask=central(7), norm="l1", overlap_weight=3.0)),
    "inpainting, no overlap": ("inpainting", InpaintingSettings(**INPAINTING, mask=central(0))),
    "inpainting, adversarial only": (
        "inpainting",
        InpaintingSettings(**INPAINTING, mask=central(4), reconstruction_weight=0.0, adversarial_weight=1.0),
    ),
    "inpainting, equal rates": (
        "inpainting",
        InpaintingSettings(**INPAINTING, mask=central(0), reconstruction_weight=10.0, adversarial_weight=1.0),
    ),
    "inpainting, no discriminator": (
        "inpainting",
        InpaintingSettings(**INPAINTING, mask=BLOCK, reconstruction_weight=1.0, adversarial_weight=0.0),
    ),
    "inpainting, random": ("inpainting", InpaintingSettings(**INPAINTING, mask=BLOCK)),
    "inpainting, useOverlapPred": ("inpainting", InpaintingSettings(**INPAINTING, mask=BLOCK, weigh_context=True)),
    "inpainting, conditional": ("inpainting", InpaintingSettings(**INPAINTING, mask=central(4), conditional_discriminator=True)),
    "inpainting, noise": ("inpainting", InpaintingSettings(**INPAINTING, mask=central(4), noise=3)),
}


@dataclass
class Turn:
    """A player's turn on two pictures.

    Attributes:
        losses: result of the player's loss function.
        context: pictures that the painter was shown, float64 (2, 3, S, S).
        painting: output of the painter, with its gradient's history.
        logits: verdicts of each batch that was judged, with their history.
        judged: batches that were judged, float64 (2, 3, s, s).
    """

    losses: Losses
    context: Numbers
    painting: Tensor
    logits: list[Tensor] = field(default_factory=list)
    judged: list[Numbers] = field(default_factory=list)


def turn(recipe: Recipe, player: str, images: Tensor, masks: Tensor) -> Turn:
    networks = {each.name: each.network.train() for each in recipe.players}
    seen: dict[str, tuple[tuple[Tensor, ...], Any]] = {}
    hooks = []
    for name, network in networks.items():
        network.requires_grad_(name == player)  # as in the training: the others are frozen
        hooks.append(network.register_forward_hook(lambda _, inputs, output, name=name: seen.__setitem__(name, (inputs, output))))
    views = recipe.views(images, masks, None, torch.tensor([11, -5]))
    losses = next(each for each in recipe.players if each.name == player).loss(views, networks)
    for hook in hooks:
        hook.remove()
    (context, *_), painting = seen[recipe.painter]
    found = Turn(losses, context.double().numpy(), painting)
    if "discriminator" in seen:
        regions, logits = seen["discriminator"]
        found.logits, found.judged = list(logits), [each.detach().double().numpy() for each in regions]
    return found


def pictures(recipe: Recipe, draw: random.Random) -> tuple[Tensor, Tensor]:
    numbers = np.random.default_rng(draw.getrandbits(32))
    side = recipe.image_size
    masks = np.zeros((2, side, side), np.bool_)
    if recipe.mask is not None:
        for row in masks:
            recipe.mask.draw(draw.getrandbits(64), row)
    return torch.tensor(numbers.integers(0, 256, (2, side, side, 3), dtype=np.uint8)), torch.tensor(masks)


def scaled(name: str, images: Tensor, masks: Tensor) -> tuple[Numbers, Numbers]:
    """Pictures as the networks see them, and the same with their holes filled, float64 (2, 3, S, S)."""
    values = images.double().numpy().transpose(0, 3, 1, 2)
    if name == "inpainting":  # [-1, 1]; the hole is Caffe's mean with its channels permuted
        whole, fill = 2 * values / 255 - 1, [2 * each / 255 - 1 for each in (117, 104, 123)]
    else:  # mean-centred; the hole is the mean
        whole, fill = (values - np.array([123, 117, 104]).reshape(1, 3, 1, 1)) / 128, [0, 0, 0]
    context = np.where(masks.numpy()[:, None], np.array(fill, np.float64).reshape(1, 3, 1, 1), whole)
    return whole, context


def shrunk(pictures: Numbers, side: int) -> Numbers:
    """Pictures at another size by Pillow's triangle filter, which widens as it shrinks them."""
    planes = [
        Image.fromarray(plane.astype(np.float32)).resize((side, side), Image.Resampling.BILINEAR) for plane in np.concatenate(pictures)
    ]
    return np.stack([np.asarray(plane, np.float64) for plane in planes]).reshape(*pictures.shape[:2], side, side)


def weights_of(name: str, settings: Any, dropped: NDArray[np.bool_]) -> Numbers:
    """The weight of each predicted pixel over its divisor, float64 (2, S, S): the gradient's, where it differs from the logged one."""
    if name == "features":  # the dropped pixels alone
        return np.stack([each / (3 * each.sum()) for each in dropped])
    even = np.full(dropped.shape, 1 / (3 * dropped[0].size))
    if name == "autoencoder":
        return even
    weighed = settings.weigh_context or settings.mask.kind == "central"
    return np.where(dropped, 1.0, settings.overlap_weight if weighed else 1.0) * even


@pytest.mark.parametrize("case", CASES)
def test_the_painter_minimises_the_joint_loss_and_logs_its_parts_unweighted(case: str, draw: random.Random) -> None:
    name, settings = CASES[case]
    chosen: Any = settings
    recipe = recipes.make(name, settings, draw.getrandbits(32))
    images, masks = pictures(recipe, draw)
    found = turn(recipe, recipe.painter, images, masks)
    whole, context = scaled(name, images, masks)
    assert np.allclose(found.context, context, atol=1e-6)

    side = found.painting.shape[-1]
    border = (whole.shape[-1] - side) // 2
    inside = slice(border, whole.shape[-1] - border)
    target, dropped = whole[..., inside, inside], masks.numpy()[..., inside, inside]
    if name == "features" and side < 227:
        target, dropped = shrunk(whole, side), shrunk(masks.double().numpy()[:, None], side)[:, 0] > 0.5
    painting = found.painting.detach().double().numpy()
    weights = weights_of(name, settings, dropped)
    even = weights if name == "features" else np.full(dropped.shape, 1 / (3 * dropped[0].size))
    absolute = chosen.norm == "l1"
    difference = painting - target
    error = np.abs(difference) if absolute else difference**2
    minimised, logged = (np.array([(error[row] * each[row]).sum() for row in range(2)]) for each in (weights, even))
    assert np.allclose(found.losses.parts["reconstruction"], logged, rtol=1e-5)

    expected = chosen.reconstruction_weight * minimised
    slopes = chosen.reconstruction_weight * weights[:, None] * (np.sign(difference) if absolute else 2 * difference)
    if chosen.adversarial_weight:
        (logits,) = found.logits
        verdicts = 1 / (1 + np.exp(-logits.detach().double().numpy()))
        adversarial = -np.log(verdicts)
        assert np.allclose(found.losses.parts["adversarial"], adversarial, rtol=1e-5)
        expected = expected + chosen.adversarial_weight * adversarial
        through = torch.autograd.grad(logits, found.painting, torch.tensor(verdicts - 1, dtype=torch.float32), retain_graph=True)[0]
        slopes = slopes + chosen.adversarial_weight * through.double().numpy()
    assert found.losses.total.dtype == torch.float32
    assert np.allclose(found.losses.total.detach(), expected, rtol=1e-5)
    gradient = torch.autograd.grad(found.losses.total.sum(), found.painting)[0].double().numpy()
    away = np.abs(difference) > 1e-4  # from the bend of L1, on whose other side float32 may lie
    assert away.mean() > 0.99
    assert np.allclose(gradient[away], slopes[away], rtol=1e-3, atol=1e-4 * np.abs(slopes).max())


@pytest.mark.parametrize("case", [case for case, (_, settings) in CASES.items() if settings.adversarial_weight])  # type: ignore[attr-defined]
def test_the_discriminator_minimises_its_two_logarithms_on_whole_regions(case: str, draw: random.Random) -> None:
    name, settings = CASES[case]
    recipe = recipes.make(name, settings, draw.getrandbits(32))
    images, masks = pictures(recipe, draw)
    found = turn(recipe, "discriminator", images, masks)
    real, painted = (1 / (1 + np.exp(-each.detach().double().numpy())) for each in found.logits)
    expected = -np.log(real) - np.log(1 - painted)
    assert np.allclose(found.losses.total.detach(), expected, rtol=1e-5)
    assert np.allclose(found.losses.parts["adversarial"], expected, rtol=1e-5)
    assert found.losses.parts["accuracy_real"].tolist() == [float(each > 0.5) for each in real]
    assert found.losses.parts["accuracy_generated"].tolist() == [float(each <= 0.5) for each in painted]
    whole, _ = scaled(name, images, masks)  # what is real is the picture's own pixels, and nothing is pasted into the painting
    border = (whole.shape[-1] - found.painting.shape[-1]) // 2
    inside = slice(border, whole.shape[-1] - border)
    target, painting = whole[..., inside, inside], found.painting.detach().double().numpy()
    if name == "features":
        target, painting = shrunk(target, 128), shrunk(painting, 128)
    assert np.allclose(found.judged[0], target, atol=1e-5)
    assert np.allclose(found.judged[1], painting, atol=1e-5)
    discriminator: nn.Module = next(each.network for each in recipe.players if each.name == "discriminator")
    gradients = torch.autograd.grad(found.losses.total.sum(), list(discriminator.parameters()))
    assert all(bool(each.any()) for each in gradients)
