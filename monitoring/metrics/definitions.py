"""Every metric of a run, declared once: the exposition, the dashboards and the alert rules all name what stands here.

Names follow Prometheus's rules: base units, the unit last, and `_total` after it for a value that only grows. Every series also carries
`run`, `rank` and `node`. Counts and rates are those of one rank, so a sum over ranks is the run's.

The loader of the training data is not imported here. It declares the causes and the buckets that it counts by, and `complete` adds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from monitoring.run_files import BASELINES as NAMES
from monitoring.run_files import GUESSES

PREFIX = "context_encoder_"
UNITS = ("seconds", "bytes", "ratio", "decibels")
BAD_SAMPLES = "bad_samples_"
"""Beginning of the names of the loader's totals of bad samples; the cause follows."""


@dataclass(frozen=True)
class Definition:
    """One metric.

    Attributes:
        name: name without the prefix, with unit and `_total`.
        kind: metric type of Prometheus.
        help: one sentence for the user, shown by Prometheus and Grafana.
        labels: labels beside run, rank and node.
        feeds: names of the loader's totals that go into this metric -> the values of `labels` that each total stands for. For a
            histogram, the upper bound of the bucket that the total counts, or `sum`.
        unknown_at_first: the metric is NaN rather than 0 until it has a value; of a metric with labels, the series in `known`.
        known: values of `labels` that are exposed from the start, so that Prometheus sees the first event of a kind as an increase.
        most: largest number of sets of label values; later sets are counted under `other`. It bounds the number of series of a run
            (tests/monitoring/metrics/test_series.py).
        buckets: upper bounds of a histogram, without the infinite one.
        only_with_gpu: the metric is absent where the rank has no GPU.
        only_on_first_rank: the metric is absent from all ranks but rank 0, because it describes the run and not a rank.
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
    only_on_first_rank: bool = False

    @property
    def unit(self) -> str:
        """The unit in the name, empty for counts."""
        last = self.name.removesuffix("_total").rpartition("_")[2]
        return last if last in UNITS else ""


@dataclass(frozen=True)
class LoaderSeries:
    """The causes and buckets that the loader counts by. `pipeline.training.reporting.loader_series` hands them over, because neither the
    loader nor this package imports the other.

    Attributes:
        retry_causes: causes of `store_retries_<cause>`, the totals of requests that were repeated.
        bad_causes: causes of `bad_samples_<cause>`, the totals of samples that could not be used.
        request_bounds: upper bounds of the durations of requests, in seconds and ascending, the last one infinite. The total
            `store_requests_up_to_<bound>` counts the requests that took at most one bound and more than the one before.
    """

    retry_causes: tuple[str, ...] = ()
    bad_causes: tuple[str, ...] = ()
    request_bounds: tuple[float, ...] = ()


NO_LOADER = LoaderSeries()
"""Causes and buckets of a process without a loader: none."""


def complete(loader: LoaderSeries) -> tuple[Definition, ...]:
    """`DEFINITIONS` with the causes and buckets of a loader."""
    return tuple(_completed(definition, loader) for definition in DEFINITIONS)


def _completed(definition: Definition, loader: LoaderSeries) -> Definition:
    if definition.name == "bad_samples_total":
        return replace(definition, feeds={f"{BAD_SAMPLES}{cause}": (cause,) for cause in loader.bad_causes})
    if definition.name == "store_retries_total":
        feeds = {f"store_retries_{cause}": (cause,) for cause in loader.retry_causes}
        return replace(definition, feeds=feeds, most=max(1, len(feeds)))
    if definition.name == "store_request_seconds":
        counts = {f"store_requests_up_to_{bound:g}": (f"{bound:g}",) for bound in loader.request_bounds}
        return replace(definition, feeds={**definition.feeds, **counts}, buckets=loader.request_bounds[:-1])
    return definition


STEP_BUCKETS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0)
PHASE_BUCKETS = (0.001, 0.01, 0.05, 0.2, 1.0, 5.0)
PHASES = ("data_wait", "host_to_device", "forward", "backward", "optimiser", "collective")
ACCURACY = "accuracy_"
"""Beginning of the parts of a discriminator's losses that are accuracies; `real` or `generated`, the pictures judged, follows."""
BASELINES = tuple(NAMES)
"""Painters without a network: one colour for all pictures, and the mean colour of each picture's own visible part."""
PAINTERS = ("network", *BASELINES)
GUESSERS = ("network", *GUESSES)
"""Classifiers of a recipe that names a class: its network, and guesses without a network."""
CLASSIFIERS = ("chance", "knn", "ridge")
"""Classifiers of the probe of an evaluation; chance is the accuracy of guessing."""
PROBLEMS = ("baseline", "dead_maps", "constant_output", "collapsed_features")
"""Findings of the evaluations that a run does not learn: it does not beat the stronger baseline, maps of the network fire on no picture,
the painting is the same for all pictures, or so are the features."""
DIVIDED = frozenset({"store_requests", "store_retries"})
"""Loader totals that other metrics already break down, so they are not exported themselves."""


def _evaluated(name: str, text: str, label: str = "", known: tuple[str, ...] = (), most: int = 1) -> Definition:
    """Returns a gauge that every evaluation on held-back pictures sets; `known` are values of its one label."""
    first = "absent" if label and not known else "NaN"  # the layers of a network are known by its first evaluation
    return Definition(
        name,
        "gauge",
        f"{text}; {first} before the first evaluation.",
        (label,) if label else (),
        unknown_at_first=True,
        known=tuple((value,) for value in known),
        most=max(most, len(known)),
        only_on_first_rank=True,
    )


DEFINITIONS = (
    Definition("steps_total", "counter", "Steps done by this process."),
    Definition("images_total", "counter", "Images this rank trained on."),
    Definition("epoch", "gauge", "Epoch of the current batch, from 0."),
    Definition("step", "gauge", "Steps of the run so far, over all its attempts."),
    Definition("progress_ratio", "gauge", "Fraction of the run's steps that are done."),
    Definition("world_size", "gauge", "Ranks in the run."),
    Definition("images_per_second", "gauge", "Images this rank trained on per second, over about the last 30 seconds."),
    Definition("eta_seconds", "gauge", "Time left to the last step, at the speed of about the last 30 seconds.", unknown_at_first=True),
    Definition("step_seconds", "histogram", "Duration of a step, including the wait for data.", buckets=STEP_BUCKETS),
    Definition(
        "step_phase_seconds",
        "histogram",
        "Duration of a part of a step; collective is the wait for the other ranks, host_to_device the wait for the copy of the batch.",
        ("phase",),
        known=tuple((phase,) for phase in PHASES),
        most=len(PHASES),
        buckets=PHASE_BUCKETS,
    ),
    Definition("own_seconds_total", "counter", "Time this rank spent on its own work: its steps minus the waits for other ranks."),
    Definition("data_wait_seconds_total", "counter", "Time the training loop waited for a batch."),
    Definition("data_wait_ratio", "gauge", "Fraction of the time that the training loop waited for data, over about the last 30 seconds."),
    Definition(
        "model_flops_per_second",
        "gauge",
        "Floating-point operations per second that the mathematics of the networks needs for the images of this rank.",
        unknown_at_first=True,
    ),
    Definition(
        "model_flop_utilisation_ratio",
        "gauge",
        "model_flops_per_second as a fraction of the peak of this rank's device, NaN where the peak is unknown.",
        unknown_at_first=True,
    ),
    Definition(
        "loss", "gauge", "Mean loss of the last logged step: the total that a player minimises and its parts.", ("player", "part"), most=10
    ),
    Definition(
        "discriminator_accuracy_ratio",
        "gauge",
        "Fraction of the pictures of the last logged step that the discriminator judged correctly.",
        ("kind",),
        most=2,
    ),
    Definition("gradient_norm", "gauge", "Norm of a player's gradient in the last logged step.", ("player",), most=3),
    Definition("learning_rate", "gauge", "Learning rate of a player.", ("player",), most=3),
    Definition("nonfinite_steps_total", "counter", "Steps with a non-finite loss or gradient."),
    Definition("skipped_steps_total", "counter", "Steps whose update was skipped because a loss or gradient was non-finite."),
    Definition(
        "collapsed", "gauge", "1 while a player's losses look like a collapse as its recipe defines it, else 0.", ("player",), most=3
    ),
    _evaluated("held_back_loss", "Loss on held-back pictures, of the network and of each baseline", "of", PAINTERS),
    _evaluated("held_back_absolute_error_ratio", "Mean absolute error (L1) of dropped pixels, where 1 is white for black", "of", PAINTERS),
    _evaluated("held_back_psnr_decibels", "Peak signal-to-noise ratio of dropped pixels, mean over held-back pictures", "of", PAINTERS),
    _evaluated("held_back_accuracy_ratio", "Fraction of held-back pictures whose class is named correctly", "of", GUESSERS),
    _evaluated("held_back_gain_ratio", "Fraction of the stronger baseline's held-back L1 or errors taken away, negative if worse"),
    _evaluated("dead_maps_ratio", "Fraction of a layer's maps that fire on no held-back picture", "layer", most=16),
    _evaluated("output_spread_ratio", "Spread over held-back pictures of the mean painted colour, relative to the true colour's"),
    _evaluated("feature_dimensions", "Dimensions in which features of held-back pictures vary (participation ratio, 1 is collapsed)"),
    _evaluated("feature_spread_ratio", "Mean distance of held-back pictures' features from their mean, relative to the features' length"),
    _evaluated("probe_accuracy_ratio", "Accuracy of a classifier of held-back pictures by their features", "classifier", CLASSIFIERS),
    _evaluated("evaluation_duration_seconds", "Time that the newest evaluation on held-back pictures took"),
    _evaluated("evaluation_step", "Step of the newest evaluation on held-back pictures"),
    Definition(
        "not_learning",
        "gauge",
        "1 while evaluations on held-back pictures find a problem of the run's learning, else 0.",
        ("problem",),
        known=tuple((problem,) for problem in PROBLEMS),
        most=len(PROBLEMS),
        only_on_first_rank=True,
    ),
    Definition("data_starving", "gauge", "1 while this rank waits for data longer than watchdog.starving_share allows, else 0."),
    Definition("rank_up", "gauge", "1 from a rank that answers; 0 from the endpoint of its node, in place of a rank that does not."),
    Definition("heartbeat_age_seconds", "gauge", "Time since the training loop of this rank last made progress."),
    Definition("attempt", "gauge", "Number of the attempt of the run that this process belongs to, from 1."),
    Definition("launcher_restarts", "gauge", "Number of times the launcher has restarted the ranks."),
    Definition("mask_coverage_ratio", "gauge", "Fraction of the pixels of the last logged batch that the masks drop."),
    Definition(
        "bad_samples_total",
        "counter",
        "Samples that could not be used and were replaced.",
        ("cause",),
        most=5,
    ),
    Definition(
        "read_bytes_total",
        "counter",
        "Bytes of shards read from the store or from the node's cache.",
        ("source",),
        {"bytes_read_store": ("store",), "bytes_read_cache": ("cache",)},
        most=2,
    ),
    Definition(
        "store_request_seconds",
        "histogram",
        "Duration of a request to the store, to the last byte of the answer. Reading a file in place is no request.",
        feeds={"store_request_seconds": ("sum",)},
    ),
    Definition("store_retries_total", "counter", "Requests to the store that were repeated, by the cause of the failure.", ("cause",)),
    Definition("cache_hits_total", "counter", "Samples found in the node's cache.", (), {"cache_hits": ()}),
    Definition("cache_misses_total", "counter", "Samples not found in the node's cache.", (), {"cache_misses": ()}),
    Definition("cache_evictions_total", "counter", "Shards removed from the node's cache to make room.", (), {"cache_evictions": ()}),
    Definition("cache_downloads_total", "counter", "Shards downloaded into the node's cache by this rank.", (), {"cache_downloads": ()}),
    Definition("cache_failures_total", "counter", "Shards that could not be downloaded into the node's cache.", (), {"cache_failures": ()}),
    Definition(
        "cache_repairs_total",
        "counter",
        "Samples whose cached bytes were wrong, so they were read again from the store.",
        (),
        {"cache_repairs": ()},
    ),
    Definition("cache_bytes", "gauge", "Bytes in the node's cache.", (), {"cache_bytes": ()}),
    Definition("decoded_images_total", "counter", "Images decoded, including those of batches prepared ahead.", (), {"images": ()}),
    Definition("decode_seconds_total", "counter", "CPU time spent on decoding, over all threads.", (), {"decode_seconds": ()}),
    Definition("queue_depth", "gauge", "Batches that were ready when the training loop asked for one.", (), {"queue_depth": ()}),
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
    Definition("checkpoint_bytes", "gauge", "Size of the last saved checkpoint, NaN before the first.", unknown_at_first=True),
    Definition("checkpoint_duration_seconds", "gauge", "Time the last save took, from the snapshot to the commit.", unknown_at_first=True),
    Definition("checkpoint_blocking_seconds", "gauge", "Time that training stood still for the last save.", unknown_at_first=True),
    Definition("checkpoint_failures_total", "counter", "Saves that failed, or could not be read back."),
    Definition("host_memory_used_bytes", "gauge", "Host memory in use: total minus available.", unknown_at_first=True),
    Definition("host_memory_total_bytes", "gauge", "Host memory of this machine.", unknown_at_first=True),
    Definition("gpu_memory_used_bytes", "gauge", "Memory of this rank's GPU in use, by any process.", only_with_gpu=True),
    Definition("gpu_memory_total_bytes", "gauge", "Memory of this rank's GPU.", only_with_gpu=True),
    Definition("gpu_utilisation_ratio", "gauge", "Fraction of the time in which this rank's GPU ran a kernel.", only_with_gpu=True),
)


def label_value(value: str) -> str:
    """A label value that can be encoded as UTF-8. The name of a folder may hold other bytes; each becomes a question mark."""
    return value.encode("utf-8", "replace").decode("utf-8")
