"""Predicts what a run asks of its store: python launch/simulate.py URL [--nodes N ...] (docs/simulate.md)"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before PYTHONPATH, where another project may have a `pipeline`

from pipeline.simulation import command
from shards.console import exit_code
from shards.urls import parse_options


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the prediction; 1 when an option or the data set is not what it should be."""
    given = sys.argv[1:] if arguments is None else arguments
    return exit_code(lambda: command.run(given, parse_options), "Nothing was changed")


if __name__ == "__main__":
    sys.exit(main())
