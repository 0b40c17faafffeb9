"""Batch normalisation whose statistics depend neither on the number of ranks nor on the micro-batch.

Statistics are taken over consecutive groups of a fixed number of samples; ranks and micro-batches get whole groups. Training forwards
only add up the statistics of their groups, and once a step `fold_statistics` moves the running statistics by the average over all groups
of the global batch. Compared with `nn.BatchNorm2d` this costs one call for each group of a micro-batch, and a copy that joins the groups.

The alternative, a group of 0, works as SyncBatchNorm: the current micro-batches of all ranks are one group. The result then depends on
the ranks and on the micro-batch, and costs four small all-reduces a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from shards.counting import counted


class GroupedBatchNorm2d(nn.Module):
    """Normalises each channel over groups of samples, with the numbers of `nn.BatchNorm2d` where a group is the batch.

    In training each group of `group` consecutive samples is normalised by its own mean and variance; in evaluation, any number of
    samples by the running ones. Statistics are float32 for any type of input. A forward counts for the running statistics when gradients
    are enabled and the layer's own weight wants one: another player's turn, and a forward without gradient, leave no trace.

    Args:
        channels: channels of the input.
        group: samples that are normalised together; 0 takes all samples of a call on all ranks, which must then make the same calls.
        momentum: fraction by which a step moves the running statistics towards those of its batch.
        epsilon: number that is added to the variance.

    Raises:
        ValueError: a training forward of samples that are not whole groups, or of a single value a channel.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    running_mean: Tensor
    running_var: Tensor
    accumulated: Tensor

    def __init__(self, channels: int, group: int, momentum: float = 0.1, epsilon: float = 1e-5) -> None:
        super().__init__()
        if group < 0:
            raise ValueError(f"group: {counted(group, 'sample')} can't be normalised")
        self.channels = channels
        self.group = group
        self.momentum = momentum
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        # sums over groups of mean and of unbiased variance, then the number of groups; float64, so that the order of adding leaves no trace
        self.register_buffer("accumulated", torch.zeros(2 * channels + 1, dtype=torch.float64), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """Normalises float (n, channels, H, W)."""
        if not self.training:
            return F.batch_norm(values, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.epsilon)
        over_ranks = self.group == 0 and _ranks() > 1
        normalised, statistics = self._over_ranks(values) if over_ranks else self._in_groups(values)
        if torch.is_grad_enabled() and self.weight.requires_grad:
            sums = statistics.sum(dim=1, dtype=torch.float64).flatten()
            self.accumulated.add_(torch.cat([sums, sums.new_full((1,), statistics.shape[1])]))
        return normalised

    def _in_groups(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Normalises in groups: the values, and their means and unbiased variances, float32 (2, groups, channels)."""
        count = values.shape[0]
        group = self.group or max(1, count)
        if count == 0 or count % group:
            raise ValueError(
                f"batch norm: {counted(count, 'sample is', 'samples are')} not whole groups of {group}: "
                "make the group divide training.micro_batch and the share of every rank, or evaluate with network.eval()"
            )
        if group * values.shape[2] * values.shape[3] < 2:
            raise ValueError(
                "batch norm: a group of 1 sample has one value a channel here, whose variance is unknown: take groups of 2 or more"
            )
        groups = (values,) if count == group else torch.split(values, group)  # one group is not copied
        statistics = self.running_mean.new_zeros(2, len(groups), self.channels)
        # a momentum of 1 makes the buffers of a call the statistics of its group
        normalised = [
            F.batch_norm(part, mean, variance, self.weight, self.bias, True, 1.0, self.epsilon)
            for part, mean, variance in zip(groups, statistics[0], statistics[1], strict=True)
        ]
        return normalised[0] if len(normalised) == 1 else torch.cat(normalised), statistics

    def _over_ranks(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Normalises as `_in_groups`, with the samples of this call on all ranks as the only group.

        nn.SyncBatchNorm works on GPUs only, and moves the running statistics in every forward, even in steps that are skipped.
        """
        shape = (1, self.channels, 1, 1)
        wide = values.float()
        count = torch.full((1,), wide.numel() // self.channels, dtype=torch.float32, device=wide.device)
        dist.all_reduce(count)
        mean = _sum_over_ranks(wide.sum(dim=(0, 2, 3))) / count
        centred = wide - mean.view(shape)
        variance = _sum_over_ranks(centred.square().sum(dim=(0, 2, 3))) / count
        scale = self.weight * torch.rsqrt(variance + self.epsilon)
        normalised = torch.addcmul(self.bias.view(shape), centred, scale.view(shape)).to(values.dtype)
        with torch.no_grad():
            statistics = torch.stack([mean, variance * count / (count - 1)]).unsqueeze(1)
        return normalised, statistics

    def extra_repr(self) -> str:
        """The arguments, for `print`."""
        return f"{self.channels}, group={self.group}, momentum={self.momentum}, epsilon={self.epsilon}"


class _SumOverRanks(torch.autograd.Function):
    """A sum over the ranks whose gradient is summed too, because every rank's loss depends on every rank's values."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        summed = values.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        summed = gradient.contiguous().clone()
        dist.all_reduce(summed)
        return summed


def _sum_over_ranks(values: Tensor) -> Tensor:
    summed: Tensor = _SumOverRanks.apply(values)  # type: ignore[no-untyped-call]
    return summed


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def fold_statistics(module: nn.Module, reduce: Callable[[Tensor], Tensor], counts: Tensor | None = None) -> None:
    """Moves the running statistics of every layer by those of the forwards since the last call; once a step, on every rank.

    Args:
        module: network, not wrapped.
        reduce: function that sums a float64 tensor over the ranks; called once if the network has batch norm, otherwise never.
        counts: bool (), on the device; where it is False the step was skipped, and the statistics are dropped. None counts.
    """
    layers = _layers(module)
    if not layers:
        return
    with torch.no_grad():
        summed = reduce(torch.cat([layer.accumulated for layer in layers]))
        for layer, part in zip(layers, torch.split(summed, [layer.accumulated.numel() for layer in layers]), strict=True):
            count = part[-1]
            mean, variance = (part[:-1] / count.clamp(min=1)).view(2, layer.channels)
            moves = count > 0 if counts is None else (count > 0) & counts  # an `if` would wait for the device
            for running, found in ((layer.running_mean, mean), (layer.running_var, variance)):
                moved = torch.lerp(running.double(), found, layer.momentum)
                running.copy_(torch.where(moves, moved, running))  # not by a weight of 0: statistics that are NaN would come through
    discard_statistics(module)


def spans_ranks(module: nn.Module) -> bool:
    """True if a training forward waits for the same forward of the other ranks."""
    return any(layer.group == 0 for layer in _layers(module)) and _ranks() > 1


def discard_statistics(module: nn.Module) -> None:
    """Discards the statistics of the forwards since the last fold, for a step that is skipped."""
    for layer in _layers(module):
        layer.accumulated.zero_()


def _layers(module: nn.Module) -> list[GroupedBatchNorm2d]:
    return [layer for layer in module.modules() if isinstance(layer, GroupedBatchNorm2d)]


@contextmanager
def recomputed_statistics(module: nn.Module, batches: Iterable[Tensor]) -> Iterator[None]:
    """Replaces the running statistics by the average over given batches until the context ends, then puts the former ones back.

    Each batch is normalised by its own statistics, as in training, and its mean and unbiased variance count once in the average. So the
    statistics are a pure function of weights and batches. All other layers stay in the mode that they are in, and no statistics of
    training are touched.

    Args:
        module: network with `GroupedBatchNorm2d` or `nn.BatchNorm2d`; of any other the batches are not looked at.
        batches: inputs of the network, float (n, ...), each of two values a channel or more at every such layer.

    Raises:
        ValueError: no batches, or one that is too small.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, GroupedBatchNorm2d | nn.BatchNorm2d)]
    if not layers:
        yield
        return
    before = [(layer, {name: value.clone() for name, value in layer.named_buffers()}) for layer in layers]
    statistics = _batch_statistics(module, layers, batches)
    try:
        _write_buffers(layers, [{"running_mean": mean, "running_var": variance} for mean, variance in statistics])
        yield
    finally:
        _write_buffers(layers, [values for _, values in before])


def _batch_statistics(
    module: nn.Module, layers: Sequence[GroupedBatchNorm2d | nn.BatchNorm2d], batches: Iterable[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Mean and unbiased variance of each layer's input, averaged over batches, float64 (channels,). Leaves all buffers as they are."""
    found: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers}

    def normalise(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
        values = inputs[0]
        if values.numel() <= values.shape[1]:
            raise ValueError("batch norm: a batch of 1 picture has one value a channel here, whose variance is unknown: take 2 or more")
        wide = values.double()
        found[layer].append(torch.stack([wide.mean((0, 2, 3)), wide.var((0, 2, 3))]))
        weight, bias, epsilon = layer.weight, layer.bias, layer.epsilon if isinstance(layer, GroupedBatchNorm2d) else layer.eps
        return F.batch_norm(values, None, None, cast(Tensor, weight), cast(Tensor, bias), True, 0.0, cast(float, epsilon))

    modes = [layer.training for layer in layers]
    # a hook normalises, because the layers themselves would move their buffers, or want whole groups
    hooks = [layer.eval().register_forward_hook(normalise) for layer in layers]
    try:
        with torch.no_grad():
            for batch in batches:
                module(batch)
    finally:
        for hook in hooks:
            hook.remove()
        for layer, mode in zip(layers, modes, strict=True):
            layer.train(mode)
    if not all(found.values()):
        raise ValueError("batch norm: there are no batches to take the statistics from")
    return [(mean, variance) for mean, variance in (torch.stack(each).mean(0) for each in found.values())]


def _write_buffers(layers: Sequence[nn.Module], values: Sequence[Mapping[str, Tensor]]) -> None:
    with torch.no_grad():
        for layer, named in zip(layers, values, strict=True):
            for name, value in named.items():
                layer.get_buffer(name).copy_(value)
