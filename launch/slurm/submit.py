"""Submits a run, or a sweep of runs, to SLURM: python launch/slurm/submit.py [OPTIONS] --data.shards URL [--config FILE.yaml] ..."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # before PYTHONPATH, where another project may have a `pipeline`

from pipeline.mapping import ConfigError
from pipeline.training.slurm.submission import SCRIPT, Resources, SubmitError, describe, prepare, submit
from pipeline.training.slurm.surroundings import ignored_wishes
from shards.console import exit_code


def main() -> int:
    """Checks the settings, submits the job and prints where to look; returns 1 when nothing was submitted."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="All other arguments are settings of launch/pretrain.py. See docs/slurm.md.", allow_abbrev=False
    )
    parser.add_argument("--nodes", default="1", help="number of nodes, or 2-8 for as many as there are when an attempt starts (default: 1)")
    parser.add_argument(
        "--gpus-per-node", type=int, default=0, metavar="N", help="GPUs of a node, one rank each (default: 0, train on CPUs)"
    )
    parser.add_argument("--ranks-per-node", type=int, default=1, metavar="N", help="ranks of a node without GPUs (default: 1)")
    parser.add_argument("--time", default="", help="time limit of one attempt, as D-HH:MM:SS (default: the partition's)")
    for name in ("partition", "account", "qos"):
        parser.add_argument(f"--{name}", default="", help="option of sbatch")
    parser.add_argument("--container", type=Path, metavar="IMAGE.sif", help="run in this Apptainer image")
    parser.add_argument(
        "--venv", type=Path, metavar="PATH", help="run in this virtual environment (default: the one that the job inherits)"
    )
    parser.add_argument("--array", type=Path, metavar="SWEEP.yaml", help="settings with a list of values each: one run a combination")
    parser.add_argument("--at-once", type=int, default=0, metavar="N", help="combinations that run at the same time (default: no limit)")
    parser.add_argument(
        "--give-up-after", type=int, default=3, metavar="N", help="attempts in a row without a newer checkpoint (default: 3)"
    )
    parser.add_argument("--sbatch", type=_pair, action="append", default=[], metavar="KEY[=VALUE]", help="another option of sbatch")
    parser.add_argument("--dry-run", action="store_true", help="print the command and the batch script, submit nothing")
    options, settings = parser.parse_known_args()
    chosen = {name: value for name, value in vars(options).items() if name not in ("array", "dry_run", "sbatch")}
    try:
        submission = prepare(Resources(**chosen, options=options.sbatch), [word for word in settings if word != "--"], options.array)
        if wishes := ignored_wishes(os.environ):
            print(f"note: {', '.join(wishes)}: not followed. Give what this job needs with --sbatch KEY=VALUE", file=sys.stderr)
        print(submission, flush=True)
        if options.dry_run:
            print(f"\n{SCRIPT.read_text(encoding='utf-8')}\nnothing was submitted", flush=True)
            return 0
        print(describe(submission, submit(submission)))
    except (ConfigError, SubmitError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _pair(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key, value


if __name__ == "__main__":
    sys.exit(exit_code(main, "squeue --me shows whether the job was submitted"))
