"""MosaicML StreamingDataset on its own MDS shards, which hold the same JPEG bytes; Pillow decodes, torch's loader batches."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

# the package's own __init__ imports torchvision, whose wheel does not load beside a CPU torch; streaming.base does without it
_package = ModuleType("streaming")
_spec = importlib.util.find_spec("streaming")
if _spec is None:
    raise ModuleNotFoundError("No module named 'streaming'")
_package.__path__ = list(_spec.submodule_search_locations or [])
sys.modules["streaming"] = _package

from streaming.base import MDSWriter, StreamingDataset  # noqa: E402

from benchmarks.peers.crops import pictures, pillow_crop, pillow_decode  # noqa: E402
from benchmarks.peers.side import Task, main  # noqa: E402


class Pictures(StreamingDataset):  # type: ignore[misc]
    """Random resized crops."""

    size = 0

    def __getitem__(self, at: int) -> Any:
        return pillow_crop(pillow_decode(super().__getitem__(at)["jpg"]), self.size)


def convert(task: Task, folder: Path) -> None:
    """Writes the pictures into MDS shards."""
    with MDSWriter(out=str(folder), columns={"jpg": "bytes"}) as writer:
        for data in pictures(task.tars):
            writer.write({"jpg": data})


def batches(task: Task) -> Iterator[Any]:
    """uint8 batches; epoch after epoch with the same workers."""
    folder = task.converted("mds", lambda unfinished: convert(task, unfinished))
    dataset = Pictures(local=str(folder), shuffle=True, batch_size=task.batch)
    dataset.size = task.size
    loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
        dataset, batch_size=task.batch, num_workers=task.workers, drop_last=True, persistent_workers=True
    )
    for _ in itertools.count():
        yield from loader


if __name__ == "__main__":
    main(__spec__.name, batches, ("mosaicml-streaming", "pillow", "torch"))
