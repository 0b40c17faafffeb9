"""The bank of a source: every label picture is read ahead and traced by threads, and the shapes are kept in the order of the names."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from shards.console import ProgressReport
from shards.counting import counted
from shards.dataset.pixels import PictureRejected
from shards.errors import ShapesError
from shards.shapes.bank import Provenance, ShapeBank, make_bank
from shards.shapes.labels import ShapeRules, read_labels, too_long
from shards.shapes.source import LabelPictures, find_pictures
from shards.shapes.tracing import Contours, Traced, trace
from shards.store import Options
from shards.urls import redacted

_RULES = ShapeRules()
_THREADS = 8
_AHEAD = 32
"""Pictures that are read ahead."""


@dataclass(frozen=True)
class Collected:
    """A bank that was just traced, and the remarks on its source.

    Attributes:
        bank: bank of every shape.
        pictures: label pictures of the source.
        without_objects: names of the pictures without an object.
    """

    bank: ShapeBank
    pictures: LabelPictures
    without_objects: Sequence[str]


def collect(
    url: str,
    options: Options | None = None,
    split: str | None = None,
    rules: ShapeRules = _RULES,
    threads: int = 0,
    quiet: bool = False,
) -> Collected:
    """Traces the objects of every label picture of a source. The same source gives the same bank with any number of threads.

    Args:
        url: URL or path of a folder, as in `shards.shapes.source.find_pictures`.
        options: fsspec options of the store.
        split: list of pictures to take; None takes every picture.
        rules: label pictures that are read, and objects that become shapes.
        threads: pictures that are read and traced at once; 0 chooses.
        quiet: show no progress on stderr.

    Raises:
        ShapesError: the source can't be used, a label picture can't be read (the first one by name is named), or nothing gives a shape.
        StoreError: the store can't be read.
    """
    pictures = find_pictures(url, options, split)
    threads = threads or min(_THREADS, 2 * (os.cpu_count() or 1))
    shapes: list[Contours] = []
    left_out, without_objects, objects, void_pixels = Counter[str](), list[str](), 0, 0
    progress = ProgressReport("pictures", len(pictures.files), quiet=quiet)
    try:
        for (name, _), (traced, size) in _in_order(lambda file: _traced(pictures, file, rules), pictures.files, threads):
            shapes += traced.shapes
            left_out.update(traced.left_out)
            objects += traced.objects
            void_pixels += traced.void_pixels
            if not traced.objects:
                without_objects.append(name)
            progress.advance(1, size)
    finally:
        progress.close()
    if not shapes:
        raise ShapesError(f"{redacted(url)}: {_nothing(len(pictures.files), objects, left_out, void_pixels)}")
    counts = dict(sorted(left_out.items()))
    provenance = Provenance(
        redacted(url), pictures.kind, split or "", len(pictures.files), len(without_objects), objects, void_pixels, rules.min_pixels, counts
    )
    return Collected(make_bank(shapes, provenance), pictures, without_objects)


def _nothing(pictures: int, objects: int, left_out: Counter[str], void_pixels: int) -> str:
    """Writes why a source gives no shape."""
    if objects:
        causes = ", ".join(f"{cause} {count:,}" for cause, count in sorted(left_out.items()))
        return f"{counted(objects, 'object')}, and none gives a shape ({causes}). Lower --min-pixels, or give another source"
    void = f", and {counted(void_pixels, 'pixel is', 'pixels are')} void; if those are the objects, add --void none" if void_pixels else ""
    return f"no objects in {counted(pictures, 'label picture')}: every pixel is background (0){void}"


def _traced(pictures: LabelPictures, file: tuple[str, int], rules: ShapeRules) -> tuple[Traced, int]:
    """Reads and traces one label picture; returns its objects and the length of its file."""
    name, size = file
    try:
        if size > rules.max_bytes:
            raise too_long(size, rules)
        data = pictures.store.read(name)
        labels, void = read_labels(data, rules)
    except PictureRejected as error:
        raise ShapesError(f"{pictures.store.describe(name)}: {error}") from error
    return trace(labels, void, rules.min_pixels), len(data)


def _in_order(
    work: Callable[[tuple[str, int]], tuple[Traced, int]], files: Sequence[tuple[str, int]], threads: int
) -> Iterator[tuple[tuple[str, int], tuple[Traced, int]]]:
    """Does the work in threads, a limited number of files ahead, and yields each file with its result in the order of the files."""
    pool = ThreadPoolExecutor(threads)
    waiting: deque[tuple[tuple[str, int], Future[tuple[Traced, int]]]] = deque()
    try:
        for file in files:
            waiting.append((file, pool.submit(work, file)))
            if len(waiting) > _AHEAD:
                first, result = waiting.popleft()
                yield first, result.result()
        for first, result in waiting:
            yield first, result.result()
    finally:
        pool.shutdown(cancel_futures=True)
