"""NVIDIA DALI's CPU pipeline on the same tar shards: it decodes only the crop's part of a picture, resizes with antialiasing, and flips."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from nvidia.dali import fn, pipeline_def, types

from benchmarks.peers.side import Task, main


@pipeline_def(device_id=None)  # type: ignore[untyped-decorator]
def pictures(task: Task) -> Any:
    """The graph: read, decode the crop, resize, flip."""
    data = fn.readers.webdataset(paths=task.tars, ext=["jpg"], random_shuffle=True, initial_fill=1000, missing_component_behavior="error")
    crop = fn.decoders.image_random_crop(
        data, device="cpu", output_type=types.RGB, random_area=(0.08, 1.0), random_aspect_ratio=(3 / 4, 4 / 3)
    )
    resized = fn.resize(crop, size=(task.size, task.size), interp_type=types.INTERP_LINEAR, antialias=True)
    return fn.flip(resized, horizontal=fn.random.coin_flip())


def batches(task: Task) -> Iterator[Any]:
    """uint8 batches, views of DALI's own memory."""
    pipeline = pictures(task, batch_size=task.batch, num_threads=task.workers)
    pipeline.build()
    while True:
        (images,) = pipeline.run()
        yield np.asarray(images.as_tensor())


if __name__ == "__main__":
    main(__spec__.name, batches, ("nvidia-dali-cuda120",))
