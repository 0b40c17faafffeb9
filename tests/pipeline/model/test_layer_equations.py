"""The layers that are not torch's own compute what their formulas say: float64 loops, and gradients by finite differences."""

from __future__ import annotations

from math import floor, sqrt

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.model.batch_norm import GroupedBatchNorm2d, fold_statistics
from pipeline.model.channelwise import ChannelwiseFullyConnected
from pipeline.model.decoder import BilinearResize
from pipeline.model.encoder import LocalResponseNorm
from tests.finite_differences import Numbers, differences


def drawn(*shape: int, scale: float = 1.0) -> Numbers:
    return (torch.randn(*shape) * scale).double().numpy()


def gradient(layer: nn.Module, at: Numbers, weight: Numbers) -> Numbers:
    """The gradient of the weighted sum of a layer's float32 output."""
    point = torch.tensor(at, dtype=torch.float32, requires_grad=True)
    (found,) = torch.autograd.grad((layer(point) * torch.tensor(weight, dtype=torch.float32)).sum(), point)
    slopes: Numbers = found.double().numpy()
    return slopes


def output(layer: nn.Module, at: Numbers) -> Numbers:
    values: Numbers = layer(torch.tensor(at, dtype=torch.float32)).detach().double().numpy()
    return values


def response_normalised(maps: Numbers) -> Numbers:
    """AlexNet's normalisation with Caffe's constants: local size 5, alpha 1e-4, beta 0.75, k 1."""
    found = np.zeros_like(maps)
    channels = maps.shape[1]
    for picture, channel, row, column in np.ndindex(maps.shape):
        around = range(max(0, channel - 2), min(channels, channel + 3))
        squares = sum(maps[picture, each, row, column] ** 2 for each in around)
        found[picture, channel, row, column] = maps[picture, channel, row, column] / (1 + 1e-4 / 5 * squares) ** 0.75
    return found


def test_local_response_normalisation() -> None:
    maps, weight = drawn(1, 7, 2, 2, scale=200), drawn(1, 7, 2, 2)
    assert np.allclose(output(LocalResponseNorm(), maps), response_normalised(maps), rtol=1e-5)
    slopes = differences(lambda moved: float((response_normalised(moved) * weight).sum()), maps, step=1e-3)
    assert np.allclose(gradient(LocalResponseNorm(), maps, weight), slopes, rtol=1e-3, atol=1e-5)


def resized(maps: Numbers, side: int) -> Numbers:
    """Bilinear interpolation with pixel centres at half integers; beyond the border the last pixel goes on."""
    source = maps.shape[-1]
    found = np.zeros((*maps.shape[:2], side, side))

    def neighbours(place: int) -> list[tuple[int, float]]:
        exact = min(max((place + 0.5) * source / side - 0.5, 0.0), source - 1.0)
        before = floor(exact)
        return [(before, 1 - (exact - before)), (min(before + 1, source - 1), exact - before)]

    for picture, channel, row, column in np.ndindex(found.shape):
        for y, tall in neighbours(row):
            for x, wide in neighbours(column):
                found[picture, channel, row, column] += tall * wide * maps[picture, channel, y, x]
    return found


@pytest.mark.parametrize("side", [7, 3])
def test_the_bilinear_resize(side: int) -> None:
    maps, weight = drawn(1, 2, 5, 5), drawn(1, 2, side, side)
    assert np.allclose(output(BilinearResize(5, side), maps), resized(maps, side), atol=1e-6)
    slopes = differences(lambda moved: float((resized(moved, side) * weight).sum()), maps)
    assert np.allclose(gradient(BilinearResize(5, side), maps, weight), slopes, atol=1e-5)


def test_the_channelwise_fully_connected_layer() -> None:
    """Place q of map c: the sum over places p of the same map of weight[c, p, q] * value[c, p], plus bias[c, q]."""
    layer, maps = ChannelwiseFullyConnected(2, 2, 3).double(), torch.randn(2, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    nn.init.normal_(layer.bias)
    weight, bias, values = layer.weight.detach().numpy(), layer.bias.detach().numpy(), maps.detach().numpy().reshape(2, 2, 6)
    expected = np.zeros((2, 2, 6))
    for picture, channel, place in np.ndindex(expected.shape):
        expected[picture, channel, place] = bias[channel, 0, place] + sum(
            weight[channel, before, place] * values[picture, channel, before] for before in range(6)
        )
    assert np.allclose(layer(maps).detach().numpy(), expected.reshape(2, 2, 2, 3), rtol=1e-12)
    of_parameters = [layer.weight, layer.bias]
    assert torch.autograd.gradcheck(lambda moved, *_: layer(moved), (maps, *of_parameters))


def batch_normalised(values: Numbers, gain: Numbers, offset: Numbers, group: int) -> Numbers:
    """Each group of samples by its own mean and biased variance, map by map, epsilon 1e-5."""
    found = np.zeros_like(values)
    for start in range(0, len(values), group):
        part = values[start : start + group]
        for channel in range(values.shape[1]):
            inside = [float(each) for each in part[:, channel].flat]
            mean = sum(inside) / len(inside)
            variance = sum((each - mean) ** 2 for each in inside) / len(inside)
            found[start : start + group, channel] = gain[channel] * (part[:, channel] - mean) / sqrt(variance + 1e-5) + offset[channel]
    return found


def test_grouped_batch_norm() -> None:
    layer = GroupedBatchNorm2d(2, group=2).double()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    gain, offset = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    values = torch.randn(4, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    expected = batch_normalised(values.detach().numpy(), gain, offset, 2)
    assert np.allclose(layer(values).detach().numpy(), expected, rtol=1e-9)
    assert torch.autograd.gradcheck(lambda moved, *_: layer(moved), (values, layer.weight, layer.bias))


def test_a_step_moves_the_running_statistics_by_a_tenth_towards_the_average_of_its_groups() -> None:
    layer, values = GroupedBatchNorm2d(2, group=2), torch.randn(4, 2, 2, 2) * 3 + 1
    layer(values)
    fold_statistics(layer, _alone)
    groups = values.double().view(2, 2, 2, 2, 2)
    for channel in range(2):
        inside = [groups[each, :, channel].flatten().tolist() for each in range(2)]
        means = [sum(each) / 8 for each in inside]
        variances = [sum((value - mean) ** 2 for value in each) / 7 for each, mean in zip(inside, means, strict=True)]  # unbiased
        assert float(layer.running_mean[channel]) == pytest.approx(0.1 * sum(means) / 2, rel=1e-5)
        assert float(layer.running_var[channel]) == pytest.approx(0.9 + 0.1 * sum(variances) / 2, rel=1e-5)


def _alone(values: Tensor) -> Tensor:
    return values
