"""Writes the encoder of a checkpoint to a file: python launch/export.py RUN encoder.safetensors [--step N]"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.evaluation.export import export_encoder
from shards.errors import ExplainedError


def main() -> int:
    """Writes the weights and prints a summary; returns 1 where no checkpoint verifies or the file can't be written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="a run folder, or the folder or s3:// URL of its checkpoints")
    parser.add_argument("target", type=Path, help="the safetensors file to write")
    parser.add_argument("--step", type=int, help="step of the checkpoint (default: the newest that verifies)")
    parser.add_argument("--storage", action="append", default=[], metavar="KEY=VALUE", help="an option of the store, as in fsspec")
    arguments = parser.parse_args()
    options = dict(option.partition("=")[::2] for option in arguments.storage)
    try:
        print(export_encoder(arguments.run, arguments.target, arguments.step, options))
    except (ExplainedError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
