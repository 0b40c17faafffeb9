"""Statistics of batch norm that are taken anew from given batches, for as long as an evaluation lasts."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn

from pipeline.model.batch_norm import GroupedBatchNorm2d, fold_statistics, recomputed_statistics


def network(layer: nn.Module, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.ReLU(), nn.Dropout(0.5)).eval()


def buffers(module: nn.Module) -> list[Tensor]:
    return [each.clone() for each in module.buffers()]


@pytest.mark.parametrize("kind", ["grouped", "torch"])
def test_they_are_the_average_over_the_batches_and_the_former_ones_come_back(kind: str, draw: random.Random) -> None:
    layer = GroupedBatchNorm2d(4, group=64) if kind == "grouped" else nn.BatchNorm2d(4)
    module = network(layer, draw.randrange(1 << 30))
    batches = [torch.randn(size, 3, 8, 8) + size for size in (5, 2, 7)]
    before = buffers(module)
    with torch.no_grad():
        inputs = [module[0](batch).double() for batch in batches]
    with recomputed_statistics(module, batches):
        mean = torch.stack([each.mean((0, 2, 3)) for each in inputs]).mean(0)
        variance = torch.stack([each.var((0, 2, 3)) for each in inputs]).mean(0)
        assert torch.allclose(layer.get_buffer("running_mean").double(), mean, atol=1e-6)
        assert torch.allclose(layer.get_buffer("running_var").double(), variance, rtol=1e-6)
        assert not any(each.training for each in module.modules())
        with torch.no_grad():
            expected = nn.functional.batch_norm(inputs[0].float(), mean.float(), variance.float(), eps=1e-5).relu()
            assert torch.allclose(module(batches[0]), expected, atol=1e-5)
    assert all(map(torch.equal, buffers(module), before))


def test_a_second_layer_gets_what_the_first_one_normalised_by_its_batch() -> None:
    torch.manual_seed(0)
    first, second = GroupedBatchNorm2d(3, 4), GroupedBatchNorm2d(3, 4)
    module = nn.Sequential(first, second).eval()
    batch = torch.randn(4, 3, 5, 5) * 7 + 3
    with recomputed_statistics(module, [batch]):
        assert torch.allclose(second.running_mean, torch.zeros(3), atol=1e-5)
        assert torch.allclose(second.running_var, torch.full((3,), 100 / 99), rtol=1e-3)


def test_a_training_that_is_under_way_is_not_touched() -> None:
    torch.manual_seed(0)
    layer = GroupedBatchNorm2d(3, 4)
    module = nn.Sequential(layer).train()
    module(torch.randn(8, 3, 5, 5)).sum().backward()
    accumulated = layer.accumulated.clone()
    with recomputed_statistics(module, [torch.randn(3, 3, 5, 5)]):  # no whole group, and no gradient
        assert module.training
    assert torch.equal(layer.accumulated, accumulated)
    fold_statistics(module, lambda values: values)
    assert not torch.equal(layer.running_mean, torch.zeros(3))


def test_without_batch_norm_nothing_is_read_and_without_batches_it_is_refused() -> None:
    with recomputed_statistics(nn.Conv2d(3, 4, 3), iter(())):
        pass
    layer = GroupedBatchNorm2d(3, 4)
    with pytest.raises(ValueError, match="no batches"), recomputed_statistics(layer, iter(())):
        pass
    with pytest.raises(ValueError, match="1 picture"), recomputed_statistics(layer, [torch.randn(1, 3, 1, 1)]):
        pass
    assert layer.training
