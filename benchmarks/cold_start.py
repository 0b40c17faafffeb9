"""How long a run waits for its first batch when nothing is cached: ours, webdataset's own reading, and whole shards first.

A synthetic S3 server in a process of its own holds 64 shards of 100 MB behind 50 ms a request and 100 MB/s for all connections. Every
reader starts in a fresh process with its libraries imported and its clock at zero, takes one global batch of 256 random 227 crops, and
leaves; they take turns, `--repeats` times, and the table gives the least and the greatest.

    python -m benchmarks.cold_start
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

SIDE, BATCH, LANES = 227, 256, 64
WHOLE = 2
_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Setup:
    """Settings of a reader. `threads` are decoding threads of ours and worker processes of webdataset."""

    endpoint: str
    shards: int
    threads: int
    cache: str


def ours(setup: Setup) -> dict[str, float]:
    """`StreamLoader`: ranges first, whole shards behind where there is a cache."""
    import s3fs  # noqa: F401, PLC0415 - imported by fsspec at first use; imports are not what is measured

    from pipeline.config import DataConfig  # noqa: PLC0415
    from pipeline.stream.loader import StreamConfig, StreamLoader  # noqa: PLC0415
    from tests.faults.synthetic_store import URL  # noqa: PLC0415

    options = {"endpoint_url": setup.endpoint, "key": "any", "secret": "any"}
    data = DataConfig(shards=URL, storage_options=options, lanes=LANES, crop="random", cache=setup.cache, threads=setup.threads)
    began = time.perf_counter()
    loader = StreamLoader(StreamConfig(data, SIDE, BATCH))
    made = time.perf_counter() - began
    batches = iter(loader)
    images = next(batches).images
    first = time.perf_counter() - began
    assert images.shape == (BATCH, SIDE, SIDE, 3)
    totals = loader.counters.totals()
    assert len(loader.quarantine) == 0
    loader.close()
    return {"first": first, "made": made, "requests": totals["store_requests"], "megabytes": totals["bytes_read_store"] / 1e6}


def webdataset_reader(setup: Setup) -> dict[str, float]:
    """webdataset as its documentation has it: shuffled shards read from their start, a shuffle buffer of 1000 (first filled to 100)."""
    import numpy as np  # noqa: PLC0415
    import simplejpeg  # noqa: PLC0415
    import webdataset  # noqa: PLC0415

    from tests.faults.synthetic_store import BUCKET, PREFIX  # noqa: PLC0415

    def opened(url: str, *_: Any, **__: Any) -> IO[bytes]:
        return urllib.request.urlopen(url)  # type: ignore[no-any-return] # noqa: S310 - the loopback server of this benchmark

    def crop(data: bytes) -> Any:
        image = simplejpeg.decode_jpeg(data, "RGB")
        top, left = (np.random.randint(0, max(1, size - SIDE + 1)) for size in image.shape[:2])
        piece = image[top : top + SIDE, left : left + SIDE]
        return np.pad(piece, [(0, SIDE - piece.shape[0]), (0, SIDE - piece.shape[1]), (0, 0)])

    webdataset.gopen_schemes["http"] = opened
    urls = [f"{setup.endpoint}/{BUCKET}/{PREFIX}/shard-{shard:06d}.tar" for shard in range(setup.shards)]
    began = time.perf_counter()
    data = webdataset.WebDataset(urls, shardshuffle=setup.shards, nodesplitter=None, detshuffle=False)
    # a batch is made of what the workers give, so that both deliver one batch of 256 and not one each
    data = data.shuffle(1000, initial=100).to_tuple("jpg").map_tuple(crop).batched(BATCH // max(setup.threads, 1))
    loader = webdataset.WebLoader(data, batch_size=None, num_workers=setup.threads)
    parts: list[Any] = []
    made = time.perf_counter() - began
    for (images,) in loader:
        parts.append(images)
        if sum(map(len, parts)) >= BATCH:
            break
    first = time.perf_counter() - began
    assert parts[0].shape[1:] == (SIDE, SIDE, 3)
    return {"first": first, "made": made}


def whole_shards(setup: Setup) -> dict[str, float]:
    """The first shards of a run downloaded whole by two connections at once, before anything is read from them."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    from tests.faults.synthetic_store import BUCKET, PREFIX  # noqa: PLC0415

    def download(shard: int) -> int:
        size = 0
        with urllib.request.urlopen(f"{setup.endpoint}/{BUCKET}/{PREFIX}/shard-{shard:06d}.tar") as body:  # noqa: S310
            while piece := body.read(1 << 20):
                size += len(piece)
        return size

    began = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        total = sum(pool.map(download, range(WHOLE)))
    return {"first": time.perf_counter() - began, "megabytes": total / 1e6}


READERS: dict[str, tuple[str, Callable[[Setup], dict[str, float]], str]] = {
    "ours": (f"StreamLoader, {LANES} lanes, no cache", ours, "none"),
    "ours-cache": (f"StreamLoader, {LANES} lanes, empty cache filled behind", ours, "folder"),
    "webdataset": ("webdataset, shards read from their start", webdataset_reader, ""),
    "whole": (f"the first {WHOLE} shards downloaded, nothing decoded", whole_shards, ""),
}


@contextmanager
def server(arguments: argparse.Namespace) -> Iterator[str]:
    """The synthetic store in its own process; gives its endpoint."""
    names = ("shards", "megabytes", "latency_ms", "megabytes_per_second")
    flags = [f"--{name.replace('_', '-')}={getattr(arguments, name)}" for name in names]
    command = [sys.executable, "-m", "tests.faults.synthetic_store", *flags]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


def measure(name: str, endpoint: str, arguments: argparse.Namespace) -> dict[str, float]:
    """One reader's numbers, from a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [f"--reader={name}", f"--endpoint={endpoint}", f"--shards={arguments.shards}", f"--threads={arguments.threads}"]
        command = [sys.executable, "-m", "benchmarks.cold_start", *flags, f"--cache={folder}"]
        result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=_ROOT, timeout=120)
    found: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Time to the first batch from a store that nothing is cached of.")
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--megabytes", type=float, default=100.0, help="size of a shard")
    parser.add_argument("--latency-ms", type=float, default=50.0)
    parser.add_argument("--megabytes-per-second", type=float, default=100.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="decoding threads of ours, worker processes of webdataset")
    parser.add_argument("--only", choices=list(READERS), nargs="+", default=list(READERS))
    parser.add_argument("--reader", choices=list(READERS), help=argparse.SUPPRESS)
    parser.add_argument("--endpoint", help=argparse.SUPPRESS)
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.reader:
        _, reader, cache = READERS[arguments.reader]
        cache = arguments.cache if cache == "folder" else cache
        print(json.dumps(reader(Setup(arguments.endpoint, arguments.shards, arguments.threads, cache))))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.only}
    with server(arguments) as endpoint:
        for _ in range(arguments.repeats):
            for name, results in found.items():
                results.append(measure(name, endpoint, arguments))
    print(f"{arguments.shards} shards of {arguments.megabytes:g} MB, {arguments.latency_ms:g} ms, {arguments.megabytes_per_second:g} MB/s")
    print(f"{'seconds to the first batch of 256':<58}{'least':>8}{'median':>8}{'most':>8}   in the best run")
    for name, results in found.items():
        seconds = [result["first"] for result in results]
        best = min(results, key=lambda result: result["first"])
        more = ", ".join(f"{key} {value:.5g}" for key, value in best.items() if key != "first")
        print(f"{READERS[name][0]:<58}{min(seconds):>8.2f}{statistics.median(seconds):>8.2f}{max(seconds):>8.2f}   {more}")


if __name__ == "__main__":
    main()
