"""webdataset's own pipeline as its documentation builds it: shuffled shards, decode "pil", batches made in the workers of WebLoader."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import webdataset

from benchmarks.peers.crops import pillow_crop
from benchmarks.peers.side import Task, main


def batches(task: Task) -> Iterator[Any]:
    """uint8 batches, stacked in the workers."""
    crop = partial(pillow_crop, size=task.size)
    dataset = (
        webdataset.WebDataset(task.tars, resampled=True, shardshuffle=False, nodesplitter=None)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg")
        .map_tuple(crop)
        .batched(task.batch, partial=False)
    )
    for (images,) in webdataset.WebLoader(dataset, batch_size=None, num_workers=task.workers):
        yield images


if __name__ == "__main__":
    main(__spec__.name, batches, ("webdataset", "pillow", "torch"))
