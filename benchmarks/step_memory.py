"""What the memory of a training step is made of: weights, gradients, the optimiser's state, what autograd keeps for the backward pass."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

if TYPE_CHECKING:
    from benchmarks.step_side import Side


def resident(peak: bool) -> int:
    """Returns the bytes of this process that are in memory, or the most there were since `forget_peak`."""
    wanted = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(wanted))


def forget_peak(device: torch.device) -> None:
    """Begins to look for the peak anew, because the making of networks is not a part of training."""
    Path("/proc/self/clear_refs").write_text("5")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


class _Kept:
    """What autograd keeps for the backward pass, counted by storage while it is kept; memory that was there before does not count."""

    def __init__(self, before: set[int]) -> None:
        self._before = before
        self._users = Counter[int]()
        self.bytes = self.most = 0

    def pack(self, tensor: Tensor) -> _Holder | Tensor:
        """Notes a tensor that is kept."""
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if place in self._before:
            return tensor
        if not self._users[place]:
            self.bytes += size
            self.most = max(self.most, self.bytes)
        self._users[place] += 1
        holder = _Holder(tensor)
        weakref.finalize(holder, self._release, place, size)
        return holder

    @staticmethod
    def unpack(kept: _Holder | Tensor) -> Tensor:
        """Gives the tensor back."""
        return kept.tensor if isinstance(kept, _Holder) else kept

    def _release(self, place: int, size: int) -> None:
        self._users[place] -= 1
        if not self._users[place]:
            self.bytes -= size


class _Holder:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes of the storages of tensors by their addresses."""
    found = (each.untyped_storage() for each in tensors)
    return {each.data_ptr(): each.nbytes() for each in found}


def measured(side: Side, count: int, eager: bool) -> dict[str, Any]:
    """Looks up the peak of the steps so far, and takes `count` more to see what it is made of.

    Args:
        side: the side.
        count: steps to take.
        eager: look at what autograd keeps, which a compiled network must not be disturbed for.

    Returns:
        Bytes by name: `peak`, of the process on a CPU, of tensors on a GPU; `weights`; `gradients`, `optimiser` and `activations`, the
        most there were at once.
    """
    on_gpu = side.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(side.device) if on_gpu else resident(peak=True)
    parameters = [each for network in side.networks.values() for each in network.parameters()]
    weights = _storages([*parameters, *(each for network in side.networks.values() for each in network.buffers())])
    gradients, optimisers = 0, dict[int, Optimizer]()

    def look(optimiser: Optimizer, *_: object) -> None:
        nonlocal gradients
        gradients = max(gradients, sum(_storages(each.grad for each in parameters if each.grad is not None).values()))
        optimisers[id(optimiser)] = optimiser

    kept, hook = _Kept(set(weights)), register_optimizer_step_pre_hook(look)
    try:
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack) if eager else nullcontext():
            for _ in range(count):
                side.step()
    finally:
        hook.remove()
    state = [value for each in optimisers.values() for entries in each.state.values() for value in entries.values()]
    return {
        "peak": peak,
        "weights": sum(weights.values()),
        "gradients": gradients,
        "optimiser": sum(_storages(value for value in state if isinstance(value, Tensor)).values()),
        "activations": kept.most,
    }
