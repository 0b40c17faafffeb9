"""A connection to a client that may be slow, silent or gone, on an event loop; with TLS or without."""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 1.0  # seconds: one that sends little at a time is listened to later and later

_T = TypeVar("_T")


class Connection:
    """To a client, in whose silence nothing blocks. All methods are for the thread of the event loop.

    Args:
        client: the socket, which is this object's from here on.
        idle: longest silence, in seconds.
        whole: longest duration from here on, likewise.
    """

    def __init__(self, client: socket.socket, idle: float, whole: float) -> None:
        self._socket = client
        self._socket.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.time() + whole
        self._idle, self._pause = idle, 0.0

    async def secure(self, context: ssl.SSLContext) -> None:
        """Shakes hands."""
        self._socket = secured = context.wrap_socket(self._socket, server_side=True, do_handshake_on_connect=False)
        await self._attempt(secured.do_handshake)

    async def receive(self, most: int) -> bytes:
        """What has come, empty at the end."""
        return await self._attempt(partial(self._socket.recv, most))

    async def send(self, content: bytes) -> None:
        """All of it."""
        left = memoryview(content)
        while left:
            left = left[await self._attempt(partial(self._socket.send, left), writes=True) :]

    async def in_time(self, waiting: Awaitable[_T], seconds: float = math.inf) -> _T:
        """What comes within so many seconds, and within those of the whole request.

        Raises:
            TimeoutError: it did not.
        """
        async with asyncio.timeout_at(min(self._end, self._loop.time() + seconds)):
            return await waiting

    async def _attempt(self, call: Callable[[], _T], *, writes: bool = False) -> _T:
        """Most clients have sent all that they have to say before they are let in: what can be done at once is."""
        while True:
            try:
                return call()
            except ssl.SSLWantReadError:
                await self._wait(writes=False)
            except ssl.SSLWantWriteError:
                await self._wait(writes=True)
            except BlockingIOError:
                await self._wait(writes=writes)

    async def _wait(self, *, writes: bool) -> None:
        if self._pause:
            await self.in_time(asyncio.sleep(self._pause))
        self._pause = min(2 * self._pause or _FIRST_PAUSE, _LONGEST_PAUSE)
        await self.in_time(ready(self._socket, writes=writes), self._idle)

    def close(self) -> None:
        """Cuts it off."""
        self._socket.close()


def _go_on(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def ready(connection: socket.socket, *, writes: bool = False) -> None:
    """Until there is something to read, or room to write."""
    loop, number = asyncio.get_running_loop(), connection.fileno()
    future = loop.create_future()
    add, remove = (loop.add_writer, loop.remove_writer) if writes else (loop.add_reader, loop.remove_reader)
    add(number, _go_on, future)
    try:
        await future
    finally:
        remove(number)
