"""This process among those that evaluate together, as a launcher names it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shards.errors import ExplainedError


class RankInvalid(ExplainedError):
    """The launcher's variables contradict each other."""


@dataclass(frozen=True)
class Rank:
    """This process among those that work on one output together.

    Attributes:
        number: number of the process, from 0.
        world_size: number of processes.
        local_rank: number of the process on its node.
        ranks_on_node: processes of its node, which share the node's cores.
    """

    number: int = 0
    world_size: int = 1
    local_rank: int = 0
    ranks_on_node: int = 1

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> Rank:
        """Reads what `accelerate launch` and torchrun say; without them there is one process.

        Raises:
            RankInvalid: they contradict each other.
        """
        try:
            number, world_size = int(environment.get("RANK", "0")), int(environment.get("WORLD_SIZE", "1"))
            found = cls(number, world_size, int(environment.get("LOCAL_RANK", "0")), int(environment.get("LOCAL_WORLD_SIZE", "1")))
        except ValueError as error:
            raise RankInvalid(f"RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE: {error}. Start with accelerate launch") from error
        if not 0 <= number < world_size:
            raise RankInvalid(f"RANK={number}: is none of the WORLD_SIZE={world_size} ranks. Start with accelerate launch")
        return found
