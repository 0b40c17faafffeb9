"""An evaluation gives the same figures at 1, 2 and 3 ranks, replicated or divided among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from monitoring.run_files import EVALUATION
from pipeline.training.record.run_folder import read_lines
from tests.datasets import photographs, write_dataset
from tests.launching import setting_list, train_in_turn

NARROW = ["--recipe", "inpainting", "--method.width", "8", "--method.bottleneck", "16", "--method.batch_norm_group", "4"]
MODES = {1: ["ddp"], 2: ["ddp", "zero3"], 3: ["ddp"]}  # of 3 ranks, one has none of the two chunks


def figures(run: Path) -> dict[int, dict[str, Any]]:
    return {row["step"]: {k: v for k, v in row.items() if k not in ("seconds", "attempt")} for row in read_lines(run / EVALUATION)}


@pytest.mark.slow
def test_figures_do_not_depend_on_the_number_of_ranks(tmp_path: Path) -> None:
    """Every run continues from one checkpoint, because the weights of runs at other numbers of ranks differ in the last bits."""
    write_dataset(tmp_path / "set", photographs(120, 140, 160), [120])
    settings = [*NARROW, "--training.global_batch", "12", "--evaluation.held_back", "0.4", "--evaluation.every", "2"]
    start = tmp_path / "start"
    train_in_turn(tmp_path, 1, [list(setting_list(tmp_path / "set", start, 2, *settings))])
    found = {}
    for ranks, modes in MODES.items():
        more = ["--checkpoint.resume", str(start / "checkpoints" / "step_000000002"), *settings]
        runs = {mode: tmp_path / f"{ranks}-{mode}" for mode in modes}
        commands = [list(setting_list(tmp_path / "set", run, 3, *more, "--training.mode", mode)) for mode, run in runs.items()]
        train_in_turn(tmp_path, ranks, commands)
        found |= {(ranks, mode): figures(run)[2] for mode, run in runs.items()}
    expected = found[1, "ddp"]
    assert expected["pictures"] == 48
    assert all(row == expected for row in found.values()), found
    assert figures(start)[2] == expected, "nor on the attempt"
