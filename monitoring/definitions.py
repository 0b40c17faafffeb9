"""Every metric of a run, declared once: the exposition, the dashboards and the alert rules all name what stands here.

Names follow Prometheus's rules: base units, the unit last, `_total` after it for what only grows. Every series also carries `run`,
`rank` and `node`, and counts and rates are those of one rank, so that a sum over ranks is the run's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

PREFIX = "context_encoder_"
UNITS = ("seconds", "bytes", "ratio")
BAD_SAMPLES = "bad_samples_"
"""Totals of the loader with this beginning are bad samples; what follows is the cause."""


@dataclass(frozen=True)
class Definition:
    """One metric.

    Attributes:
        name: without the prefix, with unit and `_total`.
        kind: of Prometheus's types.
        help: one sentence.
        labels: beside run, rank and node.
        feeds: names of the loader's totals that go into it -> the values of `labels` they stand for.
        unknown_at_first: NaN rather than 0 until there is a value.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    feeds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unknown_at_first: bool = False

    @property
    def unit(self) -> str:
        """The unit in the name, empty for counts."""
        last = self.name.removesuffix("_total").rpartition("_")[2]
        return last if last in UNITS else ""


STEP_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the durations of steps, in seconds."""

DEFINITIONS = (
    Definition("steps_total", "counter", "Steps done by this process."),
    Definition("images_total", "counter", "Images this rank trained on."),
    Definition("epoch", "gauge", "Epoch of the current batch, from 0."),
    Definition("step", "gauge", "Steps of the run so far, over all its attempts."),
    Definition("progress_ratio", "gauge", "Share of the run's steps that are done."),
    Definition("world_size", "gauge", "Ranks in the run."),
    Definition("images_per_second", "gauge", "Images this rank trained on a second, over about the last 30 seconds."),
    Definition("step_seconds", "histogram", "Duration of a step, the wait for data included."),
    Definition("data_wait_seconds_total", "counter", "Time the loop waited for a batch."),
    Definition("data_wait_ratio", "gauge", "Share of the time that the loop waited for data, over about the last 30 seconds."),
    Definition("loss", "gauge", "Mean loss of the last logged step: what a player minimises and its parts.", ("player", "part")),
    Definition("gradient_norm", "gauge", "Norm of a player's gradient in the last logged step.", ("player",)),
    Definition("learning_rate", "gauge", "Learning rate of a player.", ("player",)),
    Definition("nonfinite_steps_total", "counter", "Steps with a non-finite loss or gradient."),
    Definition("skipped_steps_total", "counter", "Steps whose update was left out."),
    Definition("collapsed", "gauge", "1 while a player's losses look like a collapse, as its recipe declares it, else 0.", ("player",)),
    Definition("data_starving", "gauge", "1 while this rank waits for data more than watchdog.starving_share of the time, else 0."),
    Definition("heartbeat_age_seconds", "gauge", "Time since the loop of this rank last moved on."),
    Definition("attempt", "gauge", "Attempt of the run that this process belongs to, from 1."),
    Definition("launcher_restarts", "gauge", "How many times the launcher has started the ranks again."),
    Definition("mask_coverage_ratio", "gauge", "Share of the pixels of the last logged batch that are dropped."),
    Definition(
        "bad_samples_total",
        "counter",
        "Samples that could not be used and were replaced.",
        ("cause",),
        {"bad_samples_digest": ("digest",), "bad_samples_undecodable": ("undecodable",), "bad_samples_unavailable": ("unavailable",)},
    ),
    Definition(
        "read_bytes_total",
        "counter",
        "Bytes of shards read, from the store or from the node's cache.",
        ("source",),
        {"bytes_read_store": ("store",), "bytes_read_cache": ("cache",)},
    ),
    Definition("store_requests_total", "counter", "Requests to the store.", (), {"store_requests": ()}),
    Definition(
        "store_request_seconds_total",
        "counter",
        "Time spent in requests to the store, over all threads.",
        (),
        {"store_request_seconds": ()},
    ),
    Definition("store_retries_total", "counter", "Requests to the store that were tried again.", (), {"store_retries": ()}),
    Definition("cache_hits_total", "counter", "Samples found in the node's cache.", (), {"cache_hits": ()}),
    Definition("cache_misses_total", "counter", "Samples not found in the node's cache.", (), {"cache_misses": ()}),
    Definition("cache_evictions_total", "counter", "Shards removed from the node's cache to make room.", (), {"cache_evictions": ()}),
    Definition("cache_downloads_total", "counter", "Shards brought into the node's cache by this rank.", (), {"cache_downloads": ()}),
    Definition("cache_failures_total", "counter", "Shards that could not be brought into the node's cache.", (), {"cache_failures": ()}),
    Definition(
        "cache_repairs_total",
        "counter",
        "Samples whose cached bytes were wrong and were read again from the store.",
        (),
        {"cache_repairs": ()},
    ),
    Definition("cache_bytes", "gauge", "Bytes in the node's cache.", (), {"cache_bytes": ()}),
    Definition("decoded_images_total", "counter", "Images decoded, those of batches ahead included.", (), {"images": ()}),
    Definition("decode_seconds_total", "counter", "Processor time spent on decoding, over all threads.", (), {"decode_seconds": ()}),
    Definition("queue_depth", "gauge", "Batches that were ready when the loop asked for one.", (), {"queue_depth": ()}),
    Definition(
        "checkpoint_last_timestamp_seconds", "gauge", "Unix time of the newest checkpoint, NaN before the first.", unknown_at_first=True
    ),
    Definition("checkpoint_age_seconds", "gauge", "Time since the newest checkpoint, NaN before the first.", unknown_at_first=True),
    Definition("checkpoint_step", "gauge", "Step of the newest checkpoint, NaN before the first.", unknown_at_first=True),
    Definition("checkpoint_bytes", "gauge", "Size of the checkpoint that was saved last, NaN before the first.", unknown_at_first=True),
    Definition("checkpoint_duration_seconds", "gauge", "Time the last save took from snapshot to commit.", unknown_at_first=True),
    Definition("checkpoint_blocking_seconds", "gauge", "Time training stood still for the last save.", unknown_at_first=True),
    Definition("checkpoint_failures_total", "counter", "Saves that failed."),
)
