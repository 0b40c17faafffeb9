"""Lists, verifies, prunes or hands over the checkpoints of a run:
python launch/checkpoints.py list|verify|prune|release RUN [--storage KEY=VALUE ...]"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

from pipeline.training.checkpoint.ownership import release
from pipeline.training.checkpoint.store import CheckpointInvalid, CheckpointStore, describe, folder_name, verify
from pipeline.training.record.run_folder import RunFolder, RunFolderError, checkpoint_store
from shards.errors import ShardError


def main() -> int:
    """Prints one line a checkpoint; 1 when one does not verify or there is none to do anything with."""
    parser = argparse.ArgumentParser(description=__doc__)
    actions = (
        "list: what the commit files say; verify: read and compare every byte; prune: delete all but the newest that verify; "
        "release: let another run have them, the one that writes them stops at its next save"
    )
    parser.add_argument("action", choices=["list", "verify", "prune", "release"], help=actions)
    parser.add_argument("run", help="a run folder, or the folder or s3:// URL of its checkpoints")
    parser.add_argument("--storage", action="append", default=[], metavar="KEY=VALUE", help="option of the store, as in fsspec")
    parser.add_argument("--keep-last", type=_positive, default=3, metavar="N", help="prune: newest sound ones that stay (default: 3)")
    parser.add_argument("--keep-every", type=int, default=0, metavar="N", help="prune: steps that this divides stay, too (default: none)")
    parser.add_argument("--dry-run", action="store_true", help="prune: only say what would be deleted")
    arguments = parser.parse_args()
    options = dict(option.partition("=")[::2] for option in arguments.storage)
    try:
        checkpoints = CheckpointStore(checkpoint_store(arguments.run, options), arguments.keep_last, arguments.keep_every)
        if arguments.action == "release":
            freed, where = release(checkpoints.store), checkpoints.store.describe()
            print(f"{where}: {'the next run that starts here has these checkpoints' if freed else 'no run has these checkpoints'}")
            return 0
        steps = checkpoints.steps()
        if not steps:
            print(f"error: {checkpoints.store.describe()}: no checkpoints", file=sys.stderr)
            return 1
        if arguments.action == "prune":
            return prune(checkpoints, arguments.run, arguments.dry_run)
        return show(checkpoints, steps, read_all=arguments.action == "verify")
    except (ShardError, RunFolderError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def show(checkpoints: CheckpointStore, steps: list[int], read_all: bool) -> int:
    """One line a checkpoint."""
    sound = True
    for step in steps:
        try:
            facts = describe(checkpoints.store, step)
            size = verify(checkpoints.store, step) if read_all else sum(entry["size"] for entry in facts["files"].values())
            print(f"{folder_name(step)}  {facts['recipe']}  {size / 1e6:.1f} MB  {'verified' if read_all else 'committed'}")
        except CheckpointInvalid as error:
            sound = False
            print(f"{folder_name(step)}  DAMAGED  {error}")
    return 0 if sound else 1


def prune(checkpoints: CheckpointStore, run: str, dry_run: bool) -> int:
    """Deletes what is older than the newest sound ones, and nothing where too few are sound."""
    with ExitStack() as stack:
        if (Path(run) / "events.jsonl").exists():
            stack.callback(RunFolder(Path(run), writes=True).close)  # not while the run goes on: it prunes by itself
        sound = checkpoints.verify_newest(lambda text: print(f"warning: {text}", file=sys.stderr))
        superfluous = checkpoints.superfluous() if sound == checkpoints.keep_last else []
        for step in superfluous:
            print(f"{folder_name(step)}  {'would be deleted' if dry_run else 'deleted'}")
        if not dry_run and superfluous:
            checkpoints.prune()
        print(f"{len(checkpoints.steps())} checkpoints are there, the newest {sound} that are sound were verified")
    return 0


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least one must stay")
    return number


if __name__ == "__main__":
    sys.exit(main())
