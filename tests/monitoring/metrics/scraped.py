"""A rank's metrics as tests fill and read them."""

from __future__ import annotations

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families as parse_text

from monitoring import PREFIX, RunMetrics
from monitoring.metrics.definitions import complete
from pipeline.training.reporting.loader_series import LOADER_SERIES
from tests.monitoring.metrics.card import Card

DEFINITIONS = complete(LOADER_SERIES)
CONSTANT = {"run": "runs/first", "rank": "3", "node": "node-7"}
"""Labels of every series of the rank that the fixture `metrics` makes."""


def families(metrics: RunMetrics) -> dict[str, Metric]:
    """Returns the metric families of a scrape by name, read back through Prometheus's own parser."""
    return {family.name: family for family in parse_text(generate_latest(metrics.registry).decode())}


def value(metrics: RunMetrics, name: str, **labels: str) -> float:
    """Returns the value of one series."""
    found = metrics.registry.get_sample_value(PREFIX + name, {**CONSTANT, **labels})
    assert found is not None, f"{name}{labels} is not exposed"
    return found


def exercise(metrics: RunMetrics) -> None:
    """Calls every method of a rank's metrics."""
    metrics.gpu(Card())  # type: ignore[arg-type]
    metrics.model(6e9, 1e15)
    metrics.step(step=101, epoch=2, progress=0.25, seconds=0.4, images=32, data_wait_seconds=0.1)
    metrics.step_times({"host_to_device": 0.001, "forward": 0.1, "backward": 0.15, "optimiser": 0.02, "collective": 0.03}, own_seconds=0.37)
    accuracies = {"accuracy_real": 0.9, "accuracy_generated": 0.8}
    metrics.losses({"generator": {"total": 1.5, "reconstruction": 0.5}, "discriminator": {"total": 0.7, **accuracies}})
    metrics.gradient_norms({"generator": 3.0})
    metrics.learning_rates({"generator": 1e-3})
    metrics.mask_coverage(0.27)
    metrics.nonfinite()
    metrics.collapsed("discriminator", True)
    metrics.starving(True)
    metrics.heartbeat(lambda: 12.5)
    metrics.attempt(3, 2)
    totals = {name: 1.0 for definition in DEFINITIONS for name in definition.feeds}
    metrics.data(lambda: {**totals, "bad_samples_undecodable": 2})
    metrics.checkpoint(step=100, size_bytes=1000, duration_seconds=2.0, blocking_seconds=0.1)
    metrics.checkpoint_failed()
