"""A run that was killed and continued."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.monitoring.report.runs import BEGUN, history_row, start, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was killed after its last checkpoint and finished by a second attempt, so steps 9 to 12 were taken twice."""
    events = [
        start(1, 0),
        {"time": BEGUN + 120, "event": "checkpoint", "step": 8, "bytes": 5_000_000, "seconds": 0.5, "blocked": 0.1, "waited": 0.0},
        start(2, 8),
        {"time": BEGUN + 260, "event": "checkpoint", "step": 20, "bytes": 5_000_000, "seconds": 0.5, "blocked": 0.1, "waited": 0.0},
        {"time": BEGUN + 261, "event": "end", "step": 20, "reason": "finished"},
    ]
    history = [*(history_row(step, 1) for step in range(1, 13)), *(history_row(step, 2, 5.0) for step in range(9, 21))]
    return write_run(tmp_path / "run", events, history)
