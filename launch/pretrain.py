"""Pretrains a context encoder: accelerate launch launch/pretrain.py --data.shards URL [--config FILE.yaml] [--SECTION.SETTING VALUE ...]"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before PYTHONPATH, where another project may have a `pipeline`

from pipeline.training.ranks import inherited
from pipeline.training.supervision import guard, stacks
from pipeline.training.supervision.interruption import Interruption

inherited.leave_out(os.environ)  # before the imports below read it
inherited.use_huge_pages(os.environ)
interruption = Interruption()
stacks.answer()
interruption.install()  # before the imports below take their seconds, in which a signal must not meet the default handler
guard.start("No step was taken")

from monitoring.report import missing_page, page_of_finished_run  # noqa: E402
from pipeline import recipes  # noqa: E402
from pipeline.config import parse  # noqa: E402
from pipeline.training.failures import exit_with_message  # noqa: E402
from pipeline.training.finished import finished_before, next_step  # noqa: E402
from pipeline.training.loop import pretrain  # noqa: E402
from pipeline.training.ranks.launcher import deaf_first_process  # noqa: E402
from shards.console import outlive_console  # noqa: E402


def main() -> None:
    """Reads the settings, trains, and prints the outcome."""
    outlive_console()
    with exit_with_message():
        inherited.check_ranks(os.environ)
        config = parse(recipes.SETTINGS, sys.argv[1:], description=__doc__ or "")
        if (answer := finished_before(config)) is not None:
            guard.note_end("finished", answer)
            if os.environ.get("RANK", "0") == "0":
                print(answer, flush=True)
                if config.monitoring.report and (report := missing_page(Path(config.run))):
                    print(report, flush=True)
            return
        if os.environ.get("LOCAL_RANK", "0") == "0" and (warning := deaf_first_process(launched=interruption.follow_parent)):
            print(warning, file=sys.stderr, flush=True)
        outcome = pretrain(config, interruption)
        guard.note_end("finished" if outcome.finished else "stopped", str(outcome))
        if outcome.rank == 0:
            print(outcome, flush=True)
        if outcome.rank == 0 and outcome.finished and config.monitoring.report:
            print(page_of_finished_run(outcome.folder), flush=True)
        if outcome.rank == 0 and outcome.finished:
            print(next_step(outcome.folder), flush=True)


if __name__ == "__main__":
    main()
