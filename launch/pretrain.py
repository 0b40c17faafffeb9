"""Pretrains a context encoder: accelerate launch launch/pretrain.py --data.shards URL [--config FILE.yaml] [--SECTION.SETTING VALUE ...]"""

from __future__ import annotations

from pipeline.training.supervision import guard, stacks
from pipeline.training.supervision.interruption import Interruption

interruption = Interruption()
stacks.answer()
interruption.install()  # before the imports below take their seconds, in which a signal must not meet the default handler
guard.start("No step was taken")

import os  # noqa: E402
import sys  # noqa: E402

from monitoring.report import page_of_finished_run  # noqa: E402
from pipeline import recipes  # noqa: E402
from pipeline.config import parse  # noqa: E402
from pipeline.training.failures import exit_with_message  # noqa: E402
from pipeline.training.loop import pretrain  # noqa: E402
from pipeline.training.ranks.launcher import deaf_first_process  # noqa: E402


def main() -> None:
    """Reads the settings, trains, and prints the outcome."""
    with exit_with_message():
        config = parse(recipes.SETTINGS, sys.argv[1:], description=__doc__ or "")
        if os.environ.get("LOCAL_RANK", "0") == "0" and (warning := deaf_first_process(launched=interruption.follow_parent)):
            print(warning, file=sys.stderr, flush=True)
        outcome = pretrain(config, interruption)
        guard.note_end("finished" if outcome.finished else "stopped", str(outcome))
        if outcome.rank == 0:
            print(outcome, flush=True)
        if outcome.rank == 0 and outcome.finished and config.monitoring.report:
            print(page_of_finished_run(outcome.folder), flush=True)


if __name__ == "__main__":
    main()
