"""Proves what a run trained on: python launch/ledger.py RUN [--storage KEY=VALUE ...]"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before PYTHONPATH, where another project may have a `pipeline`

from pipeline.training.record.ledger import account
from pipeline.training.record.run_folder import RunFolderError
from shards.console import exit_code, next_command
from shards.counting import counted
from shards.errors import ShardError
from shards.urls import parse_options


def main() -> int:
    """Prints the attempts and the epochs; returns 1 where a counted step saw other samples than the order has, or there is no proof."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument(
        "--storage", action="append", default=[], metavar="KEY=VALUE", help="an option of the store of the data, as in fsspec"
    )
    arguments = parser.parse_args()
    try:
        result = account(arguments.run, parse_options(arguments.storage))
    except (RunFolderError, ShardError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    worlds = ", ".join(map(str, result.worlds))
    print(
        f"{counted(result.steps, 'step counts', 'steps count')}, of {counted(result.attempts, 'attempt')} with {worlds} "
        f"{'rank' if result.worlds == [1] else 'ranks'}; "
        f"{counted(result.undone, 'more was', 'more were')} undone by a later attempt"
    )
    if result.before:
        print(f"the record begins after step {result.before}: the steps before are not in it")
    if result.skipped or result.replaced:
        print(
            f"{counted(result.skipped, 'step')} did not change the weights (gradient not finite); "
            f"a bad sample was replaced {counted(result.replaced, 'time')}"
        )
    for epoch in result.epochs:
        name = f"{epoch.source}, " if epoch.source else ""
        state = "complete" if epoch.complete else "under way"
        held_back = f", {epoch.held_back} held back and never trained on" if epoch.held_back else ""
        print(
            f"{name}epoch {epoch.number}: {counted(epoch.batches, 'batch')}, {counted(epoch.seen, 'sample')}, "
            f"{epoch.repeated} of them more than once, {epoch.left_out} not seen{held_back}; {state}"
        )
    for problem in result.problems:
        print(f"problem: {problem}", file=sys.stderr)
    if not result.problems:
        print("every counted step saw exactly the samples that the order has for it")
        print(next_command("python", "launch/report.py", str(arguments.run), storage={}))
    return 1 if result.problems else 0


if __name__ == "__main__":
    sys.exit(exit_code(main, "Nothing was changed"))
