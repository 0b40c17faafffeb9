"""Lists, verifies, prunes or hands over the checkpoints of a run:
python launch/checkpoints.py list|verify|prune|release RUN [--storage KEY=VALUE ...]"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before PYTHONPATH, where another project may have a `pipeline`

from monitoring.run_files import EVENTS
from pipeline.training.checkpoint.ownership import release
from pipeline.training.checkpoint.retention import Retention
from pipeline.training.checkpoint.store import CheckpointInvalid, describe, folder_name, verify
from pipeline.training.record.run_folder import RunFolder, RunFolderError, checkpoint_store
from shards.console import exit_code, next_command
from shards.counting import counted
from shards.errors import ShardError
from shards.urls import parse_options


def main() -> int:
    """Does one action on the checkpoints of a run; returns 1 where a checkpoint does not verify, or there are none."""
    parser = argparse.ArgumentParser(description=__doc__)
    actions = (
        "list: show the commit files; verify: read and compare every byte; prune: delete all but the newest that verify; "
        "release: let another run have them; the run that writes them stops at its next save"
    )
    parser.add_argument("action", choices=["list", "verify", "prune", "release"], help=actions)
    parser.add_argument("run", help="a run folder, or the folder or s3:// URL of its checkpoints")
    parser.add_argument("--storage", action="append", default=[], metavar="KEY=VALUE", help="an option of the store, as in fsspec")
    parser.add_argument(
        "--keep-last", type=_whole(1), default=3, metavar="N", help="prune: newest sound checkpoints that stay (default: 3)"
    )
    parser.add_argument(
        "--keep-every", type=_whole(0), default=0, metavar="N", help="prune: checkpoints whose step this divides stay, too (default: none)"
    )
    parser.add_argument("--dry-run", action="store_true", help="prune: only show what would be deleted")
    arguments = parser.parse_args()
    try:
        options = parse_options(arguments.storage)
        checkpoints = Retention(checkpoint_store(arguments.run, options), arguments.keep_last, arguments.keep_every)
        if arguments.action == "release":
            had_owner, where = release(checkpoints.store), checkpoints.store.describe()
            print(f"{where}: {'the next run that starts here has these checkpoints' if had_owner else 'no run has these checkpoints'}")
            return 0
        steps = checkpoints.steps()
        if not steps:
            print(f"error: {checkpoints.store.describe()}: no checkpoints", file=sys.stderr)
            return 1
        if arguments.action == "prune":
            return prune(checkpoints, arguments.run, arguments.dry_run)
        verified = arguments.action == "verify"
        sound = show(checkpoints, steps, read_all=verified)
        print(_next_step(arguments.run, sound, verified, arguments.storage))
        return 0 if sound else 1
    except (ShardError, RunFolderError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def show(checkpoints: Retention, steps: list[int], read_all: bool) -> bool:
    """Prints one line a checkpoint; returns whether all are sound."""
    sound = True
    for step in steps:
        try:
            facts = describe(checkpoints.store, step)
            size = verify(checkpoints.store, step) if read_all else sum(entry["size"] for entry in facts["files"].values())
            print(f"{folder_name(step)}  {facts['recipe']}  {size / 1e6:.1f} MB  {'verified' if read_all else 'committed'}")
        except CheckpointInvalid as error:
            sound = False
            print(f"{folder_name(step)}  DAMAGED  {error}")
    return sound


def _next_step(run: str, sound: bool, verified: bool, storage: Sequence[str]) -> str:
    """The line that says what to do next: verify what was only listed, export what is sound, go on without what is damaged."""
    if not sound:
        return "next: restore the damaged ones, or leave them: the run continues from the newest that verifies"
    command = ["launch/export.py", run, "encoder.safetensors"] if verified else ["launch/checkpoints.py", "verify", run]
    return next_command("python", *command, storage=parse_options(storage))


def prune(checkpoints: Retention, run: str, dry_run: bool) -> int:
    """Deletes checkpoints that are older than the newest sound ones, and nothing where too few are sound."""
    with ExitStack() as stack:
        if (Path(run) / EVENTS).exists():
            stack.callback(RunFolder(Path(run), writes=True).close)  # refused while the run goes on, because it prunes itself
        sound = checkpoints.verify_newest(lambda text: print(f"warning: {text}", file=sys.stderr))
        superfluous = checkpoints.superfluous() if sound == checkpoints.keep_last else []
        for step in superfluous:
            print(f"{folder_name(step)}  {'would be deleted' if dry_run else 'deleted'}")
        if not dry_run and superfluous:
            checkpoints.prune()
        print(
            f"{counted(len(checkpoints.steps()), 'checkpoint is', 'checkpoints are')} left; "
            f"the newest {counted(sound, 'sound one was', 'sound ones were')} verified"
        )
    return 0


def _whole(least: int) -> Callable[[str], int]:
    """Reads a whole number that is not below a bound."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {least} or more")
        return int(text)

    return read


if __name__ == "__main__":
    sys.exit(exit_code(main, "The same command goes on"))
