"""The published network of the features recipe: sizes, counts, and independence of samples from each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pipeline.model.decoder import BilinearResize, Decoder
from pipeline.model.features_network import FeaturesNetwork

ENCODER = {"caffenet": 2_334_080, "torchvision": 2_469_696}  # see test_encoder.py
BOTTLENECK = 256 * 6**4 + 256 * 6**2 + 256 * 256 + 256
DECODER = 25 * (256 * 128 + 128 * 64 + 64 * 64 + 64 * 32 + 32 * 3) + (128 + 64 + 64 + 32 + 3)  # 5x5 kernels, then biases


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def samples(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(number, 3, 227, 227, generator=generator), torch.randint(-(2**62), 2**62, (number,), generator=generator)


@pytest.mark.parametrize("layout", ["caffenet", "torchvision"])
def test_parameters_are_encoder_bottleneck_and_decoder(layout: Any) -> None:
    network = FeaturesNetwork(layout)
    assert count(network.bottleneck) == BOTTLENECK
    assert count(network.decoder) == DECODER
    assert count(network) == ENCODER[layout] + BOTTLENECK + DECODER
    normalised = FeaturesNetwork(layout, batch_norm=True)
    assert count(normalised.decoder) == DECODER + (128 + 64 + 64 + 32)  # gain and offset for a bias, but not in the last layer


def test_up_convolutions_double_the_size_to_161() -> None:
    decoder, shapes = Decoder(), dict[str, tuple[int, ...]]()
    for name, layer in decoder.named_children():
        layer.register_forward_hook(lambda _, __, values, name=name: shapes.__setitem__(name, tuple(values.shape[1:])))
    decoder(torch.randn(1, 256, 6, 6))
    assert {name: shape for name, shape in shapes.items() if name.startswith(("up", "resize"))} == {
        "up1": (128, 11, 11),
        "up2": (64, 21, 21),
        "up3": (64, 41, 41),
        "up4": (32, 81, 81),
        "up5": (3, 161, 161),
        "resize": (3, 227, 227),
    }
    assert [name for name in shapes if name.startswith("relu")] == ["relu1", "relu2", "relu3", "relu4"]


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_untrained_output_is_as_large_as_the_output_gain_asks(batch_norm: bool) -> None:
    context, keys = samples(4)
    painted = []
    for gain in (1.0, 0.1):
        torch.manual_seed(5)
        network = FeaturesNetwork(batch_norm=batch_norm, batch_norm_group=2, width=12, output_gain=gain)
        painted.append(network.eval()(0.5 * context, keys).detach())
    assert torch.allclose(painted[1], 0.1 * painted[0], atol=1e-6)
    assert painted[1].std() < 0.25, "small beside mean-centred pixels, whose deviation is about 0.5"
    last = FeaturesNetwork(width=12, output_gain=0.1).decoder.get_parameter("up5.weight")
    assert float(last.detach().std()) == pytest.approx(0.1 * (2 * 4 / (25 * 4)) ** 0.5, rel=0.2)


def test_an_output_gain_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="output_gain: 0 is not above 0"):
        FeaturesNetwork(width=12, output_gain=0)


@pytest.mark.parametrize("target", [71, 161, 227])
def test_the_target_size_is_a_setting(target: int) -> None:
    context, keys = samples(1)
    network = FeaturesNetwork("torchvision", target_size=target)
    assert network(context, keys).shape == (1, 3, target, target)
    assert any(isinstance(layer, BilinearResize) for layer in network.decoder) == (target != 161)


@pytest.mark.parametrize(("source", "target"), [(161, 227), (161, 71), (5, 5), (4, 9)])
def test_the_resize_is_bilinear(source: int, target: int) -> None:
    maps = torch.randn(2, 3, source, source, dtype=torch.float32)
    expected = F.interpolate(maps.double(), size=(target, target), mode="bilinear", align_corners=False)
    assert torch.allclose(BilinearResize(source, target)(maps).double(), expected, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"layout": "torchvision", "pooling": "strided"}, {"batch_norm": True, "batch_norm_group": 2}])
def test_every_parameter_learns(settings: dict[str, Any]) -> None:
    network = FeaturesNetwork(**settings)
    network(*samples(2)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_a_sample_is_painted_alike_in_any_batch() -> None:
    network, (context, keys) = FeaturesNetwork("torchvision"), samples(3)
    with torch.no_grad():
        together = network(context, keys)
        for row in range(3):
            alone = network(context[row : row + 1], keys[row : row + 1])
            assert torch.allclose(alone, together[row : row + 1], rtol=1e-4, atol=1e-4)


def test_evaluation_is_the_same_whatever_the_keys() -> None:
    network, (context, keys) = FeaturesNetwork("torchvision").eval(), samples(2)
    with torch.no_grad():
        assert torch.equal(network(context, keys), network(context, keys + 1))


def test_memory_format_and_bfloat16_change_rounding_only() -> None:
    network, (context, keys) = FeaturesNetwork("torchvision"), samples(1)
    with torch.no_grad():
        expected = network(context, keys)
        spread = float(expected.std())
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(context, keys)
        assert rounded.dtype == torch.float32
        assert float((rounded - expected).std()) < 0.05 * spread
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        last = network(context.to(memory_format=torch.channels_last), keys)
    assert float((last - expected).abs().max()) < 1e-3 * spread


def test_the_gaussian_start_reaches_every_layer() -> None:
    for name, parameter in FeaturesNetwork(initial_std=0.005).named_parameters():
        if name.endswith("weight"):
            assert float(parameter.detach().std()) == pytest.approx(0.005, rel=0.05), name
        else:
            assert not parameter.any(), name


def test_the_scaled_start_keeps_the_prediction_near_the_size_of_its_input() -> None:
    with torch.no_grad():
        assert 0.2 < float(FeaturesNetwork("torchvision")(*samples(2)).std()) < 20


def test_a_target_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^target_size: 0"):
        FeaturesNetwork(target_size=0)


@pytest.mark.parametrize(("layout", "width"), [("caffenet", 12), ("caffenet", 6), ("torchvision", 8), ("torchvision", 2)])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_narrow_network_learns_in_every_layer(layout: Any, width: int, batch_norm: bool) -> None:
    network = FeaturesNetwork(layout, batch_norm, 2, width=width)
    painted = network(*samples(2))
    assert painted.shape == (2, 3, 227, 227)
    painted.square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    scale = float(network.encoder.proportion)
    assert network.bottleneck.channelwise.weight.shape == (256 * scale, 36, 36)
    widths = [layer.out_channels for layer in network.decoder if isinstance(layer, torch.nn.ConvTranspose2d)]
    assert widths == [128 * scale, 64 * scale, 64 * scale, 32 * scale, 3]
