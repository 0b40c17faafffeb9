"""Begins or ends one attempt of a job, for launch/slurm/pretrain.sbatch: python launch/slurm/attempt.py begin|end ..."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # before PYTHONPATH, where another project may have a `pipeline`

from pipeline.training.record.run_folder import RunFolderError
from pipeline.training.slurm.attempts import Verdict, begin_attempt, end_attempt, free_port, job_name


def main() -> int:
    """Prints the facts that the batch script needs. `end` returns the verdict, `begin` 78 where the settings are refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    first = actions.add_parser("begin", help="read the settings; print train or finished, run folder, port and settings, each ended by NUL")
    first.add_argument("--sweep", type=Path, help="the settings of an array's elements, a file of launch/slurm/submit.py")
    first.add_argument("settings", nargs="*", help="settings of launch/pretrain.py, after --")
    last = actions.add_parser("end", help="decide what comes next")
    last.add_argument("run", type=Path, help="the run folder")
    last.add_argument("--give-up-after", type=int, required=True, metavar="N", help="attempts in a row without a newer checkpoint")
    last.add_argument("--code", type=int, required=True, help="exit code of srun")
    last.add_argument("--signal", default="", help="signal that the batch script received")
    arguments = parser.parse_args()
    try:
        if arguments.action == "begin":
            return _begin(arguments.settings, arguments.sweep)
        decision = end_attempt(arguments.run, os.environ, arguments.give_up_after, arguments.code, arguments.signal)
    except RunFolderError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(decision.reason)
    return decision.verdict


def _begin(settings: list[str], sweep: Path | None) -> int:
    from pipeline.mapping import ConfigError  # noqa: PLC0415 (the recipes import torch, which `end` does not need)
    from pipeline.training.slurm.submission import parse_settings  # noqa: PLC0415
    from pipeline.training.slurm.sweep import element_settings  # noqa: PLC0415

    try:
        settings = element_settings(sweep, settings, os.environ) if sweep else settings
        config = parse_settings(settings)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return Verdict.REFUSED
    run = Path(config.run).absolute()
    state = "train" if begin_attempt(run, config.training.steps, os.environ) else "finished"
    port = free_port(f"{job_name(os.environ)} {os.environ.get('SLURM_RESTART_COUNT', '0')}")
    sys.stdout.write("".join(f"{word}\0" for word in (state, run, port, *settings)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
