"""Optimisers, and their state as tensors named after parameters, so that a checkpoint depends neither on their order nor on the ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pipeline.config import OptimiserConfig
from pipeline.mapping import ConfigError
from shards.errors import ExplainedError


class OptimiserMismatch(ExplainedError):
    """The saved state of an optimiser does not fit the network or the optimiser of this run."""


def make_optimiser(config: OptimiserConfig, parameters: Sequence[nn.Parameter], fused: bool = True) -> torch.optim.Optimizer:
    """Makes the optimiser of a player.

    Args:
        config: settings of the optimiser.
        parameters: parameters to update.
        fused: whether one kernel does all of the optimiser's arithmetic, in one pass over the memory; `fused_update` needs it.

    Raises:
        ConfigError: a rate, beta or decay is outside the range that optimisers accept.
    """
    try:
        if config.kind == "sgd":
            decay = config.weight_decay
            return torch.optim.SGD(parameters, lr=config.learning_rate, momentum=config.momentum, weight_decay=decay, fused=fused)
        return torch.optim.AdamW(
            parameters,
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            fused=fused,
        )
    except ValueError as error:
        raise ConfigError(f"method: optimiser: {error}") from error


def fused_update(optimiser: torch.optim.Optimizer, norm: Tensor, limit: float) -> None:
    """Updates the parameters by gradients that are scaled down to a norm, unless that norm is not finite. Nobody waits for the device.

    Args:
        optimiser: optimiser that `make_optimiser` made, fused.
        norm: norm of all gradients, float ().
        limit: norm to which larger gradients are scaled down; infinite leaves them.
    """
    for group in optimiser.param_groups:
        if group.get("momentum"):  # torch would take memory that was never written for the buffers of a first step that is skipped
            for each in group["params"]:
                if each.grad is not None and "momentum_buffer" not in optimiser.state[each]:
                    optimiser.state[each]["momentum_buffer"] = torch.zeros_like(each)
    # names that the fused kernels read, made for torch's GradScaler: gradients are divided by the one, the other lets nothing be written
    optimiser.grad_scale = ((norm + 1e-6) / limit).clamp(min=1.0) if math.isfinite(limit) else None  # type: ignore[attr-defined]
    optimiser.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
    optimiser.step()


def state_tensors(network: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns `<parameter>/<entry>` -> tensor; parameters that were never updated have no entries."""
    found = {}
    for name, parameter in network.named_parameters():
        for entry, value in optimiser.state.get(parameter, {}).items():
            found[f"{name}/{entry}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    return found


def load_state(network: nn.Module, optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restores saved state.

    Raises:
        OptimiserMismatch: the state belongs to other parameters.
    """
    parameters = dict(network.named_parameters())
    by_name = by_parameter({name: parameter.shape for name, parameter in parameters.items()}, optimiser, tensors)
    index = {id(parameter): number for number, parameter in enumerate(p for group in optimiser.param_groups for p in group["params"])}
    saved = optimiser.state_dict()
    # fused kernels go through parameter and state in the order of memory, so that both must have the same layout
    saved["state"] = {
        index[id(parameters[name])]: {
            entry: torch.empty_like(parameters[name]).copy_(value) if value.dim() else value for entry, value in entries.items()
        }
        for name, entries in by_name.items()
    }
    optimiser.load_state_dict(saved)


def by_parameter(
    shapes: Mapping[str, torch.Size], optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> dict[str, dict[str, Tensor]]:
    """Groups saved state as parameter -> entry -> tensor.

    Args:
        shapes: full shapes of the network's parameters.
        optimiser: optimiser that will take the state.
        tensors: state as `state_tensors` returns it.

    Raises:
        OptimiserMismatch: a tensor belongs to no parameter here, has another shape, or belongs to another kind of optimiser.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        if name not in shapes or (value.dim() and value.shape != shapes[name]):
            raise OptimiserMismatch(f"the optimiser's state of {name!r} {tuple(value.shape)} fits no parameter of this network")
        found.setdefault(name, {})[entry] = value
    expected = {"step", "exp_avg", "exp_avg_sq"} if isinstance(optimiser, torch.optim.AdamW) else {"momentum_buffer"}
    for name, entries in found.items():
        if entries.keys() != expected:
            raise OptimiserMismatch(
                f"the optimiser's state of {name!r} holds {sorted(entries)}, this optimiser needs {sorted(expected)}: "
                "set the optimiser's kind as it was, or choose another folder with --run"
            )
    return found
