"""Reads a data set for many epochs and prints what the process holds after each: a program of its own, so that nothing else is measured.

Arguments: a JSON object of DataConfig settings, the number of epochs, and `leak` to
lose a kilobyte a batch and a descriptor an epoch on purpose.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
from pathlib import Path

from pipeline.config import DataConfig
from pipeline.stream.loader import StreamConfig, StreamLoader


def held() -> dict[str, int]:
    """Bytes of memory of its own (pages of files come and go with what else the machine does), open file descriptors, threads."""
    gc.collect()
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "memory": int(lines["RssAnon"].split()[0]) * 1024,
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "threads": threading.active_count(),
    }


def main(settings: str, epochs: int, leak: bool) -> None:
    leaked: list[bytearray | int] = []
    config = StreamConfig(DataConfig(**json.loads(settings)), image_size=16, global_batch=2, seed=2, epochs=epochs)
    with StreamLoader(config) as loader:
        epoch = batches = 0
        for batch in loader:
            if batch.epoch != epoch:
                print(json.dumps({**held(), "batches": batches}), flush=True)
                epoch = batch.epoch
                if leak:
                    leaked.append(os.open(os.devnull, os.O_RDONLY))
            if leak:
                leaked.append(bytearray(os.urandom(1000)))
            batches += 1
        print(json.dumps({**held(), "batches": batches, "totals": dict(loader.counters.totals())}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), "leak" in sys.argv[3:])
