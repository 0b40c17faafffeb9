"""Proves what a run trained on: python launch/ledger.py RUN [--storage KEY=VALUE ...]"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.training.record.ledger import account
from pipeline.training.record.run_folder import RunFolderError
from shards.errors import ShardError


def main() -> int:
    """Prints the attempts and the epochs; 1 when a counted step saw other samples than it had to, or nobody can say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("--storage", action="append", default=[], metavar="KEY=VALUE", help="option of the data's store, as in fsspec")
    arguments = parser.parse_args()
    try:
        found = account(arguments.run, dict(option.partition("=")[::2] for option in arguments.storage))
    except (RunFolderError, ShardError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    worlds = ", ".join(map(str, found.worlds))
    print(
        f"{found.steps} steps count, of {found.attempts} attempts with {worlds} ranks; {found.undone} more were undone by a later attempt"
    )
    if found.before:
        print(f"the record begins behind step {found.before}: what was trained before is not in it")
    if found.skipped or found.replaced:
        print(f"{found.skipped} steps left the weights alone (gradient not finite); {found.replaced} times a bad sample was replaced")
    for epoch in found.epochs:
        name = f"{epoch.source}, " if epoch.source else ""
        state = "complete" if epoch.complete else "under way"
        print(
            f"{name}epoch {epoch.number}: {epoch.batches} batches, {epoch.seen} samples, "
            f"{epoch.repeated} of them more than once, {epoch.left_out} not seen; {state}"
        )
    for problem in found.problems:
        print(f"problem: {problem}", file=sys.stderr)
    if not found.problems:
        print("every counted step saw exactly the samples that the order has for it")
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
