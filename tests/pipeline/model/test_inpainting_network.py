"""Generator and discriminator of the inpainting recipe have the layers of the released code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.model.batch_norm import GroupedBatchNorm2d, fold_statistics
from pipeline.model.discriminator import Discriminator
from pipeline.model.inpainting_network import Generator

# 4x4 kernels without biases, maps in x maps out; a gain and an offset for each map that is normalised
DOWN = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512) + 2 * (128 + 256 + 512)
EXTRA = 16 * 64 * 64 + 2 * 64  # one more 64 -> 64 stage for 128 pixels
CODE = 16 * 512 * 4000 + 2 * 4000
UP = 16 * (4000 * 512 + 512 * 256 + 256 * 128 + 128 * 64 + 64 * 3) + 2 * (512 + 256 + 128 + 64)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def small(input_size: int, output_size: int, noise: int = 0) -> Generator:
    return Generator(input_size, output_size, n_bottleneck=24, width=4, noise=noise, batch_norm_group=2)


ENCODER = {
    128: "128: 3-64 leaky, 64: 64-64 bn leaky, 32: 64-128 bn leaky, 16: 128-256 bn leaky, 8: 256-512 bn leaky",
    64: "64: 3-64 leaky, 32: 64-128 bn leaky, 16: 128-256 bn leaky, 8: 256-512 bn leaky",
    32: "32: 3-64 leaky, 16: 64-128 bn leaky, 8: 128-256 bn leaky",
}
DECODER = {
    128: "1: 4000-512 bn relu, 4: 512-256 bn relu, 8: 256-128 bn relu, 16: 128-64 bn relu, 32: 64-64 bn relu, 64: 64-3 tanh",
    64: "1: 4000-512 bn relu, 4: 512-256 bn relu, 8: 256-128 bn relu, 16: 128-64 bn relu, 32: 64-3 tanh",
    32: "1: 4000-256 bn relu, 4: 256-128 bn relu, 8: 128-64 bn relu, 16: 64-3 tanh",
}
"""Stages of the released code: side of the input, maps in and out, what follows the convolution. (32 pixels: one stage less.)"""
CONDITIONAL = {
    (128, 64): "128: 3-64, 64: 3-64 leaky, 64: 128-64 bn leaky, 32: 64-128 bn leaky, 16: 128-256 bn leaky, 8: 256-512 bn leaky",
    (64, 32): "64: 3-64, 32: 3-64 leaky, 32: 128-128 bn leaky, 16: 128-256 bn leaky, 8: 256-512 bn leaky",
    (128, 128): "128: 3-64, 128: 3-64 leaky, 64: 128-64 bn leaky, 32: 64-128 bn leaky, 16: 128-256 bn leaky, 8: 256-512 bn leaky",
}
"""The same beside a context: first the convolution of the context, then that of the region, whose maps are joined."""


def stages(network: nn.Module, *inputs: Tensor, **named: Tensor) -> str:
    """The stages of a network of a 32nd of the published width, as the tables above write them, from a pass of one picture.

    Kernels are 4x4 with stride 2 and padding 1, those from or to 1x1 with stride 1 and no padding, those that join a context 5x5.
    """
    found: list[str] = []

    def convolution(layer: nn.Conv2d | nn.ConvTranspose2d, given: tuple[Tensor, ...], output: Tensor) -> None:
        side, made = given[0].shape[-1], output.shape[-1]
        at_the_end = 1 in (side, made)
        if layer.kernel_size == (4, 4):
            assert (layer.stride, layer.padding) == (((1, 1), (0, 0)) if at_the_end else ((2, 2), (1, 1)))
        else:
            assert (layer.kernel_size, layer.stride) == ((5, 5), (2, 2))
        before, maps = (each if each in (1, 3) else 32 * each for each in (layer.in_channels, layer.out_channels))
        found.append(f"{side}: {before}-{maps}")

    def follows(word: str) -> Callable[..., None]:
        return lambda *_: found.__setitem__(-1, f"{found[-1]} {word}")

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(convolution)  # type: ignore[arg-type]
        elif isinstance(layer, nn.LeakyReLU):
            assert layer.negative_slope == 0.2
            layer.register_forward_hook(follows("leaky"))
        elif isinstance(layer, GroupedBatchNorm2d | nn.ReLU | nn.Tanh):
            layer.register_forward_hook(follows({"GroupedBatchNorm2d": "bn", "ReLU": "relu", "Tanh": "tanh"}[type(layer).__name__]))
    network.eval()(*inputs, **named)
    return ", ".join(found)


@pytest.mark.parametrize(("input_size", "output_size"), [(128, 64), (128, 128), (64, 64), (64, 32)])
def test_stages_of_the_generator(input_size: int, output_size: int) -> None:
    generator = Generator(input_size, output_size, n_bottleneck=125, width=2)
    painted = stages(generator, torch.zeros(1, 3, input_size, input_size), torch.zeros(1))
    assert painted == f"{ENCODER[input_size]}, 4: 512-4000 bn leaky, {DECODER[output_size]}"


@pytest.mark.parametrize("size", [128, 64, 32])
def test_stages_of_the_discriminator(size: int) -> None:
    judged = stages(Discriminator(size, width=2), torch.zeros(1, 3, size, size))
    assert judged == f"{ENCODER[size]}, 4: {256 if size == 32 else 512}-1"


@pytest.mark.parametrize(("context", "size"), CONDITIONAL)
def test_stages_of_the_discriminator_beside_a_context(context: int, size: int) -> None:
    network = Discriminator(size, width=2, context_size=context)
    judged = stages(network, torch.zeros(1, 3, size, size), context=torch.zeros(1, 3, context, context))
    assert judged == f"{CONDITIONAL[context, size]}, 4: 512-1"
    assert network.region.padding == (2 + (context - size) // 2,) * 2, "the region keeps the scale of the context"


def test_parameters_of_the_generator() -> None:
    with torch.device("meta"):  # 71 million weights need no memory to be counted
        assert count(Generator(128, 64)) == DOWN + EXTRA + CODE + UP == 71_124_544
        assert count(Generator(128, 128)) == DOWN + EXTRA + CODE + UP + EXTRA
        assert count(Generator(64, 64)) == DOWN + CODE + UP
        last = 16 * 256 * 512 + 2 * 512  # the stage between 8x8 and 4x4 pixels, which a patch of 32 lacks
        assert count(Generator(64, 32)) == DOWN + CODE + UP - last - 16 * 4000 * 256
        noisy = 100 * 100 + 2 * 100 + 16 * 100 * 512  # 1x1 convolution, batch norm, and what the decoder's first layer reads
        assert count(Generator(128, 64, noise=100)) == DOWN + EXTRA + CODE + UP + noisy


def test_parameters_of_the_discriminator() -> None:
    verdict = 16 * 512
    with torch.device("meta"):
        assert count(Discriminator(64)) == DOWN + verdict
        assert count(Discriminator(128)) == DOWN + EXTRA + verdict


def test_no_convolution_has_a_bias() -> None:
    for network in (small(128, 128, noise=3), Discriminator(128, 4), Discriminator(64, 4, context_size=128)):
        convolutions = [layer for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))]
        assert len(convolutions) >= 6
        assert all(layer.bias is None for layer in convolutions)


def test_the_first_stages_have_no_batch_norm() -> None:
    for stages in (small(128, 64).encoder, Discriminator(64, 4).stages):
        assert [name for name, _ in stages.named_children()][:5] == ["conv1", "relu1", "conv2", "bn2", "relu2"]


@pytest.mark.parametrize(("input_size", "output_size"), [(128, 64), (128, 128), (64, 64), (64, 32)])
@pytest.mark.parametrize("noise", [0, 5])
def test_shapes_range_and_gradients_of_the_generator(input_size: int, output_size: int, noise: int) -> None:
    generator = small(input_size, output_size, noise)
    shapes: dict[str, tuple[int, ...]] = {}
    generator.bottleneck.register_forward_hook(lambda _, __, values: shapes.__setitem__("bottleneck", tuple(values.shape)))
    painted = generator(torch.randn(4, 3, input_size, input_size), torch.arange(4))
    assert painted.shape == (4, 3, output_size, output_size)
    assert shapes["bottleneck"] == (4, 24 + noise, 1, 1)
    assert painted.abs().max() <= 1
    painted.square().mean().backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_what_is_painted_saturates_at_the_range_of_pixels() -> None:
    generator = small(64, 64)
    with torch.no_grad():
        generator.decoder.get_submodule("image").weight.mul_(1000)  # type: ignore[operator]
        painted = generator(torch.randn(2, 3, 64, 64), torch.arange(2))
    assert 0.99 < painted.max() <= 1
    assert -1 <= painted.min() < -0.99


@pytest.mark.parametrize("size", [32, 64, 128])
def test_the_discriminator_gives_a_logit_a_sample_for_each_batch(size: int) -> None:
    discriminator = Discriminator(size, 4, batch_norm_group=2)
    real, painted = discriminator(torch.randn(4, 3, size, size), torch.randn(2, 3, size, size))
    assert (real.shape, painted.shape) == ((4,), (2,))
    (real.sum() - painted.sum()).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in discriminator.parameters())


def test_the_discriminator_gives_logits_and_not_probabilities() -> None:
    discriminator, regions = Discriminator(64, 4, batch_norm_group=2), torch.randn(4, 3, 64, 64)
    before = discriminator(regions)[0].detach()
    with torch.no_grad():
        discriminator.verdict.weight.mul_(-100)
    assert torch.allclose(discriminator(regions)[0], -100 * before, rtol=1e-4)


def test_batches_do_not_share_statistics() -> None:
    discriminator = Discriminator(64, 4, batch_norm_group=4)
    real, painted = torch.randn(4, 3, 64, 64), torch.randn(4, 3, 64, 64) * 0.1 + 2
    together = discriminator(real, painted)
    assert torch.equal(together[0], discriminator(real)[0])
    assert torch.equal(together[1], discriminator(painted)[0])
    mixed = discriminator(torch.stack([real, painted], dim=1).flatten(0, 1))[0]
    assert not torch.allclose(mixed[::2], together[0], rtol=0.1)


def test_both_batches_move_the_running_statistics() -> None:
    def mean_after(*batches: Tensor) -> Tensor:
        torch.manual_seed(3)
        discriminator = Discriminator(64, 4, batch_norm_group=2)
        discriminator(*batches)
        fold_statistics(discriminator, lambda summed: summed)
        mean: Tensor = discriminator.stages.get_submodule("bn2").running_mean  # type: ignore[assignment]
        return mean

    one, two = torch.randn(2, 3, 64, 64), torch.randn(4, 3, 64, 64)
    assert torch.allclose(mean_after(one, two), (mean_after(one) + 2 * mean_after(two)) / 3, atol=1e-7)


def test_noise_follows_the_key() -> None:
    generator, context = small(64, 64, noise=5), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        painted = generator(context, torch.tensor([1, 2]))
        assert torch.equal(generator(context, torch.tensor([1, 2])), painted)
        assert not torch.allclose(generator(context, torch.tensor([1, 3])), painted, atol=1e-4)
        generator.eval()
        assert not torch.equal(generator(context, torch.tensor([1, 2])), generator(context, torch.tensor([1, 3])))


@pytest.mark.parametrize("make", [lambda: Generator(128, 64, n_bottleneck=100, width=16), lambda: Discriminator(128, 16)])
def test_weights_and_gains_start_where_the_released_code_starts(make: Callable[[], nn.Module]) -> None:
    gains = []
    for layer in make().modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.15)
        elif isinstance(layer, GroupedBatchNorm2d):
            gains.append(layer.weight.detach())
            assert not layer.bias.any()
    gain = torch.cat(gains)
    assert float(gain.mean()) == pytest.approx(1, abs=0.01)
    assert float(gain.std()) == pytest.approx(0.02, rel=0.3)


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (Generator, {"input_size": 96}, "input_size: 96"),
        (Generator, {"output_size": 16}, "output_size: 16"),
        (Generator, {"noise": -1}, "noise: -1"),
        (Discriminator, {"size": 227}, "size: 227"),
        (Discriminator, {"context_size": 227}, "context_size: 227"),
        (Discriminator, {"size": 128, "context_size": 64}, "context_size: 64 is less than the 128"),
    ],
)
def test_settings_that_can_not_be_used_are_refused_by_name(make: Any, settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make(**settings)
