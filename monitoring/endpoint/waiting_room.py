"""Clients that have connected and are not talked to yet."""

from __future__ import annotations

import select
import socket
from collections import OrderedDict, deque


class WaitingRoom:
    """Lets one in from each address in turn, so that those of a host that sends hundreds wait for each other and nobody else for them. Of
    one address the last to come is the first: in a flood that lasts nobody who had to wait for all before him would be answered in time,
    while one that has just come is, as are those that come back.

    Args:
        most: that wait. Who comes then takes the place of the one that has waited the longest at the address that has the most.
    """

    def __init__(self, most: int) -> None:
        self._most, self._count = most, 0
        self._by_address: OrderedDict[str, deque[socket.socket]] = OrderedDict()

    def __len__(self) -> int:
        return self._count

    def add(self, client: socket.socket, address: str) -> None:
        """Takes a client over, or drops it where others wait and it has left."""
        if self._count and _has_left(client):
            client.close()
            return
        if self._count == self._most:
            fullest = max(self._by_address, key=lambda each: len(self._by_address[each]))
            self._taken(fullest, oldest=True).close()
        self._by_address.setdefault(address, deque()).append(client)
        self._count += 1

    def next(self) -> socket.socket | None:
        """The next that is still there; None where nobody is."""
        while self._by_address:
            address = next(iter(self._by_address))
            self._by_address.move_to_end(address)
            client = self._taken(address)
            if not _has_left(client):
                return client
            client.close()
        return None

    def _taken(self, address: str, *, oldest: bool = False) -> socket.socket:
        clients = self._by_address[address]
        client = clients.popleft() if oldest else clients.pop()
        self._count -= 1
        if not clients:
            del self._by_address[address]
        return client

    def close(self) -> None:
        """Drops all."""
        for clients in self._by_address.values():
            for client in clients:
                client.close()
        self._by_address.clear()
        self._count = 0


def _has_left(client: socket.socket) -> bool:
    """Whether the client has hung up while it waited: after a flood the queue is full of those."""
    waiting = select.poll()
    waiting.register(client, getattr(select, "POLLRDHUP", select.POLLHUP))
    return bool(waiting.poll(0))
