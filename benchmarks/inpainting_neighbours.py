"""Measures nearest-neighbour inpainting beside the network's forward pass, and every way to fill holes by its time a picture.

The pictures are central crops of photographs with the central hole of the inpainting recipe, the network is the published one with its
initial weights. Both searches compare all of them with the same number of random vectors of the descriptions' widths, a chunk at a time,
which is read from a file before it is searched. Batches of the network run between the chunks, so that other programs disturb all three
alike. Prints two Markdown tables; ends with 1 if a search takes more than twice the forward pass.

    python -m benchmarks.inpainting_neighbours [PHOTOGRAPHS] [--pictures 256] [--vectors 100000] [--scratch FOLDER]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.machine import measured_here
from pipeline import recipes
from pipeline.evaluation.inpainting.fills import DESCRIBERS, FILLS, make_describers, make_fills, nearest
from pipeline.evaluation.inpainting.method import Holes
from pipeline.evaluation.painter import Painter
from pipeline.recipes.inpainting import InpaintingSettings

MOST = 2.0
"""Largest time of a search, in forward passes of the same pictures."""
ROOT = Path(__file__).resolve().parent.parent
_CHUNKS, _FORWARD, _FILLED = 16, 64, 32  # chunks of the stored vectors; pictures of a forward pass, and those that every method fills
_LENGTH = 3900.0  # of a random vector

Seconds = dict[str, list[float]]
"""Wall and CPU seconds by what took them."""


def network() -> Painter:
    """The published network with its initial weights."""
    recipe = recipes.make("inpainting", InpaintingSettings(), 0)
    return Painter(recipe, next(each.network for each in recipe.players if each.name == recipe.painter), 0, "untrained")


def photographs(folder: Path, count: int, painter: Painter) -> Holes:
    """Central crops of photographs, repeated where there are fewer, with the recipe's hole."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not paths:
        raise SystemExit(f"no photographs in {folder}")
    side, images = painter.size, []
    for path in (paths * (count // len(paths) + 1))[:count]:
        with Image.open(path) as image:
            left, top = (image.width - min(image.size)) // 2, (image.height - min(image.size)) // 2
            box = (left, top, left + min(image.size), top + min(image.size))
            images.append(np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BOX, box)))
    masks = np.zeros((count, side, side), bool)
    for mask in masks:
        assert painter.recipe.mask is not None
        painter.recipe.mask.draw(0, mask)
    shown = np.where(masks[..., None], 0, np.stack(images)).astype(np.uint8)
    return Holes(shown, masks, np.arange(count), np.arange(count))


def write_chunk(path: Path, rows: int, width: int) -> None:
    """Writes random vectors of whole numbers, int16."""
    values = np.random.default_rng(0).standard_normal((rows, width), dtype=np.float32)
    (values * (_LENGTH / np.sqrt(np.square(values).sum(1, keepdims=True)))).round().astype(np.int16).tofile(path)


@contextmanager
def timed(seconds: Seconds, name: str) -> Iterator[None]:
    """Adds the wall and CPU seconds of a block to those of a name."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    seconds[name][0] += time.perf_counter() - wall
    seconds[name][1] += time.process_time() - cpu


def compare(painter: Painter, holes: Holes, vectors: int, scratch: Path) -> tuple[Seconds, dict[str, int]]:
    """Runs the network and both searches in turns.

    Returns:
        Seconds by `forward` and the names of the searches, and the width of each search's vectors.
    """
    seconds: Seconds = defaultdict(lambda: [0.0, 0.0])
    queries = {each.name: each.query(holes) for each in make_describers(list(DESCRIBERS), painter)}
    rows = -(-vectors // _CHUNKS)
    for name, (values, _) in queries.items():
        write_chunk(scratch / name, rows, values.shape[1])
    views = painter.recipe.views(*(torch.from_numpy(each) for each in (holes.images, holes.masks)), None, torch.from_numpy(holes.keys))
    batches = range(0, len(holes.images), _FORWARD)
    for chunk in range(-1, max(_CHUNKS, len(batches))):  # the first turn warms up
        found = seconds if chunk >= 0 else defaultdict(lambda: [0.0, 0.0])
        if chunk < len(batches):
            part = {name: each[batches[chunk] : batches[chunk] + _FORWARD] for name, each in views.items()}
            with timed(found, "forward"), torch.no_grad():
                painter.recipe.paint(part, {painter.recipe.painter: painter.network})
        for name, (values, weights) in queries.items() if chunk < _CHUNKS else ():
            with timed(found, name):
                stored = np.fromfile(scratch / name, np.int16).reshape(rows, -1)
                nearest(values, weights, stored, chunk * rows)
        print(f"{chunk + 1} of {_CHUNKS} chunks", file=sys.stderr, flush=True)
    return seconds, {name: values.shape[1] for name, (values, _) in queries.items()}


def a_picture(painter: Painter, holes: Holes) -> dict[str, float]:
    """CPU milliseconds a picture of every fill, and of both descriptions of a query and of a stored picture."""
    few = Holes(*(each[:_FILLED] for each in (holes.images, holes.masks, holes.keys, holes.numbers)))
    steps: dict[str, Callable[[], object]] = {}
    for fill in make_fills(list(FILLS), painter):
        steps[fill.title] = lambda fill=fill: fill.fill(few)  # type: ignore[misc]
    for describer in make_describers(list(DESCRIBERS), painter):
        steps[f"{describer.title}: a query described"] = lambda each=describer: each.query(few)  # type: ignore[misc]
        steps[f"{describer.title}: a stored picture described"] = lambda each=describer: each.stored(few.images)  # type: ignore[misc]
    taken = {}
    for name, step in steps.items():
        step()
        began = time.process_time()
        step()
        taken[name] = 1000 * (time.process_time() - began) / _FILLED
    return taken


def main() -> int:
    """Measures, prints the tables, and returns 1 if a search takes too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("CONTEXT_ENCODER_DATA", ROOT.parent / "shared" / "data")) / "imagenet_sample"
    parser.add_argument("photographs", type=Path, nargs="?", default=default)
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--scratch", type=Path, help="folder with room for a sixteenth of the vectors (default: $TMPDIR)")
    options = parser.parse_args()
    painter = network()
    holes = photographs(options.photographs, options.pictures, painter)
    each = a_picture(painter, holes)
    with tempfile.TemporaryDirectory(prefix="inpainting-neighbours-", dir=options.scratch) as name:
        seconds, widths = compare(painter, holes, options.vectors, Path(name))
    print(f"{measured_here()}, {torch.get_num_threads()} threads\n")
    print(f"| pictures of {painter.size} | CPU ms a picture |\n|---|---|")
    print("\n".join(f"| {title} | {value:,.1f} |" for title, value in each.items()))
    forward, forward_cpu = seconds["forward"]
    print(f"\n{options.pictures:,} pictures, {options.vectors:,} vectors\n")
    print(f"| | values | seconds | CPU seconds | seconds over the network's (at most {MOST:g}) | CPU seconds over the network's |")
    print(f"|---|---|---|---|---|---|\n| network's forward pass | | {forward:,.1f} | {forward_cpu:,.1f} | | |")
    for name, width in widths.items():
        wall, cpu = seconds[name]
        print(f"| {name} | {width:,} | {wall:,.1f} | {cpu:,.1f} | {wall / forward:.2f} | {cpu / forward_cpu:.2f} |")
    return int(any(seconds[name][0] > MOST * forward for name in widths))


if __name__ == "__main__":
    sys.exit(main())
