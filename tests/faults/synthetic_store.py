"""An S3 server of data sets that exist nowhere else: every byte of its shards is computed when it is asked for.

The shards are WebDataset tars of a few real pictures over and over, with indexes and a manifest that a loader takes for any other's.
Enough of S3 is spoken for s3fs and for plain http readers: GET with one range, HEAD, ListObjectsV2, ETags and If-Match. Signatures are
not looked at: what is about credentials belongs to the tests with the real server. The sha256 of a shard is only true where
`true_sha256` was asked for, since it costs the reading of the whole shard; what reads ranges never misses it.

    python -m tests.faults.synthetic_store --shards 64 --megabytes 100 --latency-ms 50 --megabytes-per-second 100

prints its endpoint and serves until its standard input ends.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import random
import re
import sys
import tarfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import numpy as np

from shards.dataset.index import ROW, ShardIndex, digest
from shards.dataset.manifest import NAME, Manifest, ShardRecord
from tests.faults.shaping import Shape

BUCKET, PREFIX = "synthetic", "set"
URL = f"s3://{BUCKET}/{PREFIX}"
_BLOCK = tarfile.BLOCKSIZE
_END = 20 * _BLOCK
_PIECE = 1 << 22


class SyntheticSet:
    """The objects of one data set, by byte range.

    Args:
        pictures: encoded pictures that the samples repeat.
        shards: number of shards.
        shard_bytes: a shard's size, as near as whole samples come to it.
        true_sha256: give the manifest the sha256 that the shards really have.
    """

    def __init__(self, pictures: Sequence[bytes], shards: int, shard_bytes: int, true_sha256: bool = False) -> None:
        self.pictures = pictures
        self.padded = [picture.ljust(-(-len(picture) // _BLOCK) * _BLOCK, b"\0") for picture in pictures]
        samples = max(1, round((shard_bytes - _END) / (sum(map(len, self.padded)) / len(pictures) + 3 * _BLOCK)))
        sizes = np.array([len(self.padded[sample % len(pictures)]) + 3 * _BLOCK for sample in range(samples)])
        self.starts: list[int] = np.concatenate([[0], np.cumsum(sizes)]).tolist()
        """First byte of every sample of a shard, then of the end of the archive."""
        self.shard_bytes: int = self.starts[-1] + _END
        self.small: dict[str, bytes] = {}
        """Indexes and manifest by name."""
        records = []
        index = self._index().encode()
        for shard in range(shards):
            name = f"shard-{shard:06d}.tar"
            self.small[f"{name}.idx"] = index
            hashed = hashlib.sha256(name.encode())
            if true_sha256:
                hashed = hashlib.sha256()
                for piece in self.shard_range(shard, 0, self.shard_bytes):
                    hashed.update(piece)
            records.append(ShardRecord(name, self.shard_bytes, hashed.hexdigest(), samples, hashlib.sha256(index).hexdigest()))
        self.manifest = Manifest(tuple(records), URL)
        self.small[NAME] = self.manifest.encode()
        self._shards = {record.name: number for number, record in enumerate(records)}

    def size(self, name: str) -> int | None:
        """Bytes of an object, None where there is none."""
        if name in self._shards:
            return self.shard_bytes
        return len(self.small[name]) if name in self.small else None

    def names(self) -> list[str]:
        """All objects, sorted."""
        return sorted([*self._shards, *self.small])

    def range(self, name: str, start: int, end: int) -> Iterator[bytes | memoryview]:
        """Bytes [start, end) of an object that exists, in pieces."""
        if name in self.small:
            return iter([memoryview(self.small[name])[start:end]])
        return self.shard_range(self._shards[name], start, end)

    def shard_range(self, shard: int, start: int, end: int) -> Iterator[bytes | memoryview]:
        """Bytes [start, end) of a shard, in pieces."""
        sample = bisect_right(self.starts, start) - 1
        position = self.starts[sample]
        while position < end:
            for piece in self._members(shard, sample) if sample < len(self.starts) - 1 else (bytes(_END),):
                low, high = max(start - position, 0), min(end - position, len(piece))
                if low < high:
                    yield memoryview(piece)[low:high]
                position += len(piece)
            sample += 1

    def _members(self, shard: int, sample: int) -> tuple[bytes, ...]:
        key, number = f"{shard:04d}{sample:08d}", sample % len(self.pictures)
        label = str(sample % 7).encode()
        label_header, picture_header = _header(f"{key}.cls", len(label)), _header(f"{key}.jpg", len(self.pictures[number]))
        return label_header, label.ljust(_BLOCK, b"\0"), picture_header, self.padded[number]

    def _index(self) -> ShardIndex:
        count, digests = len(self.starts) - 1, [digest(picture) for picture in self.pictures]
        rows = np.empty(count, ROW)
        rows["offset"] = np.array(self.starts[:-1]) + 3 * _BLOCK
        rows["digest"] = [digests[sample % len(digests)] for sample in range(count)]
        rows["length"] = [len(self.pictures[sample % len(digests)]) for sample in range(count)]
        rows["label"] = -1
        return ShardIndex(rows, self.shard_bytes)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


class SyntheticStore:
    """Serves one data set over HTTP.

    Args:
        data: what is served.
        shape: latency and bandwidth.
    """

    def __init__(self, data: SyntheticSet, shape: Shape) -> None:
        self.data = data
        self.shape = shape

    async def start(self) -> tuple[asyncio.Server, str]:
        """Listens on a free port of the loopback interface; returns the server and its endpoint."""
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=1024)
        return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, target, _ = head[0].split(" ")
                headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in head[1:] if line)}
                await self.shape.wait()
                await self._answer(writer, method, target, headers)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, method: str, target: str, headers: dict[str, str]) -> None:
        parts = urlsplit(target)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        if bucket == BUCKET and not key and method == "GET":
            return await self._send(
                writer, 200, self._listing(parse_qs(parts.query).get("prefix", [""])[0]), "Content-Type: application/xml"
            )
        name = key.removeprefix(f"{PREFIX}/")
        size = self.data.size(name) if (bucket, key) == (BUCKET, f"{PREFIX}/{name}") else None
        if size is None:
            return await self._send(writer, 404, b"" if method == "HEAD" else _error("NoSuchKey"), "Content-Type: application/xml")
        etag = f'"{hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()}"'
        if headers.get("if-match", etag) != etag:
            return await self._send(writer, 412, _error("PreconditionFailed"), "Content-Type: application/xml")
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
        start, end = (int(asked[1]), min(size, int(asked[2] or size - 1) + 1)) if asked else (0, size)
        if start >= end:
            return await self._send(writer, 416, _error("InvalidRange"), f"Content-Range: bytes */{size}")
        lines = [
            f"HTTP/1.1 {'206 Partial Content' if asked else '200 OK'}",
            f"Content-Length: {end - start}",
            f"ETag: {etag}",
            "Accept-Ranges: bytes",
            "Content-Type: application/octet-stream",
            "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT",
            *([f"Content-Range: bytes {start}-{end - 1}/{size}"] if asked else []),
        ]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        if method == "GET":
            for piece in self.data.range(name, start, end):
                await self.shape.send(writer, piece)
        return None

    @staticmethod
    async def _send(writer: asyncio.StreamWriter, status: int, body: bytes, header: str) -> None:
        writer.write(f"HTTP/1.1 {status} Answer\r\nContent-Length: {len(body)}\r\n{header}\r\n\r\n".encode() + body)
        await writer.drain()

    def _listing(self, prefix: str) -> bytes:
        found = [name for name in self.data.names() if f"{PREFIX}/{name}".startswith(prefix)]
        rows = "".join(
            f"<Contents><Key>{escape(f'{PREFIX}/{name}')}</Key><Size>{self.data.size(name)}</Size>"
            '<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>"0"</ETag><StorageClass>STANDARD</StorageClass></Contents>'
            for name in found
        )
        head = f"<Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(found)}</KeyCount><IsTruncated>false</IsTruncated>"
        return f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult>{head}{rows}</ListBucketResult>'.encode()


def _error(code: str) -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'.encode()


def benchmark_pictures(count: int = 64) -> list[bytes]:
    """Photographs of 85 to 115 kB from the folder of photographs (CONTEXT_ENCODER_DATA), where there is none crops of scikit-image's."""
    from tests.datasets import photographs

    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("CONTEXT_ENCODER_DATA", beside)) / "imagenet_sample"
    names = sorted(path for path in folder.glob("*.JPEG") if 85_000 <= path.stat().st_size <= 115_000) if folder.is_dir() else []
    if len(names) < 8:
        return photographs(16, 300, 450, 98)
    return [path.read_bytes() for path in random.Random(0).sample(names, min(count, len(names)))]


async def _serve(arguments: argparse.Namespace) -> None:
    data = SyntheticSet(benchmark_pictures(), arguments.shards, int(arguments.megabytes * 1e6), arguments.true_sha256)
    server, endpoint = await SyntheticStore(data, Shape(arguments.latency_ms, arguments.megabytes_per_second)).start()
    print(endpoint, flush=True)
    async with server:
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="An S3 server of a data set that is computed on the fly.")
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--megabytes", type=float, default=100.0, help="size of a shard")
    parser.add_argument("--latency-ms", type=float, default=50.0, help="pause before every answer")
    parser.add_argument("--megabytes-per-second", type=float, default=100.0, help="bandwidth of all connections together")
    parser.add_argument("--true-sha256", action="store_true", help="needed by readers that take whole shards; hashes them all at the start")
    asyncio.run(_serve(parser.parse_args()))
