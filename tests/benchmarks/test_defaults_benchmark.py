"""The sweep of the settings that decide how a run starts: its points are settings that exist, and its tables say what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import defaults
from pipeline import recipes
from pipeline.config import parse
from tests.conftest import ROOT
from tests.datasets import photographs

TINY = """
tiny:
  config: launch/configs/small.yaml
  settings: {method.width: 6, training.global_batch: 4, training.micro_batch: 4, method.batch_norm_group: 2}
  judged: [0, 1]
  points:
    slow: {method.optimiser.learning_rate: 1.0e-6}
    seeded: {seeds: [1], method.dropout: 0.0}
"""


def rows(*gains: float) -> list[dict[str, Any]]:
    return [{"step": 10 * number, "gain": gain} for number, gain in enumerate(gains)]


def test_the_step_from_which_on_a_run_beats_both_baselines() -> None:
    assert defaults.steps_to_gain(rows(-1.0, -0.1, -0.2)) == "-"
    assert defaults.steps_to_gain(rows(-1.0, 0.1, 0.2)) == "10"
    assert defaults.steps_to_gain(rows(-1.0, 0.1, -0.2, 0.1)) == "30"
    assert defaults.steps_to_gain(rows(-1.0, 0.1, 0.0)) == "-"


@pytest.mark.slow
def test_every_point_of_the_sweep_is_a_run_that_the_training_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for group, facts in yaml.safe_load(defaults.POINTS.read_text()).items():
        for run in defaults.read_runs(group, facts):
            parse(recipes.SETTINGS, [*run.arguments, "--data.shards", "x"])


@pytest.mark.slow
def test_a_sweep_trains_its_runs_once_and_prints_their_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "pictures").mkdir()
    for number, data in enumerate(photographs(10, 240, 250)):
        (tmp_path / "pictures" / f"{number}.jpg").write_bytes(data)
    (tmp_path / "points.yaml").write_text(TINY)
    command = [str(tmp_path / "pictures"), "--points", str(tmp_path / "points.yaml"), "--folder", str(tmp_path / "sweep")]
    defaults.main(command)
    output = capsys.readouterr()
    assert output.err.count("step 1: gain") == 2
    slow, seeded = (line.split(" | ") for line in output.out.splitlines() if line.startswith(("| slow", "| seeded")))
    assert (slow[0], slow[1]) == ("| slow: learning_rate 1e-06", "0")
    assert (seeded[0], seeded[1]) == ("| seeded: dropout 0.0", "1")
    assert float(slow[2].strip("*")) == pytest.approx(float(slow[3].strip("*")), rel=0.5)
    assert len((tmp_path / "sweep" / "held_back_256" / "manifest.json").read_text()) > 0
    defaults.main([*command, "--only", "tiny/slow"])
    again = capsys.readouterr()
    assert again.err == ""
    assert "| slow: learning_rate" in again.out
    assert "| seeded" not in again.out
