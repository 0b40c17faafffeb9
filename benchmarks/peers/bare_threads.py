"""The least that threads need: JPEG bytes in memory, libjpeg-turbo, INTER_AREA, a batch. No shards, order, digest, mask or resuming.

With `--crop none` it is the limit itself: libjpeg-turbo decoding whole pictures into memory that each thread keeps, and nothing else.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from benchmarks.peers.crops import pictures, random_box
from benchmarks.peers.side import Task, main

_TASK = 8  # pictures, as our own loader
_AHEAD = 3  # batches, as our own loader
_thread = threading.local()


def batches(task: Task) -> Iterator[Any]:
    """Batches in memory that is used again, or numbers of images with `--crop none`."""
    cv2.setNumThreads(1)
    stored = list(pictures(task.distinct_tars))
    memory = [np.empty((task.batch, task.size, task.size, 3), np.uint8) for _ in range(_AHEAD + 2)]
    pending: deque[tuple[NDArray[np.uint8], list[Future[None]]]] = deque()
    with ThreadPoolExecutor(task.workers) as pool:
        while True:
            while len(pending) < _AHEAD:
                batch = memory.pop(0)
                chosen = random.choices(stored, k=task.batch)
                parts = range(0, task.batch, _TASK)
                pending.append((batch, [pool.submit(_fill, chosen[at : at + _TASK], batch[at : at + _TASK], task) for at in parts]))
            batch, futures = pending.popleft()
            for future in futures:
                future.result()
            memory.append(batch)
            yield task.batch if task.crop == "none" else batch


def _fill(stored: list[bytes], out: NDArray[np.uint8], task: Task) -> None:
    for data, place in zip(stored, out, strict=True):
        pixels = _decode(data)
        if task.crop == "none":
            continue
        if task.crop == "random_resized":
            left, top, width, height = random_box(pixels.shape[1], pixels.shape[0])
        else:
            width = height = min(task.size, *pixels.shape[:2])
            left, top = random.randint(0, pixels.shape[1] - width), random.randint(0, pixels.shape[0] - height)
        part = pixels[top : top + height, left : left + width]
        if part.shape[:2] != place.shape[:2]:
            shrinks = height >= task.size and width >= task.size
            part = cv2.resize(part, (task.size, task.size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        if random.random() < 0.5:
            cv2.flip(part, 1, dst=place)
        else:
            place[:] = part


def _decode(data: bytes) -> NDArray[np.uint8]:
    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    memory: NDArray[np.uint8] | None = getattr(_thread, "memory", None)
    if memory is None or memory.size < height * width * 3:
        memory = _thread.memory = np.empty(height * width * 3, np.uint8)
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", buffer=memory)
    return pixels


if __name__ == "__main__":
    main(__spec__.name, batches, ("simplejpeg", "opencv-python-headless", "numpy"))
