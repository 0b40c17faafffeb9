"""What a scrape of one rank says, read back through Prometheus's own parsers."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping

import pytest
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from monitoring import PREFIX, RunMetrics
from monitoring.metrics.definitions import ACCURACY, PHASES, complete
from monitoring.metrics.run_metrics import OTHER
from pipeline.stream.counters import REQUEST_BOUNDS, Counters, duration
from pipeline.stream.read.retries import CAUSES
from pipeline.training.reporting.telemetry import LOADER_SERIES
from tests.monitoring.metrics.card import Card

DEFINITIONS = complete(LOADER_SERIES)
CONSTANT = {"run": "runs/first", "rank": "3", "node": "node-7"}


@pytest.fixture
def metrics() -> RunMetrics:
    return RunMetrics("runs/first", 3, 8, "node-7", version="0.1.0", torch_version="2.9", recipe="features", loader=LOADER_SERIES)


def families(metrics: RunMetrics) -> dict[str, Metric]:
    return {family.name: family for family in parse_text(generate_latest(metrics.registry).decode())}


def value(metrics: RunMetrics, name: str, **labels: str) -> float:
    found = metrics.registry.get_sample_value(PREFIX + name, {**CONSTANT, **labels})
    assert found is not None, f"{name}{labels} is not exposed"
    return found


def exercise(metrics: RunMetrics) -> None:
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


def test_every_declared_metric_is_exposed_with_its_type_and_labels(metrics: RunMetrics) -> None:
    exercise(metrics)
    exposed = families(metrics)
    for definition in DEFINITIONS:
        family = exposed[PREFIX + definition.name.removesuffix("_total")]
        assert family.type == definition.kind, definition.name
        assert family.documentation == definition.help
        assert family.samples, definition.name
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == {*CONSTANT, *definition.labels}, sample.name
            assert {key: sample.labels[key] for key in CONSTANT} == CONSTANT


def test_nothing_is_exposed_that_is_not_declared(metrics: RunMetrics) -> None:
    exercise(metrics)
    declared = {PREFIX + definition.name.removesuffix("_total") for definition in DEFINITIONS} | {f"{PREFIX}build_info"}
    others = set(families(metrics)) - declared
    assert all(name.startswith("process_") for name in others), others
    assert {"process_resident_memory_bytes", "process_open_fds"} <= others


def test_names_follow_the_rules_of_prometheus() -> None:
    for definition in DEFINITIONS:
        assert re.fullmatch(r"[a-z][a-z0-9_]*[a-z0-9]", definition.name), definition.name
        assert definition.name.endswith("_total") == (definition.kind == "counter"), definition.name
        bare = definition.name.removesuffix("_total")
        assert not re.search(r"_(ms|milliseconds|minutes|kb|mb|gb|percent|count|sum|bucket|gauge|counter|histogram|total)$", bare), (
            definition.name
        )
        words = bare.split("_")
        for unit in ("seconds", "bytes", "ratio"):
            assert unit not in words[:-1], f"{definition.name}: the unit comes last"
        assert definition.help.endswith("."), definition.name
    assert len({definition.name for definition in DEFINITIONS}) == len(DEFINITIONS)


def test_the_openmetrics_form_parses_strictly_and_carries_the_units(metrics: RunMetrics) -> None:
    exercise(metrics)
    text = generate_openmetrics(metrics.registry).decode()  # type: ignore[no-untyped-call]
    exposed = {family.name: family for family in parse_openmetrics(text)}  # type: ignore[no-untyped-call]
    for definition in DEFINITIONS:
        assert exposed[PREFIX + definition.name.removesuffix("_total")].unit == definition.unit
    assert exposed[f"{PREFIX}step_seconds"].unit == "seconds"
    assert exposed[f"{PREFIX}read_bytes"].unit == "bytes"
    assert exposed[f"{PREFIX}build"].type == "info"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_finds_nothing_to_complain_about(metrics: RunMetrics) -> None:
    exercise(metrics)
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=generate_latest(metrics.registry), capture_output=True, timeout=30, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


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


def test_totals_of_the_loader_become_increments(metrics: RunMetrics) -> None:
    metrics.data(lambda: {"bytes_read_store": 100.0, "bytes_read_cache": 7.0, "cache_hits": 3.0, "queue_depth": 3.0})
    metrics.data(lambda: {"bytes_read_store": 250.0, "bytes_read_cache": 7.0, "cache_hits": 4.0, "queue_depth": 1.0})
    assert value(metrics, "read_bytes_total", source="store") == 250
    assert value(metrics, "read_bytes_total", source="cache") == 7
    assert value(metrics, "cache_hits_total") == 4
    assert value(metrics, "queue_depth") == 1


def test_totals_of_a_new_loader_are_added_to_what_was_counted(metrics: RunMetrics) -> None:
    metrics.data(lambda: {"cache_misses": 10.0})
    metrics.data(lambda: {"cache_misses": 4.0})
    metrics.data(lambda: {"cache_misses": 6.0})
    assert value(metrics, "cache_misses_total") == 16


def test_durations_that_the_loader_has_put_into_buckets_become_a_histogram(metrics: RunMetrics) -> None:
    metrics.data(lambda: {"store_requests": 6, "store_request_seconds": 2.5, "store_requests_up_to_0.02": 4, "store_requests_up_to_inf": 1})
    metrics.data(lambda: {"store_requests": 9, "store_request_seconds": 3.5, "store_requests_up_to_0.02": 5, "store_requests_up_to_1": 2})
    assert value(metrics, "store_request_seconds_bucket", le="0.005") == 0
    assert value(metrics, "store_request_seconds_bucket", le="0.02") == 5
    assert value(metrics, "store_request_seconds_bucket", le="0.3") == 5
    assert value(metrics, "store_request_seconds_bucket", le="1.0") == 7
    assert value(metrics, "store_request_seconds_bucket", le="30.0") == 7
    assert value(metrics, "store_request_seconds_bucket", le="+Inf") == value(metrics, "store_request_seconds_count") == 8
    assert value(metrics, "store_request_seconds_sum") == 3.5
    metrics.data(lambda: {"store_request_seconds": 0.25, "store_requests_up_to_1": 1})  # a new loader
    assert value(metrics, "store_request_seconds_count") == 9
    assert value(metrics, "store_request_seconds_sum") == 3.75


def test_totals_that_others_tell_in_more_detail_are_no_news(metrics: RunMetrics, caplog: pytest.LogCaptureFixture) -> None:
    metrics.data(lambda: {"store_requests": 3.0, "store_retries": 2.0, "store_retries_throttled": 2.0})
    assert not caplog.records
    assert value(metrics, "store_retries_total", cause="throttled") == 2
    assert {value(metrics, "store_retries_total", cause=cause) for cause in set(CAUSES) - {"throttled"}} == {0}


def test_every_total_of_a_request_has_a_bucket_and_every_bucket_a_total() -> None:
    (requests,) = [definition for definition in DEFINITIONS if definition.name == "store_request_seconds"]
    assert {name for seconds in REQUEST_BOUNDS for name in duration(seconds)} == set(requests.feeds)
    assert (*requests.buckets, math.inf) == REQUEST_BOUNDS


def test_a_process_without_a_loader_has_its_metrics_without_causes_and_buckets() -> None:
    bare = RunMetrics("run", 0, 1, "node")
    exposed = families(bare)
    assert not exposed[f"{PREFIX}store_retries"].samples
    assert not exposed[f"{PREFIX}bad_samples"].samples
    buckets = [sample for sample in exposed[f"{PREFIX}store_request_seconds"].samples if sample.name.endswith("_bucket")]
    assert [sample.labels["le"] for sample in buckets] == ["+Inf"]


def test_the_phases_of_a_step_are_known_from_the_start_and_the_loop_tells_the_wait_for_data(metrics: RunMetrics) -> None:
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


def test_operations_of_the_model_follow_from_the_pictures_and_their_share_from_the_device(metrics: RunMetrics) -> None:
    metrics.step(step=1, epoch=0, progress=0.1, seconds=0.5, images=100, data_wait_seconds=0.0)
    assert math.isnan(value(metrics, "model_flops_per_second"))
    metrics.model(6e9, 0.0)
    metrics.step(step=2, epoch=0, progress=0.1, seconds=0.5, images=100, data_wait_seconds=0.0)
    assert value(metrics, "model_flops_per_second") == pytest.approx(1.2e12)
    assert math.isnan(value(metrics, "model_flop_utilisation_ratio")), "nobody knows what the device can do"
    metrics.model(6e9, 2.4e12)
    metrics.step(step=3, epoch=0, progress=0.1, seconds=0.5, images=100, data_wait_seconds=0.0)
    assert value(metrics, "model_flop_utilisation_ratio") == pytest.approx(0.5)


def test_how_often_the_discriminator_is_right_is_no_loss_and_absent_where_there_is_none(metrics: RunMetrics) -> None:
    metrics.losses({"context_encoder": {"total": 1.0}})
    assert families(metrics)[f"{PREFIX}discriminator_accuracy_ratio"].samples == []
    exercise(metrics)
    assert value(metrics, "discriminator_accuracy_ratio", kind="real") == 0.9
    assert value(metrics, "discriminator_accuracy_ratio", kind="generated") == 0.8
    assert not [sample for sample in families(metrics)[f"{PREFIX}loss"].samples if sample.labels["part"].startswith(ACCURACY)]


def test_the_parts_of_the_objective_that_are_accuracies_are_called_so() -> None:
    import torch

    from pipeline.objective import accuracy

    assert {name.removeprefix(ACCURACY) for name in accuracy(torch.ones(2), torch.ones(2))} == {"real", "generated"}


def test_a_gpu_is_shown_where_there_is_one_and_the_machine_always(metrics: RunMetrics) -> None:
    assert not [name for name in families(metrics) if name.startswith(f"{PREFIX}gpu_")]
    assert 0 < value(metrics, "host_memory_used_bytes") < value(metrics, "host_memory_total_bytes")
    exercise(metrics)
    assert value(metrics, "gpu_memory_used_bytes") == 3e9
    assert value(metrics, "gpu_memory_total_bytes") == 8e10
    assert value(metrics, "gpu_utilisation_ratio") == 0.75


def test_bad_samples_are_counted_by_cause_and_known_causes_start_at_zero(metrics: RunMetrics) -> None:
    assert value(metrics, "bad_samples_total", cause="digest") == 0
    assert value(metrics, "bad_samples_total", cause="undecodable") == 0
    metrics.data(lambda: {"bad_samples_undecodable": 1.0, "bad_samples_too_large": 1.0})
    metrics.data(lambda: {"bad_samples_undecodable": 1.0, "bad_samples_too_large": 3.0})
    assert value(metrics, "bad_samples_total", cause="undecodable") == 1
    assert value(metrics, "bad_samples_total", cause="too_large") == 3


def test_a_total_without_a_metric_is_reported_once(metrics: RunMetrics, caplog: pytest.LogCaptureFixture) -> None:
    for total in range(3):
        metrics.data({"unheard_of": float(total)}.copy)
    assert [record.message for record in caplog.records].count(caplog.records[0].message) == 1
    assert "unheard_of" in caplog.text
    assert "definitions.py" in caplog.text


def test_the_number_of_series_is_bounded(metrics: RunMetrics) -> None:
    for number in range(100):
        metrics.losses({"generator": {f"part{number}": float(number)}})
        metrics.data({f"bad_samples_cause{number}": 1.0}.copy)
    exposed, most = families(metrics), {definition.name: definition.most for definition in DEFINITIONS}
    assert len(exposed[f"{PREFIX}loss"].samples) == most["loss"] + 1
    assert len(exposed[f"{PREFIX}bad_samples"].samples) == most["bad_samples_total"] + 1
    assert sum(sample.value for sample in exposed[f"{PREFIX}bad_samples"].samples) == 100, "none is lost, only its cause"
    assert value(metrics, "loss", player=OTHER, part=OTHER) == 99


def test_losses_norms_and_rates_are_shown_by_player(metrics: RunMetrics) -> None:
    exercise(metrics)
    assert value(metrics, "loss", player="generator", part="reconstruction") == 0.5
    assert value(metrics, "loss", player="discriminator", part="total") == 0.7
    assert value(metrics, "gradient_norm", player="generator") == 3.0
    assert value(metrics, "learning_rate", player="generator") == 1e-3
    assert value(metrics, "mask_coverage_ratio") == 0.27
    metrics.losses({"generator": {"total": math.nan}})
    assert math.isnan(value(metrics, "loss", player="generator", part="total"))


def test_what_the_watchdogs_find_is_shown(metrics: RunMetrics) -> None:
    exercise(metrics)
    assert value(metrics, "collapsed", player="discriminator") == 1
    assert value(metrics, "data_starving") == 1
    assert value(metrics, "heartbeat_age_seconds") == 12.5
    assert (value(metrics, "attempt"), value(metrics, "launcher_restarts")) == (3, 2)
    metrics.collapsed("discriminator", False)
    metrics.starving(False)
    assert value(metrics, "collapsed", player="discriminator") == 0
    assert value(metrics, "data_starving") == 0


def test_non_finite_steps_are_skipped_steps_unless_told_otherwise(metrics: RunMetrics) -> None:
    metrics.nonfinite()
    metrics.nonfinite(skipped=False)
    assert value(metrics, "nonfinite_steps_total") == 2
    assert value(metrics, "skipped_steps_total") == 1


def test_the_age_of_the_checkpoint_is_that_of_the_moment_of_the_scrape(metrics: RunMetrics) -> None:
    for name in ("checkpoint_age_seconds", "checkpoint_last_timestamp_seconds", "checkpoint_step", "checkpoint_bytes"):
        assert math.isnan(value(metrics, name)), f"{name} before the first checkpoint"
    metrics.checkpoint(step=100, size_bytes=1000, duration_seconds=2.0, blocking_seconds=0.1)
    assert value(metrics, "checkpoint_last_timestamp_seconds") == pytest.approx(time.time(), abs=5)
    first = value(metrics, "checkpoint_age_seconds")
    assert 0 <= first < 5
    time.sleep(0.05)
    assert value(metrics, "checkpoint_age_seconds") >= first + 0.04
    assert value(metrics, "checkpoint_step") == 100
    assert math.isnan(value(metrics, "checkpoint_verified_step")), "it was written, and nobody has read it"
    metrics.verified(100)
    assert value(metrics, "checkpoint_verified_step") == 100
    assert value(metrics, "checkpoint_bytes") == 1000
    assert value(metrics, "checkpoint_duration_seconds") == 2.0
    assert value(metrics, "checkpoint_blocking_seconds") == 0.1


def test_a_resumed_run_counts_the_age_from_the_checkpoint_it_resumed_from(metrics: RunMetrics) -> None:
    metrics.resumed(step=5000, timestamp=time.time() - 3600)
    assert value(metrics, "checkpoint_age_seconds") == pytest.approx(3600, abs=5)
    assert value(metrics, "checkpoint_step") == 5000
    assert value(metrics, "checkpoint_verified_step") == 5000, "every byte of it was read"
    assert math.isnan(value(metrics, "checkpoint_duration_seconds")), "this process saved none yet"
    metrics.resumed(step=5000, timestamp=time.time() + 3600)
    assert value(metrics, "checkpoint_age_seconds") == 0, "a clock that was set back"


def test_world_and_build_are_known_from_the_start(metrics: RunMetrics) -> None:
    assert value(metrics, "world_size") == 8
    assert value(metrics, "build_info", version="0.1.0", torch="2.9", recipe="features") == 1


def test_what_the_loader_counts_is_read_with_the_metrics(metrics: RunMetrics) -> None:
    totals = {"store_retries_connection": 0.0, "cache_hits": 1.0}
    metrics.follow(lambda: totals)
    assert value(metrics, "cache_hits_total") == 1
    totals["store_retries_connection"] = 3.0  # while the loop waits for a batch, and reports nothing
    assert value(metrics, "store_retries_total", cause="connection") == 3
    metrics.data(lambda: totals)
    assert value(metrics, "store_retries_total", cause="connection") == 3, "none twice"


def test_a_scrape_and_the_loop_that_meet_count_nothing_twice(metrics: RunMetrics) -> None:
    """A scrape whose copy of the totals is older than what the loop reports meanwhile: the totals seem to fall."""
    counters = Counters()
    counters.add(images=1_000_000, bad_samples_digest=40)
    metrics.data(counters.totals)
    loop = threading.Thread(target=lambda: metrics.data(counters.totals))

    def overtaken() -> Mapping[str, float]:
        older = counters.totals()
        counters.add(images=64, bad_samples_digest=1)
        loop.start()
        loop.join(1.0)  # as far as it may come now
        return older

    metrics.follow(overtaken)
    generate_latest(metrics.registry)
    loop.join()
    metrics.follow(counters.totals)
    assert value(metrics, "decoded_images_total") == counters.totals()["images"] == 1_000_064
    assert value(metrics, "bad_samples_total", cause="digest") == 41


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


def test_names_with_any_characters_can_be_scraped() -> None:
    odd = RunMetrics('a"b\\c\nd\udcff', 0, 1, "nœud")
    (sample,) = families(odd)[f"{PREFIX}step"].samples
    assert sample.labels == {"run": 'a"b\\c\nd?', "rank": "0", "node": "nœud"}


def test_two_runs_in_one_process_do_not_mix() -> None:
    one, two = RunMetrics("one", 0, 1, "n"), RunMetrics("two", 0, 1, "n")
    one.step(step=7, epoch=0, progress=0.0, seconds=0.1, images=1, data_wait_seconds=0.0)
    assert one.registry.get_sample_value(f"{PREFIX}step", {"run": "one", "rank": "0", "node": "n"}) == 7
    assert two.registry.get_sample_value(f"{PREFIX}step", {"run": "two", "rank": "0", "node": "n"}) == 0


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


def test_a_step_costs_a_small_part_of_a_scrape(metrics: RunMetrics) -> None:
    totals = {name: 0.0 for definition in DEFINITIONS for name in definition.feeds}
    losses = {player: {"total": 1.0, "one": 1.0, "two": 1.0} for player in ("generator", "discriminator")}

    def step(number: int) -> None:
        metrics.step(step=number, epoch=0, progress=0.5, seconds=0.3, images=32, data_wait_seconds=0.01)
        metrics.losses(losses)
        metrics.gradient_norms({"generator": 1.0, "discriminator": 1.0})
        metrics.step_times(dict.fromkeys(PHASES[1:], 0.01), own_seconds=0.2)
        metrics.data(lambda: {name: float(number) for name in totals})

    best, scrape = math.inf, math.inf
    for repeat in range(8):
        started = time.perf_counter()
        for number in range(1, 101):
            step(100 * repeat + number)
        best = min(best, (time.perf_counter() - started) / 100)
        started = time.perf_counter()
        generate_latest(metrics.registry)
        scrape = min(scrape, time.perf_counter() - started)
    assert best < scrape / 4, f"{best * 1e6:.0f} us a step, {scrape * 1e6:.0f} us a scrape"  # measured: 60 and 3000
