"""Alarms write one event at each change of state, at the step of the change, and nothing in between."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from monitoring import RunMetrics
from pipeline.config import OptimiserConfig, WatchdogConfig
from pipeline.recipes.player import Collapse, Player
from pipeline.training.record.run_folder import RunFolder
from pipeline.training.reporting.alarms import Alarms

LIMITS = WatchdogConfig(starving_share=0.5, starving_seconds=10, collapse_steps=3)
COLLAPSE = Collapse(at_most={"adversarial": 0.01}, at_least={}, advice="Lower its learning rate")


class Watched:
    """Alarms of a run folder, and what they have reported."""

    def __init__(self, path: Path) -> None:
        self.folder, self.lines = RunFolder(path, writes=True), list[str]()
        player = Player("critic", nn.Linear(1, 1), lambda *_: None, OptimiserConfig(), COLLAPSE)  # type: ignore[arg-type, return-value]
        self.metrics = RunMetrics("run", 0, 4, "node")
        self.alarms = Alarms(LIMITS, [player], 4, self.folder, self.metrics, self.lines.append)

    def events(self) -> list[dict[str, Any]]:
        """Events of the run folder without their time, in the order of writing."""
        rows = [json.loads(line) for line in (self.folder.path / "events.jsonl").read_text().splitlines()]
        return [{name: value for name, value in row.items() if name != "time"} for row in rows]

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"context_encoder_{name}", {"run": "run", "rank": "0", "node": "node", **labels})


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    made = Watched(tmp_path / "run")
    yield made
    made.folder.close()


def test_the_first_batch_is_not_counted_as_starvation(watched: Watched) -> None:
    """The first batch is always waited for, because nothing was prepared ahead; the wait for the second one counts."""
    watched.alarms.check_starvation(1, 1000.0, 1000.0, 0, 0)
    assert watched.alarms.starvation == (0, 0)
    watched.alarms.check_starvation(2, 9.0, 0.0, 0, 0)
    watched.alarms.check_starvation(3, 2.0, 0.0, 0, 0)
    assert watched.alarms.starvation == (0, 0), "the window is full, and the first batch is not in it"
    watched.alarms.check_starvation(4, 1000.0, 900.0, 0, 0)
    assert watched.alarms.starvation == (1, 900)


def test_starvation_is_one_event_when_the_first_rank_starves_and_one_when_no_rank_does(watched: Watched) -> None:
    for step, (ranks, thousandths) in enumerate([(0, 0), (1, 600), (3, 2100), (1, 900), (0, 0), (0, 0)], 1):
        watched.alarms.check_starvation(step, 1.0, 0.0, ranks, thousandths)
    assert watched.events() == [
        {"event": "starving", "step": 2, "ranks": 1, "share": 0.6},
        {"event": "starving_over", "step": 5},
    ]
    assert [line.partition(":")[0] for line in watched.lines] == ["step 2", "step 5"]
    assert "1 of 4 ranks wait for data 60% of the time" in watched.lines[0]


def test_gradients_that_are_not_finite_are_one_event_at_the_first_and_one_after_the_last(watched: Watched) -> None:
    for step, skipped in enumerate([[], ["critic"], ["critic", "painter"], ["critic"], [], [], ["painter"]], 1):
        watched.alarms.check_numbers(step, skipped)
    assert watched.events() == [
        {"event": "nonfinite", "step": 2, "players": ["critic"]},
        {"event": "nonfinite_over", "step": 5, "steps": 3},
        {"event": "nonfinite", "step": 7, "players": ["painter"]},
    ]
    assert [line.partition(":")[0] for line in watched.lines] == ["step 2", "step 3", "step 4", "step 7"], "every step is printed"


def test_a_collapse_is_one_event_and_its_recovery_another(watched: Watched) -> None:
    assert watched.metric("collapsed", player="critic") == 0
    seen = []
    for step in range(1, 13):
        watched.alarms.check_collapse(step, {"critic": {"adversarial": 0.001 if step <= 6 else 1.0}})
        seen.append(watched.metric("collapsed", player="critic"))
    assert seen == [0, 0, *[1] * 4, *[0] * 6]
    first, over = watched.events()
    assert first == {"event": "collapse", "step": 3, "player": "critic", "means": {"adversarial": 0.001}, "steps": 3}
    assert over == {"event": "collapse_over", "step": 7, "player": "critic", "means": {"adversarial": 0.334}}
    assert COLLAPSE.advice in watched.lines[0]
