"""Writes the features of a whole data set: accelerate launch launch/embed.py ENCODER --data.shards URL [--SETTING VALUE ...] OUT.parquet"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before PYTHONPATH, where another project may have a `pipeline`

from pipeline.training.supervision import guard, stacks
from pipeline.training.supervision.interruption import Interruption

interruption = Interruption()
stacks.answer()
interruption.install()  # before the imports below take their seconds, in which a signal must not meet the default handler
guard.start()

from pipeline.evaluation.embedding.settings import check_launcher, parse  # noqa: E402
from pipeline.training.failures import exit_with_message  # noqa: E402
from shards.console import outlive_console  # noqa: E402


def main() -> int:
    """Reads the settings, embeds, and prints the outcome; returns 130 where a signal ended the work before the output was whole."""
    outlive_console()
    with exit_with_message():
        config = parse(sys.argv[1:], description=__doc__ or "")
        check_launcher(config, os.environ)
        from pipeline.evaluation.embed import embed  # noqa: PLC0415 - says itself what is missing without the extra `embed`
        from pipeline.evaluation.rank import Rank  # noqa: PLC0415

        rank = Rank.of_environment(os.environ)
        outcome = embed(config, rank, interruption)
        guard.note_end("finished" if outcome.finished else "stopped", outcome.sentence)
        if rank.number == 0 or not outcome.finished:
            print(outcome.sentence, flush=True)
    return 0 if outcome.finished else 130


if __name__ == "__main__":
    sys.exit(main())
