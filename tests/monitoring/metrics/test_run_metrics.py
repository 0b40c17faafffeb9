"""The numbers of a training loop become the values that a scrape returns."""

from __future__ import annotations

import math
import threading
import time

import numpy as np
import pytest
import torch
from prometheus_client import generate_latest

from monitoring import PREFIX, RunMetrics
from monitoring.metrics.definitions import ACCURACY, PHASES
from tests.monitoring.metrics.scraped import exercise, families, value


def test_steps_are_counted_and_the_rates_are_those_of_the_last_half_minute(metrics: RunMetrics) -> None:
    for step in range(1, 301):  # long ago: slow, all of it waiting
        metrics.step(step=step, epoch=0, progress=step / 1000, seconds=1.0, images=10, data_wait_seconds=1.0)
    for step in range(301, 601):  # now: fast
        metrics.step(step=step, epoch=1, progress=step / 1000, seconds=1.0, images=100, data_wait_seconds=0.25)
    assert value(metrics, "steps_total") == 600
    assert value(metrics, "images_total") == 300 * 110
    assert value(metrics, "step") == 600
    assert value(metrics, "epoch") == 1
    assert value(metrics, "progress_ratio") == 0.6
    assert value(metrics, "data_wait_seconds_total") == 375
    assert value(metrics, "step_seconds_count") == 600
    assert value(metrics, "step_seconds_sum") == 600
    assert value(metrics, "step_seconds_bucket", le="0.75") == 0
    assert value(metrics, "step_seconds_bucket", le="1.0") == 600
    assert value(metrics, "images_per_second") == pytest.approx(100, rel=1e-3)
    assert value(metrics, "data_wait_ratio") == pytest.approx(0.25, rel=1e-3)


def test_the_first_step_already_gives_an_unbiased_rate(metrics: RunMetrics) -> None:
    metrics.step(step=1, epoch=0, progress=0.0, seconds=0.5, images=32, data_wait_seconds=0.125)
    assert value(metrics, "images_per_second") == pytest.approx(64)
    assert value(metrics, "data_wait_ratio") == pytest.approx(0.25)


def test_the_phases_of_a_step_are_known_from_the_start(metrics: RunMetrics) -> None:
    assert {value(metrics, "step_phase_seconds_count", phase=phase) for phase in PHASES} == {0}
    exercise(metrics)
    assert value(metrics, "step_phase_seconds_sum", phase="data_wait") == 0.1
    assert value(metrics, "step_phase_seconds_sum", phase="backward") == 0.15
    assert value(metrics, "step_phase_seconds_bucket", phase="forward", le="0.05") == 0
    assert value(metrics, "step_phase_seconds_bucket", phase="forward", le="0.2") == 1
    assert value(metrics, "own_seconds_total") == 0.37


def test_the_time_that_is_left_follows_from_the_speed(metrics: RunMetrics) -> None:
    assert math.isnan(value(metrics, "eta_seconds"))
    for step in range(1, 301):
        metrics.step(step=1000 + step, epoch=0, progress=(1000 + step) / 2000, seconds=2.0, images=8, data_wait_seconds=0.0)
    assert value(metrics, "eta_seconds") == pytest.approx(700 * 2.0)
    metrics.step(step=2000, epoch=0, progress=1.0, seconds=2.0, images=8, data_wait_seconds=0.0)
    assert value(metrics, "eta_seconds") == 0


def test_flops_follow_from_the_images_and_utilisation_from_the_peak_of_the_device(metrics: RunMetrics) -> None:
    metrics.step(step=1, epoch=0, progress=0.1, seconds=0.5, images=100, data_wait_seconds=0.0)
    assert math.isnan(value(metrics, "model_flops_per_second"))
    metrics.model(6e9, 0.0)
    metrics.step(step=2, epoch=0, progress=0.1, seconds=0.5, images=100, data_wait_seconds=0.0)
    assert value(metrics, "model_flops_per_second") == pytest.approx(1.2e12)
    assert math.isnan(value(metrics, "model_flop_utilisation_ratio")), "the peak of the device is unknown"
    metrics.model(6e9, 2.4e12)
    metrics.step(step=3, epoch=0, progress=0.1, seconds=0.5, images=100, data_wait_seconds=0.0)
    assert value(metrics, "model_flop_utilisation_ratio") == pytest.approx(0.5)


def test_the_accuracy_of_the_discriminator_is_no_loss_and_absent_without_a_discriminator(metrics: RunMetrics) -> None:
    metrics.losses({"context_encoder": {"total": 1.0}})
    assert families(metrics)[f"{PREFIX}discriminator_accuracy_ratio"].samples == []
    exercise(metrics)
    assert value(metrics, "discriminator_accuracy_ratio", kind="real") == 0.9
    assert value(metrics, "discriminator_accuracy_ratio", kind="generated") == 0.8
    assert not [sample for sample in families(metrics)[f"{PREFIX}loss"].samples if sample.labels["part"].startswith(ACCURACY)]


def test_the_parts_of_the_objective_that_are_accuracies_are_called_so() -> None:
    from pipeline.objective import accuracy

    assert {name.removeprefix(ACCURACY) for name in accuracy(torch.ones(2), torch.ones(2))} == {"real", "generated"}


def test_a_gpu_is_shown_where_there_is_one_and_the_machine_always(metrics: RunMetrics) -> None:
    assert not [name for name in families(metrics) if name.startswith(f"{PREFIX}gpu_")]
    assert 0 < value(metrics, "host_memory_used_bytes") < value(metrics, "host_memory_total_bytes")
    exercise(metrics)
    assert value(metrics, "gpu_memory_used_bytes") == 3e9
    assert value(metrics, "gpu_memory_total_bytes") == 8e10
    assert value(metrics, "gpu_utilisation_ratio") == 0.75


def test_losses_norms_and_rates_are_shown_by_player(metrics: RunMetrics) -> None:
    exercise(metrics)
    assert value(metrics, "loss", player="generator", part="reconstruction") == 0.5
    assert value(metrics, "loss", player="discriminator", part="total") == 0.7
    assert value(metrics, "gradient_norm", player="generator") == 3.0
    assert value(metrics, "learning_rate", player="generator") == 1e-3
    assert value(metrics, "mask_coverage_ratio") == 0.27
    metrics.losses({"generator": {"total": math.nan}})
    assert math.isnan(value(metrics, "loss", player="generator", part="total"))


def test_findings_of_the_watchdogs_are_shown(metrics: RunMetrics) -> None:
    exercise(metrics)
    assert value(metrics, "collapsed", player="discriminator") == 1
    assert value(metrics, "data_starving") == 1
    assert value(metrics, "heartbeat_age_seconds") == 12.5
    assert (value(metrics, "attempt"), value(metrics, "launcher_restarts")) == (3, 2)
    metrics.collapsed("discriminator", False)
    metrics.starving(False)
    assert value(metrics, "collapsed", player="discriminator") == 0
    assert value(metrics, "data_starving") == 0


def test_non_finite_steps_count_as_skipped_by_default(metrics: RunMetrics) -> None:
    metrics.nonfinite()
    metrics.nonfinite(skipped=False)
    assert value(metrics, "nonfinite_steps_total") == 2
    assert value(metrics, "skipped_steps_total") == 1


def test_the_age_of_the_checkpoint_is_that_at_the_moment_of_the_scrape(metrics: RunMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_700_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    for name in ("checkpoint_age_seconds", "checkpoint_last_timestamp_seconds", "checkpoint_step", "checkpoint_bytes"):
        assert math.isnan(value(metrics, name)), f"{name} before the first checkpoint"
    metrics.checkpoint(step=100, size_bytes=1000, duration_seconds=2.0, blocking_seconds=0.1)
    assert value(metrics, "checkpoint_last_timestamp_seconds") == now
    assert value(metrics, "checkpoint_age_seconds") == 0
    now += 12.5
    assert value(metrics, "checkpoint_age_seconds") == 12.5
    assert value(metrics, "checkpoint_step") == 100
    assert math.isnan(value(metrics, "checkpoint_verified_step")), "it was written and not read back yet"
    metrics.verified(100)
    assert value(metrics, "checkpoint_verified_step") == 100
    assert value(metrics, "checkpoint_bytes") == 1000
    assert value(metrics, "checkpoint_duration_seconds") == 2.0
    assert value(metrics, "checkpoint_blocking_seconds") == 0.1


def test_a_resumed_run_counts_the_age_from_the_checkpoint_it_resumed_from(metrics: RunMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_700_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    metrics.resumed(step=5000, timestamp=now - 3600)
    assert value(metrics, "checkpoint_age_seconds") == 3600
    assert value(metrics, "checkpoint_step") == 5000
    assert value(metrics, "checkpoint_verified_step") == 5000, "every byte of it was read"
    assert math.isnan(value(metrics, "checkpoint_duration_seconds")), "this process saved none yet"
    metrics.resumed(step=5000, timestamp=now + 3600)
    assert value(metrics, "checkpoint_age_seconds") == 0, "the clock was set back"


def test_odd_numbers_never_stop_the_training(metrics: RunMetrics) -> None:
    metrics.step(step=1, epoch=0, progress=math.nan, seconds=-1.0, images=-3, data_wait_seconds=math.nan)
    metrics.step(step=2, epoch=0, progress=0.0, seconds=math.nan, images=0, data_wait_seconds=math.inf)
    metrics.data(lambda: {"cache_hits": math.nan})
    metrics.data(lambda: {"cache_hits": -5.0, "queue_depth": math.nan})
    metrics.data(lambda: {"cache_hits": 2.0})
    assert value(metrics, "steps_total") == 2
    assert value(metrics, "step_seconds_sum") == 0
    assert value(metrics, "data_wait_seconds_total") == 0
    assert math.isfinite(value(metrics, "cache_hits_total"))


@pytest.mark.parametrize("number", [np.float32(2.0), np.int64(2), torch.tensor(2.0), 2], ids=lambda number: type(number).__name__)
def test_numbers_of_any_kind_are_counted_as_plain_floats(metrics: RunMetrics, number: float) -> None:
    metrics.step(step=1, epoch=0, progress=0.5, seconds=number, images=number, data_wait_seconds=number)  # type: ignore[arg-type]
    metrics.step_times({"forward": number}, own_seconds=number)
    metrics.data(lambda: {"cache_hits": number, "store_request_seconds": number, "store_requests_up_to_1": number, "queue_depth": number})
    metrics.losses({"generator": {"total": number}})
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    assert {type(sample.value) for sample in samples} <= {float, int}
    assert value(metrics, "store_request_seconds_sum") == value(metrics, "images_total") == 2.0


def test_no_count_is_lost_between_threads_and_scrapes(metrics: RunMetrics) -> None:
    def work() -> None:
        for step in range(500):
            metrics.step(step=step, epoch=0, progress=0.0, seconds=0.1, images=2, data_wait_seconds=0.0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        generate_latest(metrics.registry)
    for thread in threads:
        thread.join()
    assert value(metrics, "steps_total") == 2000
    assert value(metrics, "images_total") == 4000
