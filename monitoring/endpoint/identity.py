"""The identity of a rank, and what follows from it: the ranks, sockets and labels of the endpoint that the rank opens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from monitoring.endpoint.rank_socket import socket_path
from monitoring.metrics.definitions import label_value


@dataclass(frozen=True)
class RankIdentity:
    """One rank of one attempt of a run.

    Attributes:
        folder: run folder.
        run: name of the run, as the series carry it.
        node: name of this machine, as the series carry it.
        rank: rank of this process.
        world_size: number of ranks of the run.
        local_rank: rank of this process among those of its node, whose ranks are consecutive.
        local_size: number of ranks on this node.
        attempt: number of the attempt, from 1; the same on all ranks.
    """

    folder: Path
    run: str
    node: str
    rank: int
    world_size: int
    local_rank: int
    local_size: int
    attempt: int

    def is_alone(self, per: Literal["node", "rank"]) -> bool:
        """Tells whether this rank has an endpoint of its own: by its settings, or because the launcher does not say how many ranks the
        node has."""
        return per == "rank" or self.local_rank >= self.local_size

    def served(self, per: Literal["node", "rank"]) -> range:
        """Ranks that share an endpoint with this one; the first of them opens it."""
        first, count = (self.rank, 1) if self.is_alone(per) else (self.rank - self.local_rank, self.local_size)
        return range(first, first + count)

    def labels(self, per: Literal["node", "rank"]) -> dict[str, str]:
        """Labels that all series of the endpoint have in common."""
        own = {"rank": str(self.rank)} if self.is_alone(per) else {}
        return {"run": label_value(self.run), "node": label_value(self.node), **own}

    def socket(self, rank: int) -> Path:
        """Path of the socket of a rank of this node."""
        return socket_path(self.folder, self.node, rank)
