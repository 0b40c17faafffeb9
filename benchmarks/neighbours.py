"""Measures the memory of an exact nearest-neighbour search that is streamed from a file, and checks some of its answers.

The vectors are random and of unit length, written once to a table of float32 as a probe writes its features. A child process of its own
searches, so that its peak of resident memory is that of the search alone. Answers of a few queries are compared with those of
scikit-learn over the same vectors, chunk by chunk. Prints one Markdown table.

    python -m benchmarks.neighbours [--queries 10000] [--database 100000] [--values 9216] [--scratch FOLDER]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from benchmarks.machine import measured_here
from pipeline.evaluation.probe.neighbours import nearest, unit_rows
from pipeline.evaluation.probe.table import FeatureTable, chunk_rows

MOST = 6e9
"""Largest peak of resident memory, in bytes."""
NEIGHBOURS = 20
_CHECKED = 20  # queries whose answers are compared


def write(path: Path, rows: int, width: int, seed: int) -> FeatureTable:
    """Writes a table of random vectors of unit length."""
    random, table = np.random.default_rng(seed), FeatureTable(path, width)
    for start in range(0, rows, chunk_rows(width)):
        values = torch.from_numpy(random.standard_normal((min(chunk_rows(width), rows - start), width), dtype=np.float32))
        table.append(unit_rows(values).numpy())
    return table.finish()


def database(path: Path, rows: int, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Reads a table of vectors a chunk at a time, with a line of progress on stderr."""
    size, begun = chunk_rows(width), time.monotonic()
    for start in range(0, rows, size):
        count = min(size, rows - start)
        values = np.fromfile(path, np.float32, count * width, offset=4 * start * width).reshape(count, width)
        yield torch.arange(start, start + count), torch.from_numpy(values)
        done = f"{start + count:,} of {rows:,} vectors, {time.monotonic() - begun:.0f} s"
        print(f"{done}, peak {1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9:.2f} GB", file=sys.stderr, flush=True)


def search(folder: Path, queries: int, rows: int, width: int) -> None:
    """Searches, writes the ids that were found, and prints seconds, CPU seconds and the peak of memory as JSON."""
    begun = time.monotonic()
    asked = np.fromfile(folder / "queries", np.float32).reshape(queries, width)
    found = nearest(torch.from_numpy(asked), database(folder / "database", rows, width), NEIGHBOURS)
    np.save(folder / "ids.npy", found.ids.numpy())
    usage = resource.getrusage(resource.RUSAGE_SELF)
    row = {"seconds": time.monotonic() - begun, "cpu": usage.ru_utime + usage.ru_stime, "peak": 1024 * usage.ru_maxrss}
    print(json.dumps(row))


def wrong(folder: Path, rows: int, width: int) -> int:
    """Counts the checked queries whose neighbours are not those of scikit-learn."""
    asked = np.fromfile(folder / "queries", np.float32, _CHECKED * width).reshape(_CHECKED, width)
    distances, ids = np.empty((_CHECKED, 0)), np.empty((_CHECKED, 0), np.int64)
    size = chunk_rows(width)
    for start in range(0, rows, size):
        count = min(size, rows - start)
        part = np.fromfile(folder / "database", np.float32, count * width, offset=4 * start * width).reshape(count, width)
        model = NearestNeighbors(n_neighbors=min(NEIGHBOURS, count), metric="cosine", algorithm="brute").fit(part)
        near, places = model.kneighbors(asked)
        distances, ids = np.hstack([distances, near]), np.hstack([ids, places + start])
    order = np.argsort(distances, axis=1, kind="stable")[:, :NEIGHBOURS]
    theirs = np.take_along_axis(ids, order, axis=1)
    return int((np.sort(theirs, axis=1) != np.sort(np.load(folder / "ids.npy")[:_CHECKED], axis=1)).any(axis=1).sum())


def main() -> int:
    """Measures, prints the table, and returns 1 if the peak of memory is too high or an answer is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--database", type=int, default=100_000)
    parser.add_argument("--values", type=int, default=9216)
    parser.add_argument("--scratch", type=Path, help="folder with room for the vectors (default: $TMPDIR)")
    parser.add_argument("--search", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = options.queries, options.database, options.values
    if options.search is not None:
        search(options.search, *sizes)
        return 0
    with tempfile.TemporaryDirectory(prefix="neighbours-", dir=options.scratch) as name:
        folder = Path(name)
        write(folder / "queries", options.queries, options.values, 1)
        write(folder / "database", options.database, options.values, 2)
        command = [sys.executable, "-m", "benchmarks.neighbours", "--search", name]
        command += [f"--{option}={size}" for option, size in zip(("queries", "database", "values"), sizes, strict=True)]
        row = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        differing = wrong(folder, options.database, options.values)
    print(f"{measured_here()}, {NEIGHBOURS} neighbours\n")
    print("| queries | vectors | values | seconds | CPU seconds | peak of resident memory (limit) | queries checked, wrong |")
    print("|---|---|---|---|---|---|---|")
    shown = " | ".join(f"{size:,}" for size in sizes)
    memory = f"{row['peak'] / 1e9:.2f} GB ({MOST / 1e9:g} GB)"
    print(f"| {shown} | {row['seconds']:,.0f} | {row['cpu']:,.0f} | {memory} | {_CHECKED}, {differing} |")
    return int(row["peak"] > MOST or differing > 0)


if __name__ == "__main__":
    sys.exit(main())
