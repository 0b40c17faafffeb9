"""Every metric of a run, declared once: the exposition, the dashboards and the alert rules all name what stands here.

Names follow Prometheus's rules: base units, the unit last, `_total` after it for what only grows. Every series also carries `run`,
`rank` and `node`, and counts and rates are those of one rank, so that a sum over ranks is the run's.
"""

from __future__ import annotations

import math
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
        feeds: names of the loader's totals that go into it -> the values of `labels` they stand for; for a histogram, the upper bound of
            the bucket they count, or `sum`.
        unknown_at_first: NaN rather than 0 until there is a value.
        known: values of `labels` that are exposed from the start, so that the first event of a kind is seen as one.
        most: sets of label values; what comes after goes under `other`. It bounds the series of a run
            (tests/monitoring/metrics/test_series.py).
        buckets: upper bounds of a histogram, without the infinite one.
        only_with_gpu: absent elsewhere.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    feeds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unknown_at_first: bool = False
    known: tuple[tuple[str, ...], ...] = ()
    most: int = 1
    buckets: tuple[float, ...] = ()
    only_with_gpu: bool = False

    @property
    def unit(self) -> str:
        """The unit in the name, empty for counts."""
        last = self.name.removesuffix("_total").rpartition("_")[2]
        return last if last in UNITS else ""


STEP_BUCKETS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0)
PHASE_BUCKETS = (0.001, 0.01, 0.05, 0.2, 1.0, 5.0)
REQUEST_BUCKETS = (0.005, 0.02, 0.05, 0.1, 0.3, 1.0, 5.0, 30.0)
PHASES = ("data_wait", "host_to_device", "forward", "backward", "optimiser", "collective")
RETRY_CAUSES = ("throttled", "server_error", "timeout", "connection", "short", "other")
BAD_CAUSES = ("digest", "undecodable", "unavailable")
ACCURACY = "accuracy_"
"""Parts of a discriminator's losses with this beginning are no losses: how often it is right on what follows, `real` or `generated`."""
DIVIDED = frozenset({"store_requests", "store_retries"})
"""Totals of the loader that others tell in more detail."""

DEFINITIONS = (
    Definition("steps_total", "counter", "Steps done by this process."),
    Definition("images_total", "counter", "Images this rank trained on."),
    Definition("epoch", "gauge", "Epoch of the current batch, from 0."),
    Definition("step", "gauge", "Steps of the run so far, over all its attempts."),
    Definition("progress_ratio", "gauge", "Share of the run's steps that are done."),
    Definition("world_size", "gauge", "Ranks in the run."),
    Definition("images_per_second", "gauge", "Images this rank trained on a second, over about the last 30 seconds."),
    Definition("eta_seconds", "gauge", "Time to the last step at the speed of about the last 30 seconds.", unknown_at_first=True),
    Definition("step_seconds", "histogram", "Duration of a step, the wait for data included.", buckets=STEP_BUCKETS),
    Definition(
        "step_phase_seconds",
        "histogram",
        "Duration of a part of a step; collective is the wait for the other ranks.",
        ("phase",),
        known=tuple((phase,) for phase in PHASES),
        most=len(PHASES),
        buckets=PHASE_BUCKETS,
    ),
    Definition("own_seconds_total", "counter", "Time this rank spent on its own work: its steps without the waits for other ranks."),
    Definition("data_wait_seconds_total", "counter", "Time the loop waited for a batch."),
    Definition("data_wait_ratio", "gauge", "Share of the time that the loop waited for data, over about the last 30 seconds."),
    Definition("model_flops_per_second", "gauge", "Floating-point operations of the networks' own mathematics.", unknown_at_first=True),
    Definition(
        "model_flop_utilisation_ratio",
        "gauge",
        "The same as a share of what the device can do at its best, NaN where that is unknown.",
        unknown_at_first=True,
    ),
    Definition("loss", "gauge", "Mean loss of the last logged step: what a player minimises and its parts.", ("player", "part"), most=10),
    Definition(
        "discriminator_accuracy_ratio",
        "gauge",
        "Share of the pictures of the last logged step that the discriminator judged rightly.",
        ("kind",),
        most=2,
    ),
    Definition("gradient_norm", "gauge", "Norm of a player's gradient in the last logged step.", ("player",), most=3),
    Definition("learning_rate", "gauge", "Learning rate of a player.", ("player",), most=3),
    Definition("nonfinite_steps_total", "counter", "Steps with a non-finite loss or gradient."),
    Definition("skipped_steps_total", "counter", "Steps whose update was left out."),
    Definition(
        "collapsed", "gauge", "1 while a player's losses look like a collapse, as its recipe declares it, else 0.", ("player",), most=3
    ),
    Definition("data_starving", "gauge", "1 while this rank waits for data more than watchdog.starving_share of the time, else 0."),
    Definition("rank_up", "gauge", "1 from a rank that answers, 0 from its node's endpoint in the place of one that does not."),
    Definition("heartbeat_age_seconds", "gauge", "Time since the loop of this rank last moved on."),
    Definition("attempt", "gauge", "Attempt of the run that this process belongs to, from 1."),
    Definition("launcher_restarts", "gauge", "How many times the launcher has started the ranks again."),
    Definition("mask_coverage_ratio", "gauge", "Share of the pixels of the last logged batch that are dropped."),
    Definition(
        "bad_samples_total",
        "counter",
        "Samples that could not be used and were replaced.",
        ("cause",),
        {f"{BAD_SAMPLES}{cause}": (cause,) for cause in BAD_CAUSES},
        most=5,
    ),
    Definition(
        "read_bytes_total",
        "counter",
        "Bytes of shards read, from the store or from the node's cache.",
        ("source",),
        {"bytes_read_store": ("store",), "bytes_read_cache": ("cache",)},
        most=2,
    ),
    Definition(
        "store_request_seconds",
        "histogram",
        "Duration of a request to the store, to the last of its bytes. Files that are read in place are no requests.",
        (),
        {
            "store_request_seconds": ("sum",),
            **{f"store_requests_up_to_{bound:g}": (f"{bound:g}",) for bound in (*REQUEST_BUCKETS, math.inf)},
        },
        buckets=REQUEST_BUCKETS,
    ),
    Definition(
        "store_retries_total",
        "counter",
        "Requests to the store that were tried again, by what was wrong with them.",
        ("cause",),
        {f"store_retries_{cause}": (cause,) for cause in RETRY_CAUSES},
        most=len(RETRY_CAUSES),
    ),
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
    Definition(
        "checkpoint_verified_step",
        "gauge",
        "Step of the newest checkpoint that was read back and verified, NaN before the first.",
        unknown_at_first=True,
    ),
    Definition("checkpoint_bytes", "gauge", "Size of the checkpoint that was saved last, NaN before the first.", unknown_at_first=True),
    Definition("checkpoint_duration_seconds", "gauge", "Time the last save took from snapshot to commit.", unknown_at_first=True),
    Definition("checkpoint_blocking_seconds", "gauge", "Time training stood still for the last save.", unknown_at_first=True),
    Definition("checkpoint_failures_total", "counter", "Saves that failed, or could not be read back."),
    Definition("host_memory_used_bytes", "gauge", "Memory of this machine that is not available any more.", unknown_at_first=True),
    Definition("host_memory_total_bytes", "gauge", "Memory of this machine.", unknown_at_first=True),
    Definition("gpu_memory_used_bytes", "gauge", "Memory of this rank's GPU that is in use, by any process.", only_with_gpu=True),
    Definition("gpu_memory_total_bytes", "gauge", "Memory of this rank's GPU.", only_with_gpu=True),
    Definition("gpu_utilisation_ratio", "gauge", "Share of the time that this rank's GPU had work to do.", only_with_gpu=True),
)


def label_value(value: str) -> str:
    """A label's value as UTF-8 that can be sent: the name of a folder may hold bytes that are none."""
    return value.encode("utf-8", "replace").decode("utf-8")
