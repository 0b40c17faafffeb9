"""Views and losses of each recipe are those of the paper and of the released code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from pipeline import recipes
from pipeline.mapping import ConfigError
from pipeline.masking import MaskConfig
from pipeline.recipes.features import FeaturesRecipe, FeaturesSettings
from pipeline.recipes.inpainting import InpaintingRecipe, InpaintingSettings

SMALL = InpaintingSettings(width=4, bottleneck=8, batch_norm_group=2)


def batch(size: int, recipe: object) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two random pictures with the recipe's masks."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8)
    masks = torch.zeros(2, size, size, dtype=torch.bool)
    source = recipe.mask  # type: ignore[attr-defined]
    if source is not None:
        for key in range(2):
            source.draw(key, masks[key].numpy())
    return images, masks, torch.tensor([11, -5])


def test_every_file_with_a_recipe_is_found() -> None:
    assert set(recipes.RECIPES) == {"features", "inpainting", "autoencoder", "denoising", "relative_position", "labels"}


def test_the_seed_decides_the_weights() -> None:
    first, again, other = (recipes.make("inpainting", SMALL, seed).players[1].network.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["to_bottleneck.weight"], other["to_bottleneck.weight"])


def test_features_centre_on_caffes_mean_and_holes_become_that_mean() -> None:
    recipe = FeaturesRecipe(FeaturesSettings())
    assert [player.name for player in recipe.players] == ["context_encoder"]
    images, masks, keys = batch(227, recipe)
    views = recipe.views(images, masks, None, keys)
    centred = (images.permute(0, 3, 1, 2).double() - torch.tensor([123.0, 117.0, 104.0], dtype=torch.float64).view(1, 3, 1, 1)) / 128
    assert torch.allclose(views["target"].double(), centred, atol=1e-6)
    hole = masks.unsqueeze(1).expand(-1, 3, -1, -1)
    assert 0.05 < masks.float().mean() < 0.26
    assert torch.all(views["context"][hole] == 0)
    assert torch.equal(views["context"][~hole], views["target"][~hole])
    assert torch.equal(views["mask"], masks.unsqueeze(1))


def test_features_lose_over_the_hole_alone() -> None:
    recipe = FeaturesRecipe(FeaturesSettings(norm="l2", dropout=0.0))
    images, masks, keys = batch(227, recipe)
    views = recipe.views(images, masks, None, keys)
    losses = recipe.players[0].loss(views, {"context_encoder": recipe.players[0].network})
    with torch.no_grad():
        prediction = recipe.players[0].network(views["context"], keys)
    for number in range(2):
        difference = (prediction[number] - views["target"][number])[:, masks[number]]
        assert float(losses.total[number].detach()) == pytest.approx(float(difference.square().mean()), rel=1e-5)
    assert torch.equal(losses.parts["reconstruction"], losses.total.detach())


def test_a_smaller_target_takes_its_mask_along() -> None:
    recipe = FeaturesRecipe(FeaturesSettings(target_size=81))
    images, masks, keys = batch(227, recipe)
    views = recipe.views(images, masks, None, keys)
    assert views["target"].shape == (2, 3, 81, 81)
    assert views["mask"].shape == (2, 1, 81, 81)
    assert float(views["mask"].float().mean()) == pytest.approx(float(masks.float().mean()), abs=0.01)


def test_the_autoencoder_sees_everything_and_loses_over_everything() -> None:
    recipe = recipes.make("autoencoder", FeaturesSettings(norm="l1", dropout=0.0), 0)
    assert recipe.mask is None
    images, masks, keys = batch(227, recipe)
    views = recipe.views(images, masks, None, keys)
    assert torch.equal(views["context"], views["target"])
    network = recipe.players[0].network
    losses = recipe.players[0].loss(views, {"context_encoder": network})
    with torch.no_grad():
        expected = (network(views["context"], keys) - views["target"]).abs().flatten(1).mean(1)
    assert torch.allclose(losses.total, expected, rtol=1e-5)


def test_inpainting_fills_the_56_pixel_hole_and_predicts_64() -> None:
    recipe = InpaintingRecipe(SMALL)
    assert [player.name for player in recipe.players] == ["discriminator", "generator"]
    images, masks, keys = batch(128, recipe)
    views = recipe.views(images, masks, None, keys)
    assert int(masks[0].sum()) == 56 * 56
    assert masks[0, 36:92, 36:92].all()
    truth = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    assert torch.allclose(views["target"], truth[:, :, 32:96, 32:96], atol=1e-6)
    fill = torch.tensor([117.0, 104.0, 123.0]) / 127.5 - 1
    assert torch.allclose(views["context"][0, :, 64, 64], fill, atol=1e-6)
    assert torch.allclose(views["context"][:, :, :36], truth[:, :, :36], atol=1e-6)
    assert views["mask"].shape == (2, 1, 64, 64)


@pytest.mark.parametrize(("kind", "painted", "hole"), [("central", 32, 24), ("block", 64, None)])
def test_crops_of_64_pixels_are_painted_whole_or_in_their_middle_half(kind: Any, painted: int, hole: int | None) -> None:
    recipe = InpaintingRecipe(replace(SMALL, image_size=64, mask=MaskConfig(kind=kind, overlap=4 if hole else 0)))
    networks = {player.name: player.network.train() for player in recipe.players}
    images, masks, keys = batch(64, recipe)
    views = recipe.views(images, masks, None, keys)
    assert all(player.loss(views, networks).total.shape == (2,) for player in recipe.players)
    truth = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    inside = slice((64 - painted) // 2, (64 + painted) // 2)
    assert torch.allclose(views["target"], truth[..., inside, inside], atol=1e-6)
    shown = recipe.paintings(views, recipe.paint(views, networks).detach())
    assert torch.equal(shown.mask[:, 0], masks)
    assert shown.prediction.shape == shown.truth.shape == (2, 3, 64, 64)
    if hole:
        assert int(masks[0].sum()) == hole**2


def generator_losses(settings: InpaintingSettings) -> tuple[dict[str, torch.Tensor], torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    """Views, the prediction, the parts and the total of the generator's turn."""
    recipe = InpaintingRecipe(settings)
    networks = {player.name: player.network.train() for player in recipe.players}
    views = recipe.views(*batch(128, recipe)[:2], None, torch.tensor([1, 2]))
    with torch.no_grad():
        prediction = networks["generator"](views["context"], views["keys"])
    losses = recipe.players[-1].loss(views, networks)
    return dict(views), prediction, dict(losses.parts), losses.total


def test_the_border_weighs_ten_times_and_the_logged_loss_does_not() -> None:
    views, prediction, parts, total = generator_losses(replace(SMALL, reconstruction_weight=1.0, adversarial_weight=0.0))
    squared = (prediction - views["target"]).square()
    weight = torch.full((64, 64), 10.0)
    weight[4:60, 4:60] = 1.0
    assert torch.allclose(total, (squared * weight).flatten(1).mean(1), rtol=1e-5)
    assert torch.allclose(parts["reconstruction"], squared.flatten(1).mean(1), rtol=1e-5)


def test_the_joint_loss_is_0_999_and_0_001() -> None:
    settings = replace(SMALL, mask=MaskConfig(kind="central", overlap=0))
    _, _, parts, total = generator_losses(settings)
    assert torch.allclose(total, 0.999 * parts["reconstruction"] + 0.001 * parts["adversarial"], rtol=1e-5)


@pytest.mark.parametrize("weigh_context", [False, True])
def test_random_regions_lose_over_the_whole_crop(weigh_context: bool) -> None:
    settings = replace(
        SMALL, mask=MaskConfig(kind="region"), weigh_context=weigh_context, reconstruction_weight=1.0, adversarial_weight=0.0
    )
    views, prediction, _, total = generator_losses(settings)
    assert prediction.shape == (2, 3, 128, 128)
    squared = (prediction - views["target"]).square()
    weight = torch.where(views["mask"], 1.0, 10.0) if weigh_context else torch.ones(1)
    assert torch.allclose(total, (squared * weight).flatten(1).mean(1), rtol=1e-5)


def test_the_discriminator_judges_the_patch_without_touching_the_generator() -> None:
    recipe = InpaintingRecipe(SMALL)
    networks = {player.name: player.network.train() for player in recipe.players}
    views = recipe.views(*batch(128, recipe)[:2], None, torch.tensor([1, 2]))
    losses = recipe.players[0].loss(views, networks)
    losses.total.sum().backward()
    assert all(parameter.grad is None for parameter in networks["generator"].parameters())
    assert all(parameter.grad is not None for parameter in networks["discriminator"].parameters())
    assert set(losses.parts) == {"adversarial", "accuracy_real", "accuracy_generated"}


def test_an_adversarial_loss_brings_a_discriminator_into_the_features_recipe() -> None:
    recipe = FeaturesRecipe(FeaturesSettings(adversarial_weight=0.001, batch_norm_group=2))
    assert [player.name for player in recipe.players] == ["discriminator", "context_encoder"]
    assert recipe.unit == 2
    networks = {player.name: player.network.train() for player in recipe.players}
    images, masks, keys = batch(227, recipe)
    views = recipe.views(images, masks, None, keys)
    assert set(recipe.players[1].loss(views, networks).parts) == {"reconstruction", "adversarial"}
    assert recipe.players[0].loss(views, networks).total.shape == (2,)


@pytest.mark.parametrize(("layout", "width", "judge"), [("caffenet", None, 64), ("caffenet", 12, 8), ("torchvision", 8, 8)])
def test_a_width_scales_painter_and_discriminator_alike(layout: Any, width: int | None, judge: int) -> None:
    recipe = FeaturesRecipe(FeaturesSettings(layout=layout, width=width, adversarial_weight=0.001, batch_norm_group=2))
    first = [next(player.network.parameters()).shape[0] for player in recipe.players]
    assert first == [judge, width or 96]


@pytest.mark.parametrize(
    ("name", "method", "message"),
    [
        ("features", FeaturesSettings(dropout=1.0), "method: dropout"),
        ("features", FeaturesSettings(mixing_kernel=2), "method.mixing_kernel: 2 is not odd"),
        ("features", FeaturesSettings(target_size=0), "method: target_size"),
        ("features", FeaturesSettings(width=40), "method.width: 40 is not a multiple of 6"),
        ("autoencoder", FeaturesSettings(width=3, layout="torchvision"), "method.width: 3 is not a multiple of 2"),
        ("features", FeaturesSettings(mask=MaskConfig(kind="central", overlap=120)), "method: .*overlap"),
        ("features", FeaturesSettings(reconstruction_weight=0.0), "nothing would be learned"),
        ("inpainting", replace(SMALL, mask=MaskConfig(kind="central", max_fraction=0.3)), "64 x 64 of 128 x 128"),
        ("inpainting", replace(SMALL, overlap_weight=3.0, mask=MaskConfig(kind="central")), "method.overlap_weight: .*overlap is 0"),
        ("inpainting", replace(SMALL, overlap_weight=3.0, mask=MaskConfig()), "method.overlap_weight: .*weigh_context is False"),
        (
            "inpainting",
            replace(SMALL, conditional_discriminator=True, adversarial_weight=0.0),
            "method.conditional_disc.*: there is no",
        ),
        ("inpainting", replace(SMALL, image_size=64, mask=MaskConfig(kind="central", overlap=16)), "16 pixels .* nothing of the 32 x 32"),
    ],
)
def test_settings_that_no_network_can_be_made_of_are_named(name: str, method: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipes.make(name, method, 0)
