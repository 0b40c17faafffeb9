"""Lists or verifies the checkpoints of a run: python launch/checkpoints.py list|verify RUN [--storage KEY=VALUE ...]"""

from __future__ import annotations

import argparse
import sys

from pipeline.training.checkpoint import CheckpointInvalid, CheckpointStore, describe, folder_name, verify
from pipeline.training.export import checkpoint_store
from shards.errors import ShardError


def main() -> int:
    """Prints one line a checkpoint; 1 when one does not verify or there is none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["list", "verify"], help="list: what the commit files say; verify: read and compare every byte")
    parser.add_argument("run", help="a run folder, or the folder or s3:// URL of its checkpoints")
    parser.add_argument("--storage", action="append", default=[], metavar="KEY=VALUE", help="option of the store, as in fsspec")
    arguments = parser.parse_args()
    options = dict(option.partition("=")[::2] for option in arguments.storage)
    sound = True
    try:
        store = checkpoint_store(arguments.run, options)
        steps = CheckpointStore(store).steps()
        for step in steps:
            try:
                facts = describe(store, step)
                size = verify(store, step) if arguments.action == "verify" else sum(entry["size"] for entry in facts["files"].values())
                state = "verified" if arguments.action == "verify" else "committed"
                print(f"{folder_name(step)}  {facts['recipe']}  {size / 1e6:.1f} MB  {state}")
            except CheckpointInvalid as error:
                sound = False
                print(f"{folder_name(step)}  DAMAGED  {error}")
    except ShardError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not steps:
        print(f"error: {store.describe()}: no checkpoints", file=sys.stderr)
    return 0 if sound and steps else 1


if __name__ == "__main__":
    sys.exit(main())
