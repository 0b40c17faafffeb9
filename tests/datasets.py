"""Small data sets for tests, written without the builder, so that what is tested does not write its own input."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

from launch.local.object_store import SeaweedFS
from shards.dataset import index
from shards.dataset.manifest import NAME, Manifest, ShardRecord
from shards.store import Store


def photographs(count: int, height: int = 96, width: int = 128, quality: int = 90) -> list[bytes]:
    """JPEGs of crops of the photographs that scikit-image ships, each different."""
    from skimage import data

    sources = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    random = np.random.default_rng(count)
    found = []
    for number in range(count):
        source = sources[number % len(sources)]
        top, left = (int(random.integers(0, size - crop + 1)) for size, crop in zip(source.shape[:2], (height, width), strict=True))
        buffer = io.BytesIO()
        Image.fromarray(source[top : top + height, left : left + width]).save(buffer, "JPEG", quality=quality)
        found.append(buffer.getvalue())
    return found


def write_dataset(folder: Path, pictures: Sequence[bytes], counts: Sequence[int], labels: bool = True) -> Manifest:
    """Writes `pictures` into shards of `counts` samples, with indexes and a manifest."""
    assert sum(counts) == len(pictures)
    folder.mkdir(parents=True, exist_ok=True)
    records, number = [], 0
    for shard, count in enumerate(counts):
        path = folder / f"shard-{shard:06d}.tar"
        with webdataset.TarWriter(str(path), mtime=0) as writer:
            for _ in range(count):
                sample = {"__key__": f"{number:09d}", "jpg": pictures[number], "json": json.dumps({"source": f"{number}.jpg"}).encode()}
                writer.write({**sample, "cls": str(number % 7).encode()} if labels else sample)
                number += 1
        with open(path, "rb") as tar:
            rows = index.make(tar, path.name).encode()
        path.with_name(path.name + index.SUFFIX).write_bytes(rows)
        data = path.read_bytes()
        records.append(ShardRecord(path.name, len(data), hashlib.sha256(data).hexdigest(), count, hashlib.sha256(rows).hexdigest()))
    manifest = Manifest(tuple(records), str(folder), tuple(f"class {label}" for label in range(7)) if labels else ())
    (folder / NAME).write_bytes(manifest.encode())
    return manifest


def upload(server: SeaweedFS, bucket: str, folder: Path) -> str:
    """Brings the files of a folder into a new bucket; returns their URL."""
    server.make_bucket(bucket)
    store = Store(f"s3://{bucket}/set", server.options)
    for path in folder.iterdir():
        store.upload(path, path.name)
    return store.url
