"""The totals of the loader become counters, gauges and a histogram, and nothing is counted twice."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping

import pytest
from prometheus_client import generate_latest

from monitoring import PREFIX, RunMetrics
from pipeline.stream.counters import REQUEST_BOUNDS, Counters, duration
from pipeline.stream.read.retries import CAUSES
from tests.monitoring.metrics.scraped import DEFINITIONS, families, value


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


def test_durations_sorted_into_buckets_by_the_loader_become_a_histogram(metrics: RunMetrics) -> None:
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


def test_totals_that_other_metrics_break_down_are_neither_exported_nor_reported(
    metrics: RunMetrics, caplog: pytest.LogCaptureFixture
) -> None:
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


def test_every_scrape_reads_the_totals_of_the_loader(metrics: RunMetrics) -> None:
    totals = {"store_retries_connection": 0.0, "cache_hits": 1.0}
    metrics.follow(lambda: totals)
    assert value(metrics, "cache_hits_total") == 1
    totals["store_retries_connection"] = 3.0  # while the loop waits for a batch and reports nothing
    assert value(metrics, "store_retries_total", cause="connection") == 3
    metrics.data(lambda: totals)
    assert value(metrics, "store_retries_total", cause="connection") == 3, "nothing is counted twice"


def test_a_scrape_and_the_loop_at_the_same_time_count_nothing_twice(metrics: RunMetrics) -> None:
    """The snapshot of a scrape is older than the totals that the loop reports meanwhile, so that the totals seem to fall."""
    counters = Counters()
    counters.add(images=1_000_000, bad_samples_digest=40)
    metrics.data(counters.totals)
    loop = threading.Thread(target=lambda: metrics.data(counters.totals))

    def overtaken() -> Mapping[str, float]:
        older = counters.totals()
        counters.add(images=64, bad_samples_digest=1)
        loop.start()
        loop.join(0.2)  # as far as the lock lets it
        return older

    metrics.follow(overtaken)
    generate_latest(metrics.registry)
    loop.join()
    metrics.follow(counters.totals)
    assert value(metrics, "decoded_images_total") == counters.totals()["images"] == 1_000_064
    assert value(metrics, "bad_samples_total", cause="digest") == 41
