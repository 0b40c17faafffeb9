"""The same pictures give the same shards, order, crops and masks to the byte, whatever is moved or rewritten.

`python -m tests.test_golden` prints the digests anew. They change only with a change of what is promised (plan.FORMAT, the order,
a draw) or with another Pillow, OpenCV or libjpeg-turbo than constraints.txt pins.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import DataConfig
from pipeline.masking import MaskConfig, mask_source
from pipeline.stream.loader import StreamConfig, StreamLoader
from tests.shards.trees import classed, run, shards_only, write_folder

GOLDEN = Path(__file__).parent / "golden.json"
SIZE = 48
STREAMS = (("central", "random"), ("region", "random_resized"), ("block", "center"))
"""Kind of mask and of crop."""


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def streamed(folder: Path, kind: str, crop: str) -> dict[str, str]:
    """Digests of what two ranks see of an epoch and a half, rank after rank."""
    data = DataConfig(shards=str(folder), crop=crop, shuffle_block=8, lanes=4, threads=1)  # type: ignore[arg-type]
    mask = mask_source(MaskConfig(kind=kind))  # type: ignore[arg-type]
    config = StreamConfig(data, image_size=SIZE, global_batch=8, seed=3, epochs=2, mask=mask)
    found: dict[str, list[bytes]] = {"ids": [], "images": [], "masks": [], "labels": [], "keys": []}
    for rank in range(2):
        with StreamLoader(config, rank, 2) as loader:
            for batch in loader:
                for name, tensor in (
                    ("ids", batch.sample_ids),
                    ("images", batch.images),
                    ("masks", batch.masks),
                    ("labels", batch.labels),
                    ("keys", batch.keys),
                ):
                    found[name].append(np.ascontiguousarray(tensor.numpy()).tobytes())
    return {name: digest(*parts) for name, parts in found.items()}


def facts(folder: Path) -> dict[str, Any]:
    """All digests."""
    pictures = write_folder(folder / "pictures", classed())
    run(pictures, folder / "shards")
    return {
        "shards": {name: digest(data) for name, data in shards_only(folder / "shards").items()},
        "streams": {f"{kind} {crop}": streamed(folder / "shards", kind, crop) for kind, crop in STREAMS},
    }


def test_shards_order_crops_and_masks_are_what_they_were(tmp_path: Path) -> None:
    assert facts(tmp_path) == json.loads(GOLDEN.read_text())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        json.dump(facts(Path(name)), sys.stdout, indent=1)
