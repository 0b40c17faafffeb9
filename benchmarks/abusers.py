"""Clients of every kind that an endpoint has to survive, all at the same time.

    python -m benchmarks.abusers HOST:PORT --token-file FILE --seconds 30

prints a line when all clients have begun, and at the end (after those seconds, or SIGTERM) one line of JSON with the answers that each kind
of client got.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

SCRAPERS = 200
OTHERS = 20
"""Clients of each kind but the scrapers."""
_PATIENCE_SECONDS = 30.0

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Abusers:
    """Clients of every kind, each of which connects again as soon as its connection ends.

    Args:
        host: host of the endpoint.
        port: port of the endpoint.
        token: bearer token of the endpoint.

    Attributes:
        answers: number of answers by kind of client and answer.
    """

    def __init__(self, host: str, port: int, token: str) -> None:
        self._host, self._port, self._token = host, port, token
        self._random = random.Random(0)
        self.answers: dict[str, Counter[str]] = {}

    async def run(self, seconds: float) -> None:
        """Runs all clients for the given time or until SIGTERM."""
        kinds: dict[Callable[[Streams], Awaitable[str]], int] = {
            self.scrape: SCRAPERS,
            self.wrong_token: OTHERS,
            self.garbage: OTHERS,
            self.half_a_request: OTHERS,
            self.drip: OTHERS,
            self.never_read: OTHERS,
            self.leave: OTHERS,
        }
        over = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
        clients = [asyncio.create_task(self._again_and_again(kind)) for kind, count in kinds.items() for _ in range(count)]
        print(f"{len(clients)} clients", flush=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await over.wait()
        left = set(clients)
        while left:  # a client whose own time is over at this moment does not notice that it is cancelled
            for client in left:
                client.cancel()
            _, left = await asyncio.wait(left, timeout=1)

    async def _again_and_again(self, kind: Callable[[Streams], Awaitable[str]]) -> None:
        counted = self.answers.setdefault(kind.__name__, Counter())
        while True:
            writer = None
            try:
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    reader, writer = await asyncio.open_connection(self._host, self._port)
                    counted[await kind((reader, writer))] += 1
            except TimeoutError:
                counted["no answer in time"] += 1
            except OSError:
                counted["cut off"] += 1
            finally:
                if writer is not None:
                    writer.close()

    async def scrape(self, streams: Streams) -> str:
        return await self._ask(streams, f"GET /metrics HTTP/1.0\r\nAuthorization: Bearer {self._token}\r\n\r\n".encode())

    async def wrong_token(self, streams: Streams) -> str:
        return await self._ask(streams, b"GET /metrics HTTP/1.0\r\nAuthorization: Bearer guess\r\n\r\n")

    async def garbage(self, streams: Streams) -> str:
        return await self._ask(streams, self._random.randbytes(self._random.choice((10, 1000, 100_000))) + b"\r\n\r\n")

    async def half_a_request(self, streams: Streams) -> str:
        return await self._ask(streams, b"GET /metrics HTTP/1.1\r\nHost: ")

    async def drip(self, streams: Streams) -> str:
        reader, writer = streams
        for _ in range(10_000):
            writer.write(b"x")
            await writer.drain()
            with suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    return _status(await reader.read(64))
        return "never"

    async def never_read(self, streams: Streams) -> str:
        streams[1].write(b"GET /metrics HTTP/1.0\r\n\r\n" * 1000)
        await streams[1].wait_closed()
        return "closed"

    async def leave(self, streams: Streams) -> str:
        streams[1].write(b"GET /metrics HTTP/1.0\r\n\r\n")
        streams[1].transport.abort()
        return "left"

    @staticmethod
    async def _ask(streams: Streams, request: bytes) -> str:
        reader, writer = streams
        writer.write(request)
        return _status(await reader.read())


def _status(answer: bytes) -> str:
    return " ".join(answer[:40].decode("latin-1").split("\r\n")[0].split()) if answer else "cut off"


def main() -> None:
    """Abuses an endpoint."""
    parser = argparse.ArgumentParser(description="Abuses an endpoint.")
    parser.add_argument("target", help="HOST:PORT")
    parser.add_argument("--token-file", type=Path, help="file with the bearer token of the endpoint")
    parser.add_argument("--seconds", type=float, default=30.0)
    arguments = parser.parse_args()
    host, _, port = arguments.target.rpartition(":")
    token = arguments.token_file.read_text().strip() if arguments.token_file else ""
    abusers = Abusers(host.strip("[]"), int(port), token)
    asyncio.run(abusers.run(arguments.seconds))
    print(json.dumps(abusers.answers), flush=True)


if __name__ == "__main__":
    main()
