"""litdata's StreamingDataset on its own chunks, which hold the same JPEG bytes; Pillow decodes, StreamingDataLoader batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import litdata

from benchmarks.peers.crops import pictures, pillow_crop, pillow_decode
from benchmarks.peers.side import Task, main


class Pictures(litdata.StreamingDataset):  # type: ignore[misc]
    """Random resized crops."""

    size = 0

    def __getitem__(self, at: Any) -> Any:
        return pillow_crop(pillow_decode(super().__getitem__(at)["jpg"]), self.size)


def _sample(data: bytes) -> dict[str, bytes]:
    return {"jpg": data}


def convert(task: Task, folder: Path) -> None:
    """Writes the pictures into litdata's chunks."""
    litdata.optimize(fn=_sample, inputs=list(pictures(task.tars)), output_dir=str(folder), num_workers=1, chunk_bytes="64MB", verbose=False)


def batches(task: Task) -> Iterator[Any]:
    """uint8 batches; epoch after epoch with the same workers."""
    folder = task.converted("litdata", lambda unfinished: convert(task, unfinished))
    dataset = Pictures(str(folder), shuffle=True, drop_last=True)
    dataset.size = task.size
    loader = litdata.StreamingDataLoader(dataset, batch_size=task.batch, num_workers=task.workers, drop_last=True, persistent_workers=True)
    for _ in itertools.count():
        yield from loader


if __name__ == "__main__":
    main(__spec__.name, batches, ("litdata", "pillow", "torch"))
