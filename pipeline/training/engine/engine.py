"""A player in training: what the step, the loop and the checkpoints know of the mode that trains it.

There are two: `Replicated` here keeps network and optimiser whole on every rank (DDP), `Sharded` in `zero.py` divides them (DeepSpeed's
ZeRO). Both give and take their state as full tensors by parameter name, so that a checkpoint knows neither the mode nor the ranks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from pipeline.model.batch_norm import spans_ranks
from pipeline.recipes.player import Player
from pipeline.training.engine.optimiser_state import load_state, make_optimiser, state_tensors
from pipeline.training.ranks.world import World


class Contestant(ABC):
    """A player's network on the device, spread over the ranks, and its optimiser.

    Attributes:
        player: name, bare network, loss and settings.
        wrapped: what is called on the player's own turn: the gradients of that call are averaged over the ranks.
        bare: what is called on another player's turn, frozen, and to show pictures.
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
        """Around forward and backward of one micro-batch; the gradients of a turn are complete on all ranks after the `last`."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of a scalar."""

    @abstractmethod
    def update(self, rate: float) -> float:
        """Moves the weights by the gradients of the turn, with the learning rate times `rate`, and clears them.

        Returns:
            The norm of the gradient over all parameters before clipping, equal on every rank. Where it is not finite, weights and
            optimiser are as they were.
        """

    @abstractmethod
    def load_optimiser(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts back what `full_state` gave for the optimiser: `<parameter>/<entry>` -> full tensor, on every rank.

        Raises:
            CheckpointInvalid: it belongs to another network, or to another kind of optimiser.
        """

    @abstractmethod
    def full_state(self) -> dict[str, Mapping[str, Tensor]]:
        """Weights and buffers under the player's name, the optimiser's state under `<name>.optimiser`. Every rank calls it; only what
        rank 0 gets is whole. The tensors may be those in training: who keeps them copies them."""

    def time_waits(self, collective: Callable[[], AbstractContextManager[None]]) -> None:  # noqa: B027 - most have none of their own
        """Has `collective` entered wherever the mode waits for the other ranks, but for the end of a backward pass."""

    @abstractmethod
    def close(self) -> None:
        """Gives back what the mode holds beside the player."""


class Replicated(Contestant):
    """DDP: every rank holds everything and averages the gradients.

    Args:
        player: in training mode, with the weights to begin with.
        world: the ranks.
        max_gradient_norm: gradients are scaled down to this norm; 0 leaves them.
    """

    def __init__(self, player: Player, world: World, max_gradient_norm: float = 0.0) -> None:
        self.player = player
        self.wrapped = world.wrap(player.network)
        self.bare = player.network
        self.in_lockstep = spans_ranks(player.network)
        self.optimiser = make_optimiser(player.optimiser, list(player.network.parameters()))
        self._alone = world.size == 1
        self._limit = max_gradient_norm or math.inf

    def micro_step(self, last: bool) -> AbstractContextManager[None]:
        """Gradients are averaged over the ranks with the last micro-batch only."""
        return nullcontext() if last or self._alone else self.wrapped.no_sync()  # type: ignore[operator]

    def backward(self, loss: Tensor) -> None:
        torch.autograd.backward(loss)

    def update(self, rate: float) -> float:
        norm = float(nn.utils.clip_grad_norm_(list(self.network.parameters()), self._limit))
        if math.isfinite(norm):
            for group in self.optimiser.param_groups:
                group["lr"] = self.player.optimiser.learning_rate * rate
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return norm

    def load_optimiser(self, tensors: Mapping[str, Tensor]) -> None:
        load_state(self.network, self.optimiser, tensors)

    def full_state(self) -> dict[str, Mapping[str, Tensor]]:
        name = self.player.name
        return {name: self.network.state_dict(), f"{name}.optimiser": state_tensors(self.network, self.optimiser)}

    def close(self) -> None:
        """Lets go of DDP, whose end waits for the other ranks and must not come after that of the process group."""
        self.wrapped = self.bare
