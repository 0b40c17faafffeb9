"""Megatron-Energon on the same tar shards, prepared by its own command; decoder "pilrgb", its savable loader with two workers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.energon import (
    DefaultTaskEncoder,
    ImageSample,
    SampleDecoder,
    WorkerConfig,
    get_savable_loader,
    get_train_dataset,
    stateless,
)
from PIL import Image

from benchmarks.peers.crops import pillow_crop
from benchmarks.peers.side import Task, main


class Encoder(DefaultTaskEncoder):  # type: ignore[misc]
    """Random resized crops."""

    decoder = SampleDecoder(image_decode="pilrgb")

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    @stateless  # type: ignore[untyped-decorator]
    def encode_sample(self, sample: ImageSample) -> ImageSample:
        """Replaces the decoded picture by its crop."""
        picture: Image.Image = sample.image
        sample.image = torch.from_numpy(pillow_crop(picture, self.size).copy())  # its batches stack tensors only
        return sample


def convert(task: Task, folder: Path) -> None:
    """Links the distinct shards into a folder and lets Energon index it: it takes no key twice, and repeats its shards by itself."""
    folder.mkdir()
    for tar in task.distinct_tars:
        os.link(tar, folder / Path(tar).name)
    command = [str(Path(sys.executable).parent / "energon"), "prepare", "--non-interactive", "--split-ratio", "1,0,0"]
    command += ["--num-workers", str(task.workers), "--sample-type", "ImageSample", "--field-map", '{"image": "jpg"}', str(folder)]
    subprocess.run(command, check=True)


def batches(task: Task) -> Iterator[Any]:
    """uint8 batches, stacked in the workers."""
    folder = task.converted("energon", lambda unfinished: convert(task, unfinished))
    dataset = get_train_dataset(
        folder,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=task.workers),
        batch_size=task.batch,
        shuffle_buffer_size=1000,
        max_samples_per_sequence=100,
        task_encoder=Encoder(task.size),
    )
    for batch in get_savable_loader(dataset):
        yield batch.image


if __name__ == "__main__":
    main(__spec__.name, batches, ("megatron-energon", "pillow", "torch"))
