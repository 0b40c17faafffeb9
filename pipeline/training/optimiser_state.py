"""An optimiser's state as tensors named after parameters, so that a checkpoint does not depend on their order or on the ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pipeline.training.checkpoint import CheckpointInvalid


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
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        if name not in parameters or (value.dim() and value.shape != parameters[name].shape):
            raise CheckpointInvalid(f"the optimiser's state of {name!r} {tuple(value.shape)} fits no parameter of this network")
        by_name.setdefault(name, {})[entry] = value
    expected = {"step", "exp_avg", "exp_avg_sq"} if isinstance(optimiser, torch.optim.AdamW) else {"momentum_buffer"}
    for name, entries in by_name.items():
        if entries.keys() != expected:
            raise CheckpointInvalid(
                f"the optimiser's state of {name!r} holds {sorted(entries)}, this optimiser needs {sorted(expected)}: "
                "set the optimiser's kind as it was, or choose another folder with --run"
            )
    places = {id(parameter): place for place, parameter in enumerate(p for group in optimiser.param_groups for p in group["params"])}
    saved = optimiser.state_dict()
    saved["state"] = {places[id(parameters[name])]: entries for name, entries in by_name.items()}
    optimiser.load_state_dict(saved)
