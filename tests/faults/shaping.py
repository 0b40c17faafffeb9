"""The speed of a distant store, for servers on the loopback interface: a latency a request and a bandwidth that all connections share."""

from __future__ import annotations

import asyncio
import time

_CHUNK = 1 << 16
_SLACK = 0.002  # seconds that bytes may run ahead of the clock: timers of the event loop are no finer
_CREDIT = 0.01  # seconds of an idle link that may be made up for: what a timer overslept is not lost


class Shape:
    """Latency and bandwidth of one server.

    Args:
        latency_ms: pause before the first byte of every answer.
        megabytes_per_second: bandwidth of all connections together, in 10^6 bytes; 0 is unlimited.
    """

    def __init__(self, latency_ms: float = 0.0, megabytes_per_second: float = 0.0) -> None:
        self.latency_ms = latency_ms
        self.megabytes_per_second = megabytes_per_second
        self._free_at = 0.0

    async def wait(self) -> None:
        """The latency of one request."""
        if self.latency_ms:
            await asyncio.sleep(self.latency_ms / 1e3)

    async def send(self, writer: asyncio.StreamWriter, data: bytes | memoryview) -> None:
        """Writes bytes at the pace of the link; connections that send at once take turns, 64 KiB each."""
        view = memoryview(data)
        while view:
            piece, view = view[:_CHUNK], view[_CHUNK:]
            await self._pace(len(piece))
            writer.write(piece)
            await writer.drain()

    async def _pace(self, size: int) -> None:
        if not self.megabytes_per_second:
            return
        now = time.monotonic()
        self._free_at = max(self._free_at, now - _CREDIT) + size / (self.megabytes_per_second * 1e6)
        if self._free_at - now > _SLACK:
            await asyncio.sleep(self._free_at - now - _SLACK / 2)
