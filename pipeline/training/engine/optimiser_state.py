"""Optimisers, and their state as tensors named after parameters, so that a checkpoint does not depend on their order or on the ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pipeline.config import OptimiserConfig
from pipeline.mapping import ConfigError
from pipeline.training.checkpoint.store import CheckpointInvalid


def make_optimiser(config: OptimiserConfig, parameters: Sequence[nn.Parameter], fused: bool | None = None) -> torch.optim.Optimizer:
    """The optimiser of a player's settings; `fused` takes one kernel for all of Adam's arithmetic, None where the parameters are on a GPU.

    Raises:
        ConfigError: a rate, beta or decay that no optimiser takes.
    """
    try:
        if config.kind == "sgd":
            return torch.optim.SGD(parameters, lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay)
        return torch.optim.AdamW(
            parameters,
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            fused=parameters[0].is_cuda if fused is None else fused,
        )
    except ValueError as error:
        raise ConfigError(f"method: optimiser: {error}") from error


def state_tensors(network: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`<parameter>/<entry>` -> tensor; parameters that were never updated have none."""
    found = {}
    for name, parameter in network.named_parameters():
        for entry, value in optimiser.state.get(parameter, {}).items():
            found[f"{name}/{entry}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    return found


def load_state(network: nn.Module, optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts saved state back.

    Raises:
        CheckpointInvalid: it belongs to other parameters.
    """
    parameters = dict(network.named_parameters())
    by_name = by_parameter({name: parameter.shape for name, parameter in parameters.items()}, optimiser, tensors)
    places = {id(parameter): place for place, parameter in enumerate(p for group in optimiser.param_groups for p in group["params"])}
    saved = optimiser.state_dict()
    saved["state"] = {places[id(parameters[name])]: entries for name, entries in by_name.items()}
    optimiser.load_state_dict(saved)


def by_parameter(
    shapes: Mapping[str, torch.Size], optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> dict[str, dict[str, Tensor]]:
    """Saved state as parameter -> entry -> tensor.

    Args:
        shapes: of the network's parameters, whole.
        optimiser: that is to have the state.
        tensors: as `state_tensors` gives them.

    Raises:
        CheckpointInvalid: a tensor of no parameter here, of another shape, or of another kind of optimiser.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        if name not in shapes or (value.dim() and value.shape != shapes[name]):
            raise CheckpointInvalid(f"the optimiser's state of {name!r} {tuple(value.shape)} fits no parameter of this network")
        found.setdefault(name, {})[entry] = value
    expected = {"step", "exp_avg", "exp_avg_sq"} if isinstance(optimiser, torch.optim.AdamW) else {"momentum_buffer"}
    for name, entries in found.items():
        if entries.keys() != expected:
            raise CheckpointInvalid(
                f"the optimiser's state of {name!r} holds {sorted(entries)}, this optimiser needs {sorted(expected)}: "
                "set the optimiser's kind as it was, or choose another folder with --run"
            )
    return found
