"""Trains one configuration after another in one start of the ranks: accelerate launch tests/e2e/train_in_turn.py RUNS.json

RUNS.json holds a list of command lines of launch/pretrain.py. A start of the ranks takes longer than most of these trainings.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState, PartialState

from pipeline import recipes
from pipeline.config import parse
from pipeline.training.failures import exit_with_message
from pipeline.training.loop import pretrain
from pipeline.training.supervision.interruption import Interruption


def main() -> None:
    with exit_with_message(), Interruption() as interruption:
        for attempt, arguments in enumerate(json.loads(Path(sys.argv[1]).read_text())):
            os.environ["TORCHELASTIC_RESTART_COUNT"] = str(attempt)  # names the store of the process group, which must be a fresh one
            for state in (AcceleratorState, PartialState, GradientState):
                state._reset_state()
            assert pretrain(parse(recipes.SETTINGS, arguments), interruption).finished


if __name__ == "__main__":
    main()
