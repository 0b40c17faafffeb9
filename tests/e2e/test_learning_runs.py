"""A run that learns is never accused, and each way of not learning is: on the console, in metrics, events and report, and at the end.

docs/results/learning_runs.md has the whole proof, with ten seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from benchmarks.learning_runs import FAILS, LEARNS, NOISE, train, write_noise
from monitoring.report import write_run_page
from monitoring.run_files import EVALUATION, EVENTS
from pipeline.training.record.run_folder import read_lines
from pipeline.training.reporting.reporter import Reporter
from tests.e2e.conftest import build

REPORTED = {
    "rate too high": {"baseline", "constant_output"},
    "dead maps": {"baseline", "dead_maps", "constant_output"},
    "constant output": {"baseline", "constant_output"},
    "frozen by weight decay": {"baseline", "dead_maps", "constant_output"},
    NOISE: {"baseline"},
}
"""Problems that a run has at least."""
SHORTER = ["--training.steps", "120", "--evaluation.pictures", "32"]
HALF = ["--training.global_batch", "8", "--training.micro_batch", "8"]
AT_ONCE = ["--evaluation.pictures", "32", "--evaluation.judge_after", "30", "--training.steps", "30", "--evaluation.every", "30"]
"""Settings of less than docs/results/learning_runs.md has. A run that fails has failed after 30 steps."""


@pytest.fixture(scope="module")
def noise(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    def fill(folder: Path) -> None:
        write_noise(folder / "pictures", 160)
        build(str(folder / "pictures"), str(folder / "shards"))

    return made_once("noise", fill) / "shards"


@pytest.mark.slow
def test_a_run_that_learns_is_not_accused(imagenet_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = train(imagenet_shards, tmp_path, [*LEARNS, *SHORTER, "--seed", "4"])
    assert not [row for row in read_lines(tmp_path / EVENTS) if row["event"] == "not_learning"]
    assert read_lines(tmp_path / EVALUATION)[-1]["gain"] > 0
    assert "better; the random start had" in outcome.learned
    assert "not learning" not in outcome.learned
    assert "Does it learn" in _page(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAILS)
def test_a_run_that_does_not_learn_is_told_so_everywhere(
    name: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[Reporter] = []
    close = Reporter.close

    def noted(self: Reporter) -> None:
        seen.append(self)
        close(self)

    monkeypatch.setattr(Reporter, "close", noted)
    data: Path = request.getfixturevalue("noise" if name == NOISE else "imagenet_shards")
    outcome = train(data, tmp_path, [*FAILS[name], *(HALF if name == NOISE else AT_ONCE)])
    events = [row for row in read_lines(tmp_path / EVENTS) if row["event"] == "not_learning"]
    assert {row["problem"] for row in events} >= REPORTED[name]
    console = capsys.readouterr().err
    metrics = generate_latest(seen[0].metrics.registry).decode()
    for row in events:
        assert row["message"] in console
        assert row["message"].split(":")[0] in outcome.learned
        (line,) = (each for each in metrics.splitlines() if "not_learning{" in each and f'problem="{row["problem"]}"' in each)
        assert line.endswith(" 1.0")
    assert outcome.learned.count("not learning: ") == len(events)
    assert "baseline not beaten" in _page(tmp_path)


def _page(run: Path) -> str:
    page = run / "page.html"
    write_run_page(run, page)
    return page.read_text()
