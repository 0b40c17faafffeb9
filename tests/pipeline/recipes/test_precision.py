"""Under bf16 autocast everything that adds up stays in float32: losses, gradients, and the statistics of batch norm."""

from __future__ import annotations

import torch

from pipeline import recipes
from pipeline.model.batch_norm import GroupedBatchNorm2d, fold_statistics
from pipeline.recipes.inpainting import InpaintingSettings


def test_losses_gradients_and_statistics_stay_in_float32() -> None:
    torch.manual_seed(0)
    recipe = recipes.make("inpainting", InpaintingSettings(width=8, bottleneck=8, batch_norm_group=2), 0, {})
    side = recipe.image_size
    images, masks = torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8), torch.rand(2, side, side) < 0.3
    views = recipe.views(images, masks, None, torch.arange(2))
    networks = {player.name: player.network.train() for player in recipe.players}
    computed = set[torch.dtype]()
    for player in recipe.players:
        for network in networks.values():
            network.requires_grad_(network is player.network)
        layer = next(each for each in player.network.modules() if isinstance(each, torch.nn.Conv2d))
        hook = layer.register_forward_hook(lambda _layer, _inputs, output: computed.add(output.dtype))
        with torch.autocast("cpu", torch.bfloat16):
            losses = player.loss(views, networks)
        hook.remove()
        losses.total.sum().backward()
        assert {each.dtype for each in (losses.total, *losses.parts.values())} == {torch.float32}
        assert {each.grad.dtype for each in player.network.parameters() if each.grad is not None} == {torch.float32}
        fold_statistics(player.network, lambda summed: summed)
        for norm in (each for each in player.network.modules() if isinstance(each, GroupedBatchNorm2d)):
            assert norm.running_mean.dtype == norm.running_var.dtype == torch.float32
            assert norm.accumulated.dtype == torch.float64
            halves = norm.running_mean.bfloat16().float()
            assert not torch.equal(norm.running_mean, halves), "the mean was rounded to bf16"
    assert computed == {torch.bfloat16}, "or nothing was computed in bf16"
