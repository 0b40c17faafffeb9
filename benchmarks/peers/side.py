"""The common part of every side of a comparison: its command line, and how it measures on request.

A side is a process that delivers uint8 batches for ever. It writes one line of JSON when it is ready, then one for each line that it reads:
`{"images": n}` delivers n images and answers `{"images": n, "seconds": s}`. Before the clock starts it throws away more batches than any
pipeline here holds ready, so that no side is credited with earlier work: the steady state is timed. Runs in the Python of the peer, so
it imports nothing but NumPy.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Task:
    """The batches that a side has to deliver.

    Attributes:
        shards: folder of a data set that `python -m shards build` made: `shard-*.tar` with a `.jpg` each sample.
        scratch: folder for the data in a peer's own format, made when it is missing and used again by later sides.
        crop: random_resized (8 to 100 % of the area, aspect 3/4 to 4/3, antialiased), random (at the stored scale), or none (only decode).
        size: side of the crops in pixels.
        batch: images a batch.
        workers: threads or processes that decode.
        decoder: decoder of our own loader; other sides have their own.
    """

    shards: Path
    scratch: Path
    crop: str
    size: int
    batch: int
    workers: int
    decoder: str

    @property
    def tars(self) -> list[str]:
        """Paths of the shards."""
        return sorted(str(path) for path in self.shards.glob("shard-*.tar"))

    @property
    def distinct_tars(self) -> list[str]:
        """Paths of different files only, because the data set of a benchmark links to each shard several times."""
        return list({Path(tar).stat().st_ino: tar for tar in reversed(self.tars)}.values())[::-1]

    def converted(self, name: str, convert: Callable[[Path], None]) -> Path:
        """The folder that `convert` fills the first time; a conversion that was cut off is not taken for one."""
        folder = self.scratch / name
        if not folder.exists():
            unfinished = folder.with_name(f"{name}.unfinished-{os.getpid()}")
            convert(unfinished)
            unfinished.rename(folder)
        return folder


def main(name: str, batches: Callable[[Task], Iterator[Any]], packages: tuple[str, ...]) -> None:
    """Runs a side from its command line.

    Args:
        name: for `--help`.
        batches: delivers arrays or tensors of uint8 (batch, size, size, 3) for ever, or numbers of images where nothing is delivered.
        packages: distributions whose versions are reported.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description="one side of benchmarks/streaming.py")
    parser.add_argument("shards", type=Path, help="folder of shards")
    parser.add_argument("--scratch", type=Path, required=True, help="folder for data in the peer's own format")
    parser.add_argument("--crop", choices=["random_resized", "random", "none"], default="random_resized", help="what is cut out")
    parser.add_argument("--size", type=int, default=227, help="side of the crops in pixels")
    parser.add_argument("--batch", type=int, default=256, help="images a batch")
    parser.add_argument("--workers", type=int, default=2, help="threads or processes")
    parser.add_argument("--decoder", default="simplejpeg", help="data.decoder of our own loader; no matter elsewhere")
    parser.add_argument("--images", type=int, help="measure once and end; without it, requests are read from standard input")
    options = parser.parse_args()
    answers = _private_output()
    task = Task(
        options.shards.resolve(), options.scratch.resolve(), options.crop, options.size, options.batch, options.workers, options.decoder
    )
    if not task.tars:
        raise SystemExit(f"{options.shards}: holds no shard-*.tar. Make some with python -m shards build")
    task.scratch.mkdir(parents=True, exist_ok=True)
    stream = batches(task)
    next(stream)  # imports, conversion, the first processes: before the side is called ready
    answers({"versions": {package: version(package) for package in packages}})
    requests: Iterator[Any] = iter([json.dumps({"images": options.images})]) if options.images else iter(sys.stdin.readline, "")
    for line in requests:
        answers(measure(stream, task, int(json.loads(line)["images"])))


def measure(stream: Iterator[Any], task: Task, images: int) -> dict[str, float]:
    """Delivers at least `images` images and times them, from the arrival of a batch on.

    Workers that began together also finish together: a batch a worker is thrown away first, and batches are counted in such groups, so that
    no side gains one.
    """
    for _ in range(task.workers):
        next(stream)
    started, delivered = time.perf_counter(), 0
    while delivered < images:
        delivered += sum(_count(next(stream), task) for _ in range(task.workers))
    return {"images": delivered, "seconds": time.perf_counter() - started}


def _count(batch: Any, task: Task) -> int:
    if isinstance(batch, int):
        return batch
    if tuple(batch.shape) != (task.batch, task.size, task.size, 3) or not str(batch.dtype).endswith("uint8"):
        raise SystemExit(f"a batch is {batch.dtype} {tuple(batch.shape)}, not uint8 {(task.batch, task.size, task.size, 3)}")
    return task.batch


def _private_output() -> Callable[[dict[str, Any]], None]:
    """Writes answers to what was standard output; what libraries print goes to standard error."""
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(content: dict[str, Any]) -> None:
        print(json.dumps(content), file=output, flush=True)

    return answer
