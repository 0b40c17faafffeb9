"""A real Prometheus beside ranks whose metrics say that a run does not learn: each problem raises its alert for as long as it lasts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from launch.local.prometheus import Prometheus
from monitoring import MetricsServer, MonitoringConfig, RunMetrics
from monitoring.metrics.definitions import PROBLEMS
from tests.monitoring.metrics.scraped import EVALUATION
from tests.rule_windows import shorten

FACTOR = 1 / 900
"""Half an hour is two seconds."""
ALERTS = {
    "baseline": "NoBetterThanBaseline",
    "dead_maps": "DeadMaps",
    "constant_output": "ConstantOutput",
    "collapsed_features": "CollapsedFeatures",
}
"""Problem that the evaluations of a run find -> its alert, without the beginning that all have."""
FIGURES = {
    "NoBetterThanBaseline": "network 9%; visible_mean 10%; constant 12%.",
    "DeadMaps": "relu5 25%; decoder.relu1 0.7812%.",
    "ConstantOutput": "spread 40% as far",
    "CollapsedFeatures": "vary in 12.5 dimensions. They lie 70% of their length from their mean",
}


def wait_until(condition: Callable[[], bool], server: Prometheus) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, server.alerts()
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.usefixtures("prometheus")
def test_each_problem_of_learning_raises_its_alert_until_it_is_over(tmp_path: Path) -> None:
    targets, rules = tmp_path / "targets", tmp_path / "rules"
    targets.mkdir()
    rules.mkdir()
    runs = {name: [RunMetrics(name, rank, 2, f"node{rank}") for rank in range(2)] for name in ("learns", "does not")}
    with ExitStack() as stack:
        for name, ranks in runs.items():
            for rank, metrics in enumerate(ranks):
                metrics.evaluation(EVALUATION)
                endpoint = stack.enter_context(MetricsServer(metrics.registry, MonitoringConfig(port=0)))
                content = [{"targets": [endpoint.target], "labels": {"run": name, "node": f"node{rank}"}}]
                (targets / f"{name}{rank}.json").write_text(json.dumps(content))
        server = stack.enter_context(Prometheus(tmp_path / "server", [targets], rules=shorten(rules, FACTOR), interval="1s"))

        def firing() -> dict[str, dict[str, str]]:
            """Alerts of learning that fire, by name, with their annotations."""
            found = [(each["labels"], each["annotations"]) for each in server.alerts() if each["state"] == "firing"]
            named = {(labels["run"], labels["alertname"].removeprefix("Short")): texts for labels, texts in found}
            assert not {("learns", alert) for alert in FIGURES} & named.keys()
            return {alert: named["does not", alert] for alert in FIGURES if ("does not", alert) in named}

        wait_until(lambda: len(server.query("context_encoder_not_learning == 0")) == 2 * len(PROBLEMS), server)
        assert firing() == {}
        for problem, alert in ALERTS.items():  # the alert of a problem ends while the next one begins
            for metrics in runs["does not"]:
                for each in PROBLEMS:
                    metrics.learning(each, each == problem)
            wait_until(lambda alert=alert: firing().keys() == {alert}, server)  # type: ignore[misc]
            texts = firing()[alert]
            assert "does not" in texts["summary"]
            assert texts["description"].startswith("Evaluated at step 100, by rank 0 on node0. ")
            assert FIGURES[alert] in texts["description"]
        for rank in range(2):
            (targets / f"does not{rank}.json").unlink()  # as those of a run that has ended
        wait_until(lambda: firing() == {}, server)
