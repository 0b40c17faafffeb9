"""Grouped batch norm has the numbers of torch's, and depends on neither ranks nor micro-batches."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.model.batch_norm import GroupedBatchNorm2d, discard_statistics, fold_statistics


def alone(values: Tensor) -> Tensor:
    return values


def gradient(values: Tensor) -> Tensor:
    assert values.grad is not None
    return values.grad


def make(channels: int, group: int) -> GroupedBatchNorm2d:
    layer = GroupedBatchNorm2d(channels, group)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0.5, 1.5, channels))
        layer.bias.copy_(torch.linspace(-1, 1, channels))
    return layer


def running(layer: nn.Module) -> Tensor:
    return torch.cat([values.flatten() for name, values in layer.state_dict().items() if "running" in name])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_with_one_group_it_is_batch_norm(memory_format: torch.memory_format) -> None:
    ours, theirs = make(5, 8), nn.BatchNorm2d(5)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    for step in range(3):
        values = (torch.randn(8, 5, 6, 7) * 3 + step).to(memory_format=memory_format)
        one, two = values.clone().requires_grad_(), values.clone().requires_grad_()
        weight = torch.randn(8, 5, 6, 7)
        normalised, expected = ours(one), theirs(two)
        assert torch.equal(normalised, expected)
        assert normalised.is_contiguous(memory_format=memory_format)
        (normalised * weight).sum().backward()
        (expected * weight).sum().backward()
        fold_statistics(ours, alone)
        assert torch.equal(gradient(one), gradient(two))
    assert torch.equal(gradient(ours.weight), gradient(theirs.weight))
    assert torch.equal(gradient(ours.bias), gradient(theirs.bias))
    assert torch.allclose(running(ours), running(theirs), rtol=1e-6, atol=1e-7)
    values = torch.randn(3, 5, 2, 2)
    assert torch.allclose(ours.eval()(values), theirs.eval()(values), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "ranks",
    [
        [[24]],
        [[8, 16]],
        [[4, 4, 4, 4, 4, 4]],
        [[12], [12]],
        [[4], [8, 12]],
        [[4], [4], [4], [4], [4], [4]],
    ],
)
def test_neither_ranks_nor_micro_batches_change_anything(ranks: list[list[int]]) -> None:
    values = torch.randn(24, 5, 3, 3) * torch.rand(24, 5, 1, 1) + torch.randn(24, 5, 1, 1)
    whole = make(5, 4)
    expected = whole(values)
    fold_statistics(whole, alone)
    layers, outputs, start = [make(5, 4) for _ in ranks], [], 0
    for layer, parts in zip(layers, ranks, strict=True):
        for part in parts:
            outputs.append(layer(values[start : start + part]))
            start += part
    total = torch.stack([layer.accumulated for layer in layers]).sum(0)
    for layer in layers:
        fold_statistics(layer, lambda _: total.clone())
        assert torch.equal(running(layer), running(whole))
    assert torch.equal(torch.cat(outputs), expected)


def test_a_step_moves_the_running_statistics_once_by_the_average_of_its_groups() -> None:
    layer, values = GroupedBatchNorm2d(3, 2, momentum=0.25), torch.randn(6, 3, 4, 4)
    layer(values[:4])
    layer(values[4:])
    assert torch.equal(layer.running_mean, torch.zeros(3))  # not before the step
    fold_statistics(layer, alone)
    groups = values.view(3, 2, 3, 16).transpose(1, 2).reshape(3, 3, 32)
    assert torch.allclose(layer.running_mean, 0.25 * groups.mean(2).mean(0), atol=1e-6)
    assert torch.allclose(layer.running_var, 0.75 + 0.25 * groups.var(2, unbiased=True).mean(0), atol=1e-6)
    before = running(layer)
    fold_statistics(layer, alone)
    assert torch.equal(running(layer), before)  # nothing was seen since


def test_forwards_outside_the_players_own_turn_leave_no_trace() -> None:
    layer, values = make(3, 2), torch.randn(4, 3, 2, 2)
    with torch.no_grad():
        assert torch.equal(layer(values), make(3, 2)(values))  # by the statistics of its groups all the same
    layer.requires_grad_(False)
    layer(values.requires_grad_())
    layer.requires_grad_(True).eval()
    layer(values)
    fold_statistics(layer, alone)
    assert torch.equal(running(layer), running(make(3, 2)))


def test_discarded_statistics_are_forgotten() -> None:
    layer = make(3, 2)
    layer(torch.randn(4, 3, 2, 2))
    discard_statistics(layer)
    fold_statistics(layer, alone)
    assert torch.equal(running(layer), running(make(3, 2)))


def test_one_reduction_serves_a_whole_network() -> None:
    network = nn.Sequential(make(3, 2), nn.Conv2d(3, 5, 1), make(5, 2))
    single = copy.deepcopy(network)
    values = torch.randn(4, 3, 2, 2)
    network(values)
    single(values)
    calls: list[Tensor] = []

    def twice(summed: Tensor) -> Tensor:  # as if another rank had seen the same
        calls.append(summed)
        return summed * 2

    fold_statistics(network, twice)
    fold_statistics(single, alone)
    assert len(calls) == 1
    assert torch.equal(running(network), running(single))
    assert not torch.equal(running(network[2]), running(make(5, 2)))


def test_a_network_without_batch_norm_asks_no_other_rank() -> None:
    def refuse(_: Tensor) -> Tensor:
        raise AssertionError("reduced")

    fold_statistics(nn.Conv2d(3, 3, 1), refuse)


def test_statistics_are_float32_under_autocast() -> None:
    layer, values = make(3, 4), (torch.randn(8, 3, 16, 16) * 2 + 5).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        normalised = layer(values)
    fold_statistics(layer, alone)
    exact = make(3, 4)
    expected = exact(values.float())
    fold_statistics(exact, alone)
    assert torch.allclose(running(layer), running(exact), rtol=1e-5)
    assert torch.allclose(normalised.float(), expected, rtol=2**-7, atol=2**-7)


def test_what_is_saved_is_weights_and_running_statistics() -> None:
    assert set(make(3, 2).state_dict()) == {"weight", "bias", "running_mean", "running_var"}


@pytest.mark.parametrize(
    ("count", "size", "message"),
    [(6, 2, "6 samples are not whole groups of 4"), (3, 2, "3 samples are not whole"), (0, 2, "0 samples")],
)
def test_samples_that_are_not_whole_groups_are_refused(count: int, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(3, 4)(torch.zeros(count, 3, size, size))
    assert make(3, 4).eval()(torch.zeros(count, 3, size, size)).shape == (count, 3, size, size)


def test_a_group_of_one_value_is_refused() -> None:
    with pytest.raises(ValueError, match="group of 1 sample has one value a channel"):
        make(3, 1)(torch.zeros(4, 3, 1, 1))
    with pytest.raises(ValueError, match=r"^group: -1"):
        GroupedBatchNorm2d(3, -1)


SHARES = (5, 3)
"""Samples of each rank."""


def joined() -> tuple[Tensor, Tensor]:
    """Values of every rank, and the weights of a loss over them."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(8, 3, 4, 4, generator=generator) * 3 + 1, torch.randn(8, 3, 4, 4, generator=generator)


def sum_over_ranks(values: Tensor) -> Tensor:
    dist.all_reduce(values)
    return values


def normalise_a_share(rank: int, folder: str) -> None:
    """Normalises the samples of one rank of two, and leaves the results in the folder."""
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
    values, weight = (torch.split(part, SHARES)[rank] for part in joined())
    layer, values = make(3, 0), values.clone().requires_grad_()
    with torch.no_grad():
        layer(values)  # another player's turn leaves no trace
    normalised = layer(values)
    (normalised * weight).sum().backward()
    fold_statistics(layer, sum_over_ranks)
    found = {"normalised": normalised.detach(), "values": gradient(values), "weight": gradient(layer.weight), "bias": gradient(layer.bias)}
    torch.save({**found, "running": running(layer)}, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_group_of_0_is_batch_norm_over_the_uneven_shares_of_all_ranks(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(normalise_a_share, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    values, weight = joined()
    theirs, values = nn.BatchNorm2d(3), values.requires_grad_()
    theirs.load_state_dict(make(3, 0).state_dict(), strict=False)
    expected = theirs(values)
    (expected * weight).sum().backward()
    for name, reference in (("normalised", expected.detach()), ("values", gradient(values))):
        torch.testing.assert_close(torch.cat([first[name], second[name]]), reference, rtol=1e-5, atol=1e-5)
    for name, reference in (("weight", gradient(theirs.weight)), ("bias", gradient(theirs.bias))):
        torch.testing.assert_close(first[name] + second[name], reference, rtol=1e-5, atol=1e-5)
    assert torch.equal(first["running"], second["running"])
    torch.testing.assert_close(first["running"], running(theirs), rtol=1e-5, atol=1e-6)


def test_a_group_of_0_takes_any_number_of_samples_on_one_rank() -> None:
    ours, theirs, values = make(3, 0), nn.BatchNorm2d(3), torch.randn(5, 3, 4, 4)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    assert torch.equal(ours(values), theirs(values))
