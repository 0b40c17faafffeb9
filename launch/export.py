"""Writes a trained encoder for others to use: python launch/export.py RUN TARGET [--step N] [--format safetensors|folder|onnx]"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before PYTHONPATH, where another project may have a `pipeline`

from pipeline.evaluation.export import export_encoder
from shards.console import exit_code
from shards.errors import ExplainedError
from shards.urls import parse_options


def main() -> int:
    """Writes the encoder and prints a summary; returns 1 where there is none or the target can't be written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="a run folder, the folder or s3:// URL of its checkpoints, or an exported encoder to convert")
    parser.add_argument("target", type=Path, help="the file or folder to write")
    parser.add_argument("--step", type=int, help="step of the checkpoint (default: the newest that verifies)")
    formats = (
        "safetensors: one file with the facts of the encoder as metadata; folder: the same with config.json and a model card; onnx: one "
        "file that onnxruntime has checked (default: by the target's ending, a folder where it is neither .safetensors nor .onnx)"
    )
    parser.add_argument("--format", choices=["safetensors", "folder", "onnx"], help=formats)
    parser.add_argument(
        "--names",
        choices=["layers", "torchvision"],
        default="layers",
        help="names of the weights: layers, conv1.weight; torchvision, features.0.weight as in its AlexNet (safetensors only)",
    )
    parser.add_argument(
        "--stored-side",
        type=int,
        metavar="N",
        help="shorter side in pixels that the training's pictures were stored at, where the run does not know it (see docs/encoder.md)",
    )
    parser.add_argument("--storage", action="append", default=[], metavar="KEY=VALUE", help="an option of the store, as in fsspec")
    arguments = parser.parse_args()
    torchvision = arguments.names == "torchvision"
    try:
        options = parse_options(arguments.storage)
        target, side = arguments.target, arguments.stored_side
        print(export_encoder(arguments.run, target, arguments.step, options, arguments.format, torchvision, side))
        if target.suffix != ".onnx" and not torchvision:
            print(f"next: {shlex.join(['python', 'launch/evaluate.py', 'probe', str(target), '--labelled'])} PICTURES")
    except (ExplainedError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main, "Nothing was written"))
