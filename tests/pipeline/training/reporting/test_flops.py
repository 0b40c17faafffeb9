"""Counting the operations of a picture leaves no trace, and each kind of layer costs what torch's own counter says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pipeline import recipes
from pipeline.config import parse
from pipeline.recipes.player import Losses
from pipeline.training.reporting.flops import _Counter, flops_per_image, peak_flops
from tests.pipeline.training.test_step import Line


def test_a_line_is_a_product_forward_and_one_for_its_weights() -> None:
    assert flops_per_image(Line()) == 2 * 48 + 2 * 48  # type: ignore[arg-type]


def test_counting_leaves_no_trace() -> None:
    settings = ["--recipe", "inpainting", "--method.width", "4", "--method.bottleneck", "4", "--method.batch_norm_group", "8"]
    recipe = recipes.make("inpainting", parse(recipes.SETTINGS, ["--data.shards", "x", *settings]).method, 0)
    before = [{name: value.clone() for name, value in player.network.state_dict().items()} for player in recipe.players]
    generator = torch.get_rng_state()
    assert flops_per_image(recipe) > 0
    assert torch.equal(torch.get_rng_state(), generator)
    for player, state in zip(recipe.players, before, strict=True):
        for name, value in player.network.state_dict().items():
            assert torch.equal(value, state[name]), name
        assert all(parameter.requires_grad and parameter.grad is None for parameter in player.network.parameters())
        assert all(module.training for module in player.network.modules())
        assert all(float(buffer.abs().sum()) == 0 for name, buffer in player.network.named_buffers() if name.endswith("accumulated"))


def test_a_recipe_that_can_not_be_counted_is_trained_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    class Picky(Line):
        def loss(self, views: dict[str, torch.Tensor], networks: dict[str, nn.Module]) -> Losses:
            raise ValueError("two pictures at least")

    recipe = Picky()
    assert math.isnan(flops_per_image(recipe))  # type: ignore[arg-type]
    assert "line" in caplog.text
    assert "two pictures at least" in caplog.text
    assert recipe.network.training


class Computed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations of the convolutions that really run while it is entered, a multiply-add as two."""

    operations = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if "convolution" in str(func):
            given, weight, transposed = args[0], args[1], args[6]
            self.operations += 2 * weight.numel() * (given if transposed else found).shape[2:].numel()
        return found


def test_counting_computes_a_small_part_of_what_it_counts() -> None:
    settings = ["--recipe", "inpainting", "--method.width", "16", "--method.bottleneck", "256"]
    recipe = recipes.make("inpainting", parse(recipes.SETTINGS, ["--data.shards", "x", *settings]).method, 0)
    with Computed() as computed:  # type: ignore[no-untyped-call]
        counted = flops_per_image(recipe)
    assert 0 < computed.operations < 0.05 * counted


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "layer",
    [
        lambda bias: nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4, bias=bias),
        lambda bias: nn.Conv2d(8, 16, 3, dilation=2, padding="same", groups=8, bias=bias),
        lambda bias: nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1, output_padding=1, groups=2, bias=bias),
        lambda bias: nn.ConvTranspose2d(8, 1, 5, bias=bias),
    ],
)
def test_while_counting_a_convolution_has_its_shape_its_first_map_and_its_gradient(layer: Callable[[bool], nn.Module], bias: bool) -> None:
    network, given = layer(bias), torch.randn(2, 8, 9, 7)
    real = network(given)
    with _Counter() as counter:
        found = network(given)
    assert found.shape == real.shape
    assert torch.allclose(found[:, 0], real[:, 0], atol=1e-5)
    assert found.requires_grad
    places = (given if isinstance(network, nn.ConvTranspose2d) else real).shape[2:].numel()
    weight = network.weight
    assert isinstance(weight, torch.Tensor)
    assert counter.operations == 2 * (2 * weight.numel() * 2 * places), "two pictures; forward, and the gradient of the weights"
    network.requires_grad_(False)
    with _Counter():
        assert not network(given).requires_grad


def test_a_convolution_of_one_picture_without_its_batch_is_not_refused() -> None:
    with _Counter():
        assert F.conv2d(torch.zeros(3, 8, 8), torch.zeros(4, 3, 3, 3)).shape == (4, 6, 6)


@pytest.mark.parametrize("needs_gradient", [True, False], ids=["with the input's gradient", "without"])
@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (lambda: nn.Conv2d(8, 12, 3, stride=2, padding=1), (2, 8, 9, 7)),
        (lambda: nn.Conv2d(8, 12, 3, dilation=2), (2, 8, 9, 7)),
        (lambda: nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1), (2, 8, 9, 7)),
        (lambda: nn.Linear(5, 7), (3, 5)),
        (lambda: nn.Sequential(nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 7 * 5, 6)), (2, 8, 9, 7)),
    ],
    ids=["convolution", "dilated", "transposed", "linear", "several"],
)
def test_without_groups_torch_counts_the_same(network: Callable[[], nn.Module], shape: tuple[int, ...], needs_gradient: bool) -> None:
    made, given = network(), torch.randn(shape, requires_grad=needs_gradient)
    with FlopCounterMode(display=False) as reference:  # type: ignore[no-untyped-call]
        made(given).sum().backward()
    with _Counter() as counter:
        made(given)
    assert counter.operations == reference.get_total_flops() > 0


def test_with_groups_torch_counts_the_gradient_of_the_weights_once_for_each_group() -> None:
    """The reason for a count of our own: when this fails, torch is right, and its FlopCounterMode may be considered again."""
    made, given = nn.Conv2d(8, 12, 3, padding=1, groups=4), torch.randn(2, 8, 9, 7)
    with FlopCounterMode(display=False) as reference:  # type: ignore[no-untyped-call]
        made(given).sum().backward()
    forward = 2 * made.weight.numel() * 2 * 9 * 7
    with _Counter() as counter:
        made(given)
    assert counter.operations == 2 * forward
    assert reference.get_total_flops() == forward + 4 * forward


@pytest.mark.parametrize(
    ("name", "bf16", "fp32"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4, 494.7),
        ("NVIDIA H100 PCIe", 756, 378),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", math.nan, math.nan),
        ("NVIDIA A100-SXM4-80GB", 312, 156),
        ("NVIDIA A10G", 70, 35),
        ("NVIDIA A10", 125, 62.5),
        ("NVIDIA L4", 121, 60),
        ("NVIDIA L40S", 362, 183),
        ("NVIDIA GH200 480GB", 989.4, 494.7),
        ("Tesla T4", math.nan, 8.1),
        ("NVIDIA H1000", math.nan, math.nan),
        ("cpu", math.nan, math.nan),
    ],
)
def test_what_a_gpu_can_do_at_its_best_follows_from_its_name(name: str, bf16: float, fp32: float) -> None:
    assert peak_flops(name, "bf16") / 1e12 == pytest.approx(bf16, nan_ok=True)
    assert peak_flops(name, "fp32") / 1e12 == pytest.approx(fp32, nan_ok=True)
