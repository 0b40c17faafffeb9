"""Recipe "denoising": corruption that follows from the sample's key, and a loss against the whole clean picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline import recipes
from pipeline.mapping import ConfigError
from pipeline.recipes.denoising import _CORRUPTION, DenoisingRecipe, DenoisingSettings
from shards.keyed import uniforms

KEYS = torch.tensor([11, -5, 2**62])


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    images = torch.randint(0, 256, (3, 227, 227, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return images, torch.zeros(3, 227, 227, dtype=torch.bool), KEYS


def test_masked_pixels_are_those_that_the_key_names_and_the_loss_is_over_all() -> None:
    recipe = DenoisingRecipe(DenoisingSettings(width=6, amount=0.3, dropout=0.0))
    images, masks, keys = batch()
    views = recipe.views(images, masks, None, keys)
    clean = (images.permute(0, 3, 1, 2).double() - torch.tensor([123.0, 117.0, 104.0]).view(1, 3, 1, 1)) / 128
    for number, key in enumerate(keys.tolist()):
        masked = torch.from_numpy(uniforms(key % 2**64, _CORRUPTION, 227 * 227).reshape(227, 227) < 0.3)
        assert float(masked.double().mean()) == pytest.approx(0.3, abs=0.01)
        expected = torch.where(masked, 0.0, clean[number])
        assert torch.allclose(views["context"][number].double(), expected, atol=1e-6)
    losses = recipe.players[0].loss(views, {"context_encoder": recipe.players[0].network})
    with torch.no_grad():
        painted = recipe.players[0].network(views["context"], keys).double()
    expected = (painted - clean).abs().flatten(1).mean(1)
    assert np.allclose(losses.total.detach().numpy(), expected.numpy(), rtol=1e-5)
    shown = recipe.paintings(views, painted)
    assert not shown.mask.any(), "judged over every pixel"
    assert not torch.equal(shown.context, shown.truth)


def test_a_few_steps_lower_the_loss() -> None:
    recipe = recipes.make("denoising", DenoisingSettings(width=6, dropout=0.0), 0)
    (player,) = recipe.players
    images, masks, keys = batch()
    optimiser, means = torch.optim.Adam(player.network.parameters(), 3e-3), []
    for step in range(6):
        optimiser.zero_grad()
        loss = player.loss(recipe.views(images // 2, masks, None, keys + step), {"context_encoder": player.network}).total.mean()
        loss.backward()
        optimiser.step()
        means.append(float(loss.detach()))
    assert means[-1] < means[0]


def test_gaussian_noise_has_the_deviation_that_is_asked_for() -> None:
    recipe = DenoisingRecipe(DenoisingSettings(width=6, corruption="gaussian", amount=0.2))
    images, masks, keys = batch()
    views = recipe.views(images, masks, None, keys)
    noise = (views["context"] - views["target"]) * 128 / 255
    assert float(noise.std()) == pytest.approx(0.2, rel=0.01)
    assert float(noise.mean().abs()) < 2e-3
    assert float(torch.corrcoef(noise.flatten(1))[0, 1].abs()) < 0.02, "the noise of two keys"


@pytest.mark.parametrize("corruption", ["masking", "gaussian"])
def test_views_of_a_batch_are_those_of_its_parts_to_the_bit(corruption: str) -> None:
    recipe = DenoisingRecipe(DenoisingSettings(width=6, corruption=corruption, amount=0.2))  # type: ignore[arg-type]
    images, masks, keys = batch()
    whole = recipe.views(images, masks, None, keys)["context"]
    parts = [recipe.views(images[part], masks[part], None, keys[part])["context"] for part in (slice(0, 2), slice(2, 3))]
    assert torch.equal(whole, torch.cat(parts))
    seen = recipe.whole(images, keys)
    assert torch.equal(seen["context"], seen["target"]), "a probe sees clean pictures"


def test_masking_everything_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.amount: a probability of 1 masks every pixel"):
        recipes.make("denoising", DenoisingSettings(amount=1.0), 0)
    assert recipes.make("denoising", DenoisingSettings(width=6, corruption="gaussian", amount=1.0), 0).mask is None
