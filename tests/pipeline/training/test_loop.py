"""The loop tells time for data from time for everything else."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pipeline import recipes
from pipeline.config import parse
from pipeline.training.loop import pretrain
from pipeline.training.reporting import reporter
from pipeline.training.reporting.reporter import Reporter, StepFacts
from pipeline.training.supervision.interruption import Interruption
from tests.datasets import photographs, write_dataset

STEPS, PAUSE = 8, 0.4


def test_time_for_pictures_is_no_wait_for_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next batches get ready meanwhile. Counted as a wait, the time would be reported as starvation, with advice that does not help."""
    write_dataset(tmp_path / "set", photographs(24, 140, 160), [12, 12])
    seen: list[tuple[float, float]] = []
    step = Reporter.step

    def noted(self: Reporter, facts: StepFacts) -> None:
        seen.append((facts.seconds, facts.wait_seconds))
        step(self, facts)

    monkeypatch.setattr(Reporter, "step", noted)
    monkeypatch.setattr(reporter, "save_grid", lambda *_: time.sleep(PAUSE))
    settings = ["--recipe", "inpainting", "--method.width", "8", "--method.bottleneck", "8", "--method.batch_norm_group", "4"]
    settings += ["--data.shards", str(tmp_path / "set"), "--run", str(tmp_path / "run"), "--training.steps", str(STEPS)]
    settings += ["--training.global_batch", "4", "--training.pictures_every", "1", "--monitoring.enabled", "False"]
    assert pretrain(parse(recipes.SETTINGS, settings), Interruption()).finished
    took, waited = (sum(column) for column in zip(*seen[1:], strict=True))  # the first batch is really waited for
    assert len(seen) == STEPS
    assert took > (STEPS - 1) * PAUSE, "the steps' time is all the time there was"
    assert waited < 0.5 * (STEPS - 1) * PAUSE
