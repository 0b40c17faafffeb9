"""The channel-wise layer connects places and not maps; the bottleneck drops values by the sample's key."""

from __future__ import annotations

import pytest
import torch

from pipeline.model.channelwise import Bottleneck, ChannelwiseFullyConnected


def test_it_has_m_times_n_to_the_fourth_weights() -> None:
    layer = ChannelwiseFullyConnected(256, 6, 6)
    assert layer.weight.numel() == 256 * 6**4 == 331_776
    assert layer.bias.numel() == 256 * 36


def test_it_is_a_fully_connected_layer_for_each_map() -> None:
    layer, maps = ChannelwiseFullyConnected(3, 2, 4), torch.randn(5, 3, 2, 4)
    with torch.no_grad():
        layer.bias.normal_()
    joined = layer(maps)
    for channel in range(3):
        expected = maps[:, channel].reshape(5, 8) @ layer.weight[channel] + layer.bias[channel]
        assert torch.allclose(joined[:, channel].reshape(5, 8), expected, atol=1e-5)


def test_every_place_reaches_every_place_of_its_own_map_only() -> None:
    layer, maps = ChannelwiseFullyConnected(4, 3, 3), torch.randn(1, 4, 3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(maps)[0, 2, 1, 1], maps)
    assert (gradient[0, 2] != 0).all()
    assert not gradient[0, [0, 1, 3]].any()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_memory_format_does_not_matter(memory_format: torch.memory_format) -> None:
    layer, maps = ChannelwiseFullyConnected(4, 3, 3), torch.randn(2, 4, 3, 3)
    assert torch.allclose(layer(maps.to(memory_format=memory_format)), layer(maps), atol=1e-6)


@pytest.mark.parametrize("kernel", [1, 3])
def test_the_bottleneck_has_one_mixing_convolution_of_stride_1(kernel: int) -> None:
    bottleneck = Bottleneck(256, 6, kernel)
    assert sum(each.numel() for each in bottleneck.parameters()) == 256 * 6**4 + 256 * 36 + 256 * 256 * kernel**2 + 256
    assert bottleneck(torch.randn(2, 256, 6, 6), torch.arange(2)).shape == (2, 256, 6, 6)


def test_half_of_the_channelwise_layer_is_dropped_in_training_and_nothing_in_evaluation() -> None:
    bottleneck, maps, keys = Bottleneck(64, 6), torch.randn(8, 64, 6, 6), torch.arange(8)
    seen: list[torch.Tensor] = []
    bottleneck.mixing.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    bottleneck(maps, keys)
    bottleneck.eval()(maps, keys)
    dropped, whole = seen
    assert torch.equal(whole, torch.relu(bottleneck.channelwise(maps)))
    alive = whole != 0
    assert float((dropped[alive] == 0).float().mean()) == pytest.approx(0.5, abs=0.03)
    kept = dropped != 0
    assert torch.allclose(dropped[kept], 2 * whole[kept])


def test_what_is_dropped_follows_the_key_and_not_the_place_in_the_batch() -> None:
    bottleneck, maps, keys = Bottleneck(16, 6), torch.randn(6, 16, 6, 6), torch.arange(6) - 3
    together = bottleneck(maps, keys)
    assert torch.allclose(bottleneck(maps[4:], keys[4:]), together[4:], atol=1e-6)
    assert not torch.allclose(bottleneck(maps, keys + 1), together, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"kernel_size": 2}, "kernel_size: 2"), ({"dropout": 1.0}, "dropout: 1.0"), ({"dropout": -0.1}, "dropout: -0.1")],
)
def test_settings_that_can_not_be_used_are_refused_by_name(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Bottleneck(8, 6, **settings)  # type: ignore[arg-type]
