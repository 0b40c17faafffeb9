"""The engine of a player: all that the step, the loop and the checkpoints know of the mode that trains it.

There are two. `ReplicatedEngine` keeps network and optimiser whole on every rank (DDP), `ShardedEngine` in `zero.py` divides them
(DeepSpeed's ZeRO). Both take and return their state as full tensors by parameter name, so that a checkpoint depends neither on the mode nor
on the number of ranks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Protocol

import torch
from torch import Tensor, nn

from pipeline.model.batch_norm import spans_ranks
from pipeline.recipes.player import Networks, Player
from pipeline.training.engine.compilation import uncompiled
from pipeline.training.engine.optimiser_state import fused_update, load_state, make_optimiser, state_tensors

MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
"""Memory format by `training.memory_format`."""


class Ranks(Protocol):
    """The part of `pipeline.training.ranks.world.World` that engines use; `World` explains each name."""

    @property
    def size(self) -> int: ...
    @property
    def is_first(self) -> bool: ...
    @property
    def local_rank(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def timeout(self) -> timedelta: ...
    def wrap(self, network: nn.Module) -> nn.Module: ...


@contextmanager
def evaluating(engines: Sequence[Engine]) -> Iterator[Networks]:
    """Puts the networks of all players into evaluation mode, without gradient, and back into training mode at the end.

    Yields:
        The bare networks by the players' names.
    """
    networks = {each.player.name: each.bare for each in engines}
    for network in networks.values():
        network.eval()
    try:
        with torch.no_grad(), uncompiled(each.network for each in engines):
            yield networks
    finally:
        for network in networks.values():
            network.train()


class Engine(ABC):
    """A player's network on the device, spread over the ranks, and its optimiser.

    Attributes:
        player: name, bare network, loss and settings.
        wrapped: network for the player's own turn: the gradients of its calls are averaged over the ranks.
        bare: network for another player's turn, frozen, and for picture grids.
        in_lockstep: whether every rank must take part in every forward and backward pass.
    """

    player: Player
    wrapped: nn.Module
    bare: nn.Module
    in_lockstep: bool

    @property
    def network(self) -> nn.Module:
        """The player's own network, which holds the parameters and buffers by the names that checkpoints have."""
        return self.player.network

    @abstractmethod
    def micro_step(self, last: bool) -> AbstractContextManager[None]:
        """Surrounds forward and backward of one micro-batch.

        Args:
            last: whether this is the turn's last micro-batch, after which its gradients are complete on all ranks.
        """

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of a scalar."""

    @abstractmethod
    def update(self, rate: float) -> Tensor:
        """Moves the weights by the gradients of the turn, and clears the gradients.

        Args:
            rate: factor of the player's learning rate.

        Returns:
            The norm of the gradient over all parameters before clipping, float32 (), equal on every rank. If it is not finite, weights
            and optimiser are left as they were; that is decided on the device, which nobody waits for.
        """

    @abstractmethod
    def load_optimiser(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores the optimiser's state, on every rank.

        Args:
            tensors: `<parameter>/<entry>` -> full tensor, as `full_state` returns them.

        Raises:
            OptimiserMismatch: the state belongs to another network, or to another kind of optimiser.
        """

    @abstractmethod
    def full_state(self) -> dict[str, Mapping[str, Tensor]]:
        """Returns weights and buffers under the player's name, and the optimiser's state under `<name>.optimiser`.

        Every rank must call it, and only rank 0 gets everything. The tensors may be the ones in training: a caller that keeps them copies
        them.
        """

    def time_waits(self, collective: Callable[[], AbstractContextManager[None]]) -> None:  # noqa: B027 - most have none of their own
        """Wraps every wait for other ranks, except the one at the end of backward, in the context manager that `collective` returns."""

    @abstractmethod
    def close(self) -> None:
        """Releases what the mode holds besides the player."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ReplicatedEngine(Engine):
    """DDP: every rank holds everything and averages the gradients.

    Args:
        player: player in training mode, with the weights to begin with.
        world: ranks of the run.
        max_gradient_norm: norm to which larger gradients are scaled down; 0 leaves them.
    """

    def __init__(self, player: Player, world: Ranks, max_gradient_norm: float = 0.0) -> None:
        self.player = player
        self.wrapped = world.wrap(player.network)
        self.bare = player.network
        self.in_lockstep = spans_ranks(player.network)
        # on CPUs not fused: its last bits depend on where a vector begins, which differs in ZeRO's flat weights
        self._fused = world.device.type == "cuda"
        self.optimiser = make_optimiser(player.optimiser, list(player.network.parameters()), self._fused)
        self._alone = world.size == 1
        self._limit = max_gradient_norm or math.inf

    def micro_step(self, last: bool) -> AbstractContextManager[None]:
        """Averages gradients over the ranks with the last micro-batch only."""
        return nullcontext() if last or self._alone else self.wrapped.no_sync()  # type: ignore[operator]

    def backward(self, loss: Tensor) -> None:
        torch.autograd.backward(loss)

    def update(self, rate: float) -> Tensor:
        for group in self.optimiser.param_groups:
            group["lr"] = self.player.optimiser.learning_rate * rate
        if self._fused:
            norm = nn.utils.get_total_norm([each.grad for each in self.network.parameters() if each.grad is not None])
            fused_update(self.optimiser, norm, self._limit)
        else:
            norm = nn.utils.clip_grad_norm_(list(self.network.parameters()), self._limit)
            if math.isfinite(norm):
                self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return norm

    def load_optimiser(self, tensors: Mapping[str, Tensor]) -> None:
        load_state(self.network, self.optimiser, tensors)

    def full_state(self) -> dict[str, Mapping[str, Tensor]]:
        name = self.player.name
        return {name: self.network.state_dict(), f"{name}.optimiser": state_tensors(self.network, self.optimiser)}

    def close(self) -> None:
        """Drops the DDP wrapper, because its destructor waits for the other ranks and must run before the process group ends."""
        self.wrapped = self.bare
