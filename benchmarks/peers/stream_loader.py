"""Our own loader: digests checked, random-region masks drawn, order and crops reproducible; `pipeline/stream/loader.py`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.peers.side import Task, main
from pipeline.config import DataConfig
from pipeline.masking import MaskConfig, mask_source
from pipeline.stream.loader import StreamConfig, StreamLoader


def batches(task: Task) -> Iterator[Any]:
    """Images of the batches; the masks of the features recipe are drawn beside them."""
    torch.set_num_threads(1)
    crop: Any = task.crop
    decoder: Any = task.decoder
    data = DataConfig(shards=str(task.shards), crop=crop, decoder=decoder, threads=task.workers)
    config = StreamConfig(data=data, image_size=task.size, global_batch=task.batch, mask=mask_source(MaskConfig()))
    with StreamLoader(config) as loader:
        for batch in loader:
            yield batch.images


if __name__ == "__main__":
    main(__spec__.name, batches, ("torch", "simplejpeg", "opencv-python-headless", "numpy"))
