"""A rank's metrics as tests fill and read them."""

from __future__ import annotations

from typing import Any

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families as parse_text

from monitoring import PREFIX, RunMetrics
from monitoring.metrics.definitions import complete
from pipeline.training.reporting.loader_series import LOADER_SERIES
from tests.monitoring.metrics.card import Card

DEFINITIONS = complete(LOADER_SERIES)
CONSTANT = {"run": "runs/first", "rank": "0", "node": "node-7"}
"""Labels of every series of the rank that the fixture `metrics` makes."""
EVALUATION: dict[str, Any] = {
    "step": 100,
    "attempt": 1,
    "pictures": 256,
    "loss": 0.36,
    "l1": 9.0,
    "l2": 2.0,
    "psnr": 18.0,
    "baselines": {
        "constant": {"loss": 0.48, "l1": 12.0, "l2": 3.0, "psnr": 15.0},
        "visible_mean": {"loss": 0.4, "l1": 10.0, "l2": 2.5, "psnr": 16.0},
    },
    "gain": 0.1,
    "maps": {"relu1": 96, "relu5": 256, "decoder.relu1": 128},
    "dead_maps": {"relu1": 0, "relu5": 64, "decoder.relu1": 1},
    "output_spread": 0.4,
    "feature_dimensions": 12.5,
    "feature_spread": 0.7,
    "probe": {"classes": 40, "chance": 0.025, "knn": 0.2, "ridge": 0.3},
    "seconds": 1.5,
}
"""A row of evaluation.jsonl."""


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
    metrics.evaluation(EVALUATION)
    metrics.learning("dead_maps", True)
    metrics.starving(True)
    metrics.heartbeat(lambda: 12.5)
    metrics.attempt(3, 2)
    totals = {name: 1.0 for definition in DEFINITIONS for name in definition.feeds}
    metrics.data(lambda: {**totals, "bad_samples_undecodable": 2})
    metrics.checkpoint(step=100, size_bytes=1000, duration_seconds=2.0, blocking_seconds=0.1)
    metrics.checkpoint_failed()
