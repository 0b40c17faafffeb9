"""One rank of a run as a process of its own, which tests may kill: prints a line a batch.

python -m tests.faults.rank '{"url": ..., "options": {...}, "data": {...}, "rank": 0, "world": 1, "batches": 6}'
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time

from pipeline.stream.loader import Batch, StreamLoader


def fingerprint(batch: Batch) -> str:
    """A digest of ids, pixels and masks."""
    seen = hashlib.sha256()
    for tensor in (batch.sample_ids, batch.images, batch.masks):
        seen.update(tensor.contiguous().numpy().tobytes())
    return seen.hexdigest()


def main() -> None:
    """Prints `ready`, a fingerprint a batch and, as JSON, the counters; then waits until every shard is cached or was given up."""
    from tests.faults.conftest import stream_config

    task = json.loads(sys.argv[1])
    if "largest_file" in task:
        resource.setrlimit(resource.RLIMIT_FSIZE, (task["largest_file"], task["largest_file"]))
    config = stream_config(task["url"], task["options"], **task["data"])
    with StreamLoader(config, task["rank"], task["world"]) as loader:
        print("ready", flush=True)
        for number, batch in enumerate(loader):
            print(fingerprint(batch), flush=True)
            if number + 1 == task["batches"]:
                break
        cache = loader.datasets[0].reader.cache
        end = time.monotonic() + task.get("linger", 0.0)
        while cache is not None and time.monotonic() < end and not all(map(cache.holds, range(len(loader.datasets[0].manifest.records)))):
            time.sleep(0.05)
        print(json.dumps(dict(loader.counters.totals())), flush=True)


if __name__ == "__main__":
    main()
