"""Submits a run, or a sweep of runs, to SLURM: python launch/slurm/submit.py [OPTIONS] --data.shards URL [--config FILE.yaml] ..."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.mapping import ConfigError
from pipeline.training.slurm.submission import SCRIPT, Resources, SubmitError, describe, prepare, submit


def main() -> int:
    """Checks the settings, submits and says where to look; 1 when nothing was submitted."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Everything else are settings of launch/pretrain.py. docs/slurm.md explains.", allow_abbrev=False
    )
    parser.add_argument("--nodes", default="1", help="a number, or 2-8 for as many as there are when an attempt starts (default: 1)")
    parser.add_argument("--gpus-per-node", type=int, default=0, metavar="N", help="one rank each (default: none, ranks on processors)")
    parser.add_argument("--ranks-per-node", type=int, default=1, metavar="N", help="without GPUs (default: 1)")
    parser.add_argument("--time", default="", help="limit of one attempt, as D-HH:MM:SS (default: the partition's)")
    for name in ("partition", "account", "qos"):
        parser.add_argument(f"--{name}", default="", help="as sbatch has it")
    parser.add_argument("--container", type=Path, metavar="IMAGE.sif", help="run in this Apptainer image")
    parser.add_argument("--venv", type=Path, metavar="PATH", help="run in this virtual environment (default: as the job finds it)")
    parser.add_argument("--array", type=Path, metavar="SWEEP.yaml", help="settings with a list of values each: one job a combination")
    parser.add_argument("--at-once", type=int, default=0, metavar="N", help="combinations that run at the same time (default: all)")
    parser.add_argument("--give-up-after", type=int, default=3, metavar="N", help="attempts without a newer checkpoint (default: 3)")
    parser.add_argument("--sbatch", type=_pair, action="append", default=[], metavar="KEY[=VALUE]", help="any other option of sbatch")
    parser.add_argument("--dry-run", action="store_true", help="print the command and the script, submit nothing")
    options, settings = parser.parse_known_args()
    chosen = {name: value for name, value in vars(options).items() if name not in ("array", "dry_run", "sbatch")}
    try:
        submission = prepare(Resources(**chosen, options=options.sbatch), [word for word in settings if word != "--"], options.array)
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
    sys.exit(main())
