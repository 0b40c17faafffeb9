"""What launch/slurm/pretrain.sbatch asks about one attempt of its job: python launch/slurm/attempt.py begin|end ..."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from pipeline.training.record.run_folder import RunFolderError
from pipeline.training.slurm.attempts import Verdict, begin, end, free_port, job_name


def main() -> int:
    """Prints what the batch script needs; the exit code of `end` is the verdict, that of `begin` 78 where the settings are refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    first = actions.add_parser(
        "begin", help="read the settings; prints train or finished, run folder, port and settings, each ended by NUL"
    )
    first.add_argument("--sweep", type=Path, help="the combinations of an array, as launch/slurm/submit.py left them")
    first.add_argument("settings", nargs="*", help="of launch/pretrain.py, behind --")
    last = actions.add_parser("end", help="say what comes next")
    last.add_argument("run", type=Path, help="the run folder")
    last.add_argument("--give-up-after", type=int, required=True, metavar="N", help="attempts in a row without a newer checkpoint")
    last.add_argument("--code", type=int, required=True, help="of srun")
    last.add_argument("--signal", default="", help="that the batch script got")
    arguments = parser.parse_args()
    try:
        if arguments.action == "begin":
            return _begin(arguments.settings, arguments.sweep)
        found = end(arguments.run, os.environ, arguments.give_up_after, arguments.code, arguments.signal)
    except RunFolderError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(found.why)
    return found.verdict


def _begin(settings: list[str], sweep: Path | None) -> int:
    from pipeline.mapping import ConfigError  # noqa: PLC0415 (with the recipes comes torch, which `end` does not need)
    from pipeline.training.slurm.submission import configured, element  # noqa: PLC0415

    try:
        settings = element(sweep, settings, os.environ) if sweep else settings
        config = configured(settings)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return Verdict.REFUSED
    run = Path(config.run).absolute()
    state = "train" if begin(run, config.training.steps, os.environ) else "finished"
    port = free_port(f"{job_name(os.environ)} {os.environ.get('SLURM_RESTART_COUNT', '0')}")
    sys.stdout.write("".join(f"{word}\0" for word in (state, run, port, *settings)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
