"""Relative patch position: places, colours and losses against what is written independently here."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline import recipes
from pipeline.mapping import ConfigError
from pipeline.recipes.player import ClassifyingRecipe
from pipeline.recipes.relative_position import POSITIONS, PatchPairs, RelativePositionSettings, cut, dropped, patch_pairs, projected
from pipeline.training.reporting.flops import flops_per_image

SMALL = RelativePositionSettings(patch=70, gap=20, jitter=5, width=6, units=12, batch_norm_group=2)


def made(settings: RelativePositionSettings) -> ClassifyingRecipe:
    recipe = recipes.make("relative_position", settings, 0)
    assert isinstance(recipe, ClassifyingRecipe)
    return recipe


def batch(side: int, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random pictures, masks without a dropped pixel, and keys."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=generator)
    keys = torch.randint(-(2**62), 2**62, (count,), generator=generator)
    return images, torch.zeros(count, side, side, dtype=torch.bool), keys


@pytest.mark.parametrize(("patch", "gap", "jitter"), [(96, 48, 7), (70, 20, 5), (96, 14, 7), (8, 0, 0)])
def test_places_are_those_of_a_jittered_grid(patch: int, gap: int, jitter: int, draw: random.Random) -> None:
    count, side = 20_000, 2 * patch + gap + 2 * jitter
    keys = torch.randint(-(2**63), 2**63 - 1, (count,), generator=torch.Generator().manual_seed(draw.getrandbits(32)))
    pairs = patch_pairs(keys, patch, gap, jitter)
    top, left, position = pairs.top.numpy(), pairs.left.numpy(), pairs.position.numpy()
    assert min(top.min(), left.min()) == 0, "the whole picture is used"
    assert max(top.max(), left.max()) == side - patch
    shares = np.bincount(position, minlength=8) / count
    assert np.abs(shares - 1 / 8).max() < 5 * np.sqrt(1 / 8 * 7 / 8 / count)
    moved = np.stack([top[:, 1] - top[:, 0], left[:, 1] - left[:, 0]], 1)
    apart = (np.abs(moved) >= patch).any(1)
    assert apart.all(), "patches never overlap"
    beside = moved - (patch + gap) * np.array(POSITIONS)[position]
    assert beside.min() == -2 * jitter
    assert beside.max() == 2 * jitter, "the difference of two jitters"
    if jitter:
        assert abs(np.corrcoef(beside.T)[0, 1]) < 5 / np.sqrt(count), "rows and columns are moved independently"
    # a class is where the second patch lies, the grid read from its top left without the middle
    row, column = (np.where(np.abs(each) >= patch, np.sign(each), 0) for each in moved.T)
    place = 3 * (row + 1) + column + 1
    assert np.array_equal(position, place - (place > 4))


def test_patches_are_cut_where_they_lie_and_depend_on_their_own_key_alone() -> None:
    images, _, keys = batch(170, 6)
    pairs = patch_pairs(keys, 70, 20, 5)
    found = cut(images, pairs, 70).view(6, 2, 70, 70, 3)
    for number in range(6):
        for which in range(2):
            top, left = int(pairs.top[number, which]), int(pairs.left[number, which])
            assert torch.equal(found[number, which], images[number, top : top + 70, left : left + 70])
    alone = patch_pairs(keys[4:5], 70, 20, 5)
    assert isinstance(alone, PatchPairs)
    assert torch.equal(alone.top[0], pairs.top[4])


@pytest.mark.parametrize("colour", ["dropping", "projection", "none"])
def test_views_of_a_batch_are_those_of_its_parts_to_the_bit(colour: str) -> None:
    recipe = made(replace(SMALL, colour=colour))  # type: ignore[arg-type]
    images, masks, keys = batch(recipe.image_size, 6)
    whole = recipe.views(images, masks, None, keys)
    parts = [recipe.views(images[part], masks[part], None, keys[part]) for part in (slice(0, 1), slice(1, 4), slice(4, 6))]
    for name, values in whole.items():
        assert torch.equal(values, torch.cat([part[name] for part in parts])), name
    assert whole["patches"].shape == (6, 2, 3, 70, 70)


def test_the_projection_removes_every_shift_of_green_against_magenta() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, 40, 40, dtype=torch.float64, generator=generator)
    axis = np.array([-1.0, 2.0, -1.0])
    matrix = np.eye(3) - np.outer(axis, axis) / (axis @ axis)
    found = projected(pixels)
    assert torch.allclose(found, torch.from_numpy(np.einsum("ij,njhw->nihw", matrix, pixels.numpy())), atol=1e-12)
    shift = torch.roll(pixels[:, 1:2], 3, 3) * torch.tensor(axis).view(1, 3, 1, 1)  # any picture along the axis, as a lens adds one
    assert torch.allclose(projected(pixels + shift), found, atol=1e-12)
    assert not torch.allclose(projected(pixels + torch.roll(pixels, 3, 3)), found, atol=0.1)


def test_whole_pictures_are_projected_as_patches_are() -> None:
    images, _, keys = batch(90, 2)
    seen = made(replace(SMALL, colour="projection")).whole(images, keys)["patches"]  # type: ignore[attr-defined]
    plain = made(replace(SMALL, colour="none")).whole(images, keys)["patches"]  # type: ignore[attr-defined]
    axis = torch.tensor([-1.0, 2.0, -1.0]).view(3, 1, 1)
    assert float((seen * axis).sum(2).abs().max()) < 1e-5 < float((plain * axis).sum(2).abs().max())
    assert torch.equal(seen[:, 0], projected(plain[:, 0]))
    assert torch.equal(made(replace(SMALL, colour="dropping")).whole(images, keys)["patches"], plain)  # type: ignore[attr-defined]


def test_two_channels_of_a_patch_leave_no_trace() -> None:
    images, _, keys = batch(70, 100)
    patches = made(SMALL).scale.normalise(images)
    found = dropped(patches, keys[:50])
    kept = (found == patches).flatten(2).all(2)
    assert torch.equal(kept.sum(1), torch.ones(100, dtype=torch.int64))
    assert (kept.sum(0) > 15).all(), "each channel for a third of the patches"
    assert 20 < int((kept[::2] != kept[1::2]).any(1).sum()) < 45, "both patches of a picture keep the same channel in a third of 50"
    others = torch.where(kept[:, :, None, None], patches, torch.randn(patches.shape, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(dropped(others, keys[:50]), found), "whatever was in the dropped channels"
    noise = found[~kept].view(100, 2, -1)
    ratio = noise.std(2) / patches[kept].flatten(1).std(1)[:, None]
    assert float(ratio.mean()) == pytest.approx(0.01, rel=0.01)
    assert float(noise.mean().abs()) < 1e-4


def reference_loss(recipe: ClassifyingRecipe, patches: torch.Tensor, position: NDArray[np.int64]) -> NDArray[np.float64]:
    """Everything behind the encoder with NumPy, in float64."""
    network = recipe.players[0].network.double()
    with torch.no_grad():
        encoded = [network.encoder(patches[:, which].double()).flatten(1).numpy() for which in range(2)]
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}

    def layer(name: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    each = [np.maximum(layer("fc6", values), 0) for values in encoded]
    values = np.concatenate(each, axis=1)
    for name in ("fc7", "fc8"):
        values = np.maximum(layer(name, values), 0)
    logits = layer("fc9", values)
    logits -= logits.max(1, keepdims=True)
    chosen: NDArray[np.float64] = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(position)), position]
    return chosen


def test_the_loss_is_the_cross_entropy_of_a_siamese_network() -> None:
    recipe = made(replace(SMALL, batch_norm=False, colour="none"))
    for layer in ("fc6", "fc9"):
        torch.nn.init.normal_(recipe.players[0].network.get_parameter(f"{layer}.bias"), 0.0, 0.5)
    images, masks, keys = batch(recipe.image_size, 5)
    views = recipe.views(images, masks, None, keys)
    losses = recipe.players[0].loss(views, {"classifier": recipe.players[0].network})
    logits = recipe.classify(views, {"classifier": recipe.players[0].network}).detach()
    expected = reference_loss(recipe, views["patches"], views["position"].numpy())
    assert np.allclose(losses.total.detach().numpy(), expected, rtol=1e-4)
    assert expected.std() > 0.01
    assert torch.equal(losses.parts["accuracy"], (logits.argmax(1) == recipe.truth(views)).float())


def test_places_that_the_pictures_give_away_are_learned() -> None:
    """Red grows to the right and blue to the bottom of every picture, so that two mean colours say where the patches lie."""
    recipe = made(replace(SMALL, units=32, batch_norm_group=4, colour="none"))
    (player,) = recipe.players
    networks, optimiser = {"classifier": player.network.train()}, torch.optim.Adam(player.network.parameters(), 3e-3)
    side = recipe.image_size
    down, right = torch.meshgrid(torch.linspace(0, 255, side), torch.linspace(0, 255, side), indexing="ij")
    pictures = torch.stack([right, (right + down) / 2, down], -1).to(torch.uint8).expand(8, -1, -1, -1)
    right_answers = []
    for step in range(30):
        optimiser.zero_grad()
        losses = player.loss(recipe.views(pictures, pictures[..., 0] < 0, None, batch(1, 8, step)[2]), networks)
        losses.total.mean().backward()
        assert all(parameter.grad is not None for parameter in player.network.parameters())
        optimiser.step()
        right_answers.append(float(losses.parts["accuracy"].mean()))
    assert np.mean(right_answers[-10:]) > 0.3, "of eight places, for pairs that were never drawn before"


def test_an_exported_projection_sees_pictures_in_all_colours() -> None:
    recipe = made(replace(SMALL, colour="projection", batch_norm=False))
    encoder = recipe.players[0].network.encoder
    pixels = torch.randn(2, 3, 90, 90, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = encoder(projected(pixels))
        assert not torch.allclose(encoder(pixels), expected, atol=1e-3)
        encoder.load_state_dict(recipe.exported(encoder.state_dict()))
        assert torch.allclose(encoder(pixels), expected, atol=1e-5)
    plain = made(replace(SMALL, colour="dropping"))
    weights = plain.players[0].network.encoder.state_dict()
    assert plain.exported(weights) == weights


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (replace(SMALL, gap=9), "method.gap: 9 is less than twice the jitter of 5"),
        (replace(SMALL, patch=60), "patch: nothing of 60 pixels is left"),
        (replace(SMALL, width=7), "method.width: 7 is not a multiple of 6"),
    ],
)
def test_settings_that_make_no_pair_of_patches_are_named(settings: RelativePositionSettings, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipes.make("relative_position", settings, 0)


def test_its_operations_are_counted_for_both_patches() -> None:
    recipe = made(SMALL)
    network, places = recipe.players[0].network, (15, 7, 3, 3, 3)  # sides of the maps of conv1 to conv5
    encoder = [2 * network.get_submodule(f"encoder.conv{number}").weight.numel() * side**2 for number, side in enumerate(places, 1)]
    layers = {number: 2 * network.get_submodule(f"fc{number}").weight.numel() for number in (6, 7, 8, 9)}
    forward = 2 * sum(encoder) + 2 * layers[6] + layers[7] + layers[8] + layers[9]
    assert flops_per_image(recipe) == 3 * forward - 2 * encoder[0], "but for the gradients of the pictures"


def test_the_published_sizes() -> None:
    recipe = recipes.make("relative_position", RelativePositionSettings(width=12, units=4), 0)
    assert recipe.image_size == 2 * 96 + 48 + 2 * 7
    assert recipe.unit == 32
