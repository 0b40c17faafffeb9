"""ffcv on its own file of the same pictures, encoded anew as it does (JPEG, quality 90); its compiled decoder crops and resizes by area."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ffcv.fields import RGBImageField
from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import RandomHorizontalFlip
from ffcv.writer import DatasetWriter

from benchmarks.peers.crops import pictures, pillow_decode
from benchmarks.peers.side import Task, main


class Pictures:
    """The pictures of some shards by their place, as ffcv's writer wants them."""

    def __init__(self, tars: list[str]) -> None:
        self.stored = list(pictures(tars))

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, at: int) -> tuple[Any]:
        return (pillow_decode(self.stored[at]),)


def convert(task: Task, folder: Path) -> None:
    """Writes the pictures into one file of ffcv's."""
    folder.mkdir()
    field = RGBImageField(write_mode="jpg", jpeg_quality=90)
    DatasetWriter(str(folder / "pictures.beton"), {"image": field}, num_workers=task.workers).from_indexed_dataset(Pictures(task.tars))


def batches(task: Task) -> Iterator[Any]:
    """uint8 batches, views of ffcv's own memory."""
    folder = task.converted("ffcv", lambda unfinished: convert(task, unfinished))
    decoder = RandomResizedCropRGBImageDecoder((task.size, task.size), scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
    loader = Loader(
        str(folder / "pictures.beton"),
        batch_size=task.batch,
        num_workers=task.workers,
        order=OrderOption.QUASI_RANDOM,
        os_cache=True,
        drop_last=True,
        pipelines={"image": [decoder, RandomHorizontalFlip()]},
    )
    for _ in itertools.count():
        for (images,) in loader:
            yield images


if __name__ == "__main__":
    main(__spec__.name, batches, ("ffcv", "numpy"))
