"""The metrics of one rank: the training loop reports its numbers here, and Prometheus reads them.

Each `RunMetrics` has a registry of its own, so that two runs in one process (tests, a notebook) never mix. The labels `run`, `rank` and
`node` are added when the metrics are read, not when they are written: a call from the loop touches only the values that changed, which
takes microseconds a step. No call raises for an odd number, because no training job may end because of its monitoring.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from monitoring.metrics.collectors import ConstantLabels, CountedHistogram
from monitoring.metrics.definitions import ACCURACY, DEFINITIONS, NO_LOADER, PHASES, PREFIX, Definition, LoaderSeries, complete, label_value
from monitoring.metrics.evaluation import gauge_values
from monitoring.metrics.hardware import Gpu, host_memory
from monitoring.metrics.loader_totals import LoaderTotals, increment

__all__ = ["RunMetrics", "Definition", "DEFINITIONS", "LoaderSeries", "PREFIX", "OTHER"]

OTHER = "other"
"""Label value of everything that comes after a metric has as many sets of label values as its definition allows."""
_WINDOW_SECONDS = 30.0

_M = TypeVar("_M", bound=Counter | Gauge | Histogram)


class RunMetrics:
    """The metrics that one rank of a run reports. Any thread may call any method.

    Args:
        run: name of the run.
        rank: rank of this process.
        world_size: number of ranks in the run.
        node: name of this machine.
        version: version of this project.
        torch_version: version of PyTorch.
        recipe: name of the pretext task.
        loader: causes and buckets that the loader counts by.

    Attributes:
        registry: registry that an endpoint serves; every series in it carries run, rank and node.
    """

    def __init__(
        self,
        run: str,
        rank: int,
        world_size: int,
        node: str,
        *,
        version: str = "",
        torch_version: str = "",
        recipe: str = "",
        loader: LoaderSeries = NO_LOADER,
    ) -> None:
        self._inner = inner = CollectorRegistry()
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        self._known: defaultdict[Counter | Gauge | Histogram, dict[tuple[str, ...], Counter | Gauge | Histogram]] = defaultdict(dict)
        self._most: dict[Counter | Gauge | Histogram, int] = {}
        self._loader = LoaderTotals(lambda cause: self._series(self._counters["bad_samples_total"], cause).inc)
        self._recent_seconds = self._recent_steps = self._recent_images = self._recent_wait = 0.0
        self._flops_per_image = self._peak_flops = math.nan
        self._checkpoint_time = math.nan
        self._is_first = rank == 0
        for definition in complete(loader):
            if not definition.only_with_gpu and (self._is_first or not definition.only_on_first_rank):
                self._add(definition)
        self._phases = {phase: self._series(self._histograms["step_phase_seconds"], phase) for phase in PHASES}
        self._gauges["checkpoint_age_seconds"].set_function(self._checkpoint_age)
        self._gauges["world_size"].set(world_size)
        self._gauges["rank_up"].set(1)
        self._gauges["host_memory_used_bytes"].set_function(partial(host_memory, "used"))
        self._gauges["host_memory_total_bytes"].set_function(partial(host_memory, "total"))
        build = Info(f"{PREFIX}build", "Versions and recipe of the process.", registry=inner)
        build.info({"version": version, "torch": torch_version, "recipe": recipe})
        ProcessCollector(registry=inner)
        self.registry = CollectorRegistry()
        self.registry.register(
            ConstantLabels(inner, {"run": label_value(run), "rank": str(rank), "node": label_value(node)}, self._loader.refresh)
        )

    def _add(self, definition: Definition) -> None:
        name, text, labels, unit = PREFIX + definition.name, definition.help, definition.labels, definition.unit
        metric: Counter | Gauge | Histogram
        if definition.kind == "histogram" and definition.feeds:
            self._add_counted(definition)
            return
        if definition.kind == "histogram":
            metric = Histogram(name, text, labels, unit=unit, registry=self._inner, buckets=definition.buckets)
            self._histograms[definition.name] = metric
        elif definition.kind == "counter":
            metric = self._counters[definition.name] = Counter(name, text, labels, unit=unit, registry=self._inner)
        else:
            metric = self._gauges[definition.name] = Gauge(name, text, labels, unit=unit, registry=self._inner)
            if definition.unknown_at_first and not labels:
                metric.set(math.nan)
        self._most[metric] = definition.most
        for values in definition.known:
            series = self._series(metric, *values)
            if isinstance(series, Gauge) and definition.unknown_at_first:
                series.set(math.nan)
        for total, values in definition.feeds.items():
            series = self._series(metric, *values) if labels else metric
            if isinstance(series, Counter):
                self._loader.feed_counter(total, series.inc)
            elif isinstance(series, Gauge):
                self._loader.feed_gauge(total, series)

    def _add_counted(self, definition: Definition) -> None:
        histogram = CountedHistogram(PREFIX + definition.name, definition.help, definition.unit, definition.buckets)
        self._inner.register(histogram)
        indices = {f"{bound:g}": index for index, bound in enumerate((*definition.buckets, math.inf))}
        for total, (bound,) in definition.feeds.items():
            self._loader.feed_counter(total, histogram.add_sum if bound == "sum" else partial(histogram.add, indices[bound]))

    def step(self, *, step: int, epoch: int, progress: float, seconds: float, images: int, data_wait_seconds: float) -> None:
        """Records a finished step.

        Args:
            step: steps of the run so far, including this one.
            epoch: epoch of the batch, from 0.
            progress: fraction of the run's steps that are done, 0 to 1.
            seconds: duration of the step, including the wait for its data.
            images: images that this rank trained on in the step.
            data_wait_seconds: part of `seconds` that was spent waiting for the batch.
        """
        seconds, wait = increment(seconds), increment(data_wait_seconds)
        self._counters["steps_total"].inc()
        self._counters["images_total"].inc(increment(images))
        self._counters["data_wait_seconds_total"].inc(wait)
        self._histograms["step_seconds"].observe(seconds)
        self._phases["data_wait"].observe(wait)
        self._gauges["step"].set(step)
        self._gauges["epoch"].set(epoch)
        self._gauges["progress_ratio"].set(progress)
        kept = math.exp(-seconds / _WINDOW_SECONDS)
        self._recent_seconds = self._recent_seconds * kept + seconds
        self._recent_steps = self._recent_steps * kept + 1
        self._recent_images = self._recent_images * kept + increment(images)
        self._recent_wait = self._recent_wait * kept + wait
        if self._recent_seconds > 0:
            images_per_second = self._recent_images / self._recent_seconds
            self._gauges["images_per_second"].set(images_per_second)
            self._gauges["data_wait_ratio"].set(self._recent_wait / self._recent_seconds)
            flops = images_per_second * self._flops_per_image
            self._gauges["model_flops_per_second"].set(flops)
            self._gauges["model_flop_utilisation_ratio"].set(flops / self._peak_flops)
        if progress > 0:
            left = step / progress - step
            self._gauges["eta_seconds"].set(left * self._recent_seconds / self._recent_steps)

    def step_times(self, phases: Mapping[str, float], own_seconds: float) -> None:
        """Records how long the parts of a step took, which may be known only some steps later.

        Args:
            phases: seconds by the names in `monitoring.metrics.definitions.PHASES`, without `data_wait`, which `step` records.
            own_seconds: seconds of the step without the waits for other ranks.
        """
        for phase, seconds in phases.items():
            self._phases[phase].observe(increment(seconds))
        self._counters["own_seconds_total"].inc(increment(own_seconds))

    def model(self, flops_per_image: float, peak_flops: float) -> None:
        """Sets the cost of an image and the peak speed of the device.

        Args:
            flops_per_image: floating-point operations of the forward and backward passes, over all players; NaN where unknown.
            peak_flops: floating-point operations per second of the device at its peak; NaN or 0 where unknown.
        """
        self._flops_per_image, self._peak_flops = flops_per_image, peak_flops or math.nan

    def gpu(self, gpu: Gpu) -> None:
        """Adds the metrics of this rank's GPU, which is read with every scrape. Called at most once."""
        for definition in DEFINITIONS:
            if definition.only_with_gpu:
                self._add(definition)
        self._gauges["gpu_memory_used_bytes"].set_function(gpu.memory_used)
        self._gauges["gpu_memory_total_bytes"].set_function(gpu.memory_total)
        self._gauges["gpu_utilisation_ratio"].set_function(gpu.utilisation)

    def losses(self, losses: Mapping[str, Mapping[str, float]]) -> None:
        """Sets the mean losses of a batch: player -> part -> value. Non-finite values are shown as they are. A part that begins with
        `accuracy_` is an accuracy of the discriminator."""
        for player, parts in losses.items():
            for part, value in parts.items():
                if part.startswith(ACCURACY):
                    self._series(self._gauges["discriminator_accuracy_ratio"], part.removeprefix(ACCURACY)).set(value)
                else:
                    self._series(self._gauges["loss"], player, part).set(value)

    def gradient_norms(self, norms: Mapping[str, float]) -> None:
        """Sets the norm of each player's gradient, before clipping."""
        for player, norm in norms.items():
            self._series(self._gauges["gradient_norm"], player).set(norm)

    def learning_rates(self, rates: Mapping[str, float]) -> None:
        """Sets the learning rate of each player."""
        for player, rate in rates.items():
            self._series(self._gauges["learning_rate"], player).set(rate)

    def mask_coverage(self, fraction: float) -> None:
        """Sets the fraction of pixels that the masks drop, 0 to 1."""
        self._gauges["mask_coverage_ratio"].set(fraction)

    def collapsed(self, player: str, collapsed: bool) -> None:
        """Sets whether a player's losses look like a collapse."""
        self._series(self._gauges["collapsed"], player).set(collapsed)

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """Sets the figures of an evaluation on held-back pictures, on rank 0; other ranks do not have these metrics.

        Args:
            row: row of evaluation.jsonl; see `monitoring.metrics.evaluation`.
        """
        if self._is_first:
            for name, labels, value in gauge_values(row):
                gauge = self._gauges[name]
                (self._series(gauge, *labels) if labels else gauge).set(value)

    def learning(self, problem: str, present: bool) -> None:
        """Sets whether evaluations find a problem, on rank 0; other ranks do not have this metric.

        Args:
            problem: problem by its name in `monitoring.metrics.definitions.PROBLEMS`.
            present: whether the newest evaluations find the problem.
        """
        if self._is_first:
            self._series(self._gauges["not_learning"], problem).set(present)

    def starving(self, starving: bool) -> None:
        """Sets whether this rank waits for data too much of the time."""
        self._gauges["data_starving"].set(starving)

    def heartbeat(self, age: Callable[[], float]) -> None:
        """Has every scrape call `age` for the seconds since the loop last made progress, because a loop that hangs reports nothing."""
        self._gauges["heartbeat_age_seconds"].set_function(age)

    def attempt(self, number: int, restarts: int) -> None:
        """Sets the number of this attempt of the run, and how many times the launcher has restarted the ranks."""
        self._gauges["attempt"].set(number)
        self._gauges["launcher_restarts"].set(restarts)

    def nonfinite(self, *, skipped: bool = True) -> None:
        """Counts a step with a non-finite loss or gradient; `skipped` says that its update was skipped."""
        self._counters["nonfinite_steps_total"].inc()
        if skipped:
            self._counters["skipped_steps_total"].inc()

    def data(self, totals: Callable[[], Mapping[str, float]]) -> None:
        """Records what the loader has counted so far. A total that fell is one of a new loader, and is counted from 0.

        Args:
            totals: gives the loader's totals by the names under `feeds` of the definitions, and `bad_samples_<cause>`. A name without a
                metric is reported once. Called under a lock: an older snapshot that arrives late would look like a counter reset.
        """
        self._loader.take(totals)

    def follow(self, totals: Callable[[], Mapping[str, float]]) -> None:
        """Has every scrape read the loader's totals. A loop that waits for a store that is down reports nothing, and the loader's
        retries are then the only sign."""
        self._loader.follow(totals)

    def checkpoint(self, *, step: int, size_bytes: int, duration_seconds: float, blocking_seconds: float) -> None:
        """Records a committed checkpoint.

        Args:
            step: step that the checkpoint holds.
            size_bytes: total size of its files.
            duration_seconds: time from the snapshot to the commit.
            blocking_seconds: time that training stood still for the save.
        """
        self._newest_checkpoint(step, time.time())
        self._gauges["checkpoint_bytes"].set(size_bytes)
        self._gauges["checkpoint_duration_seconds"].set(duration_seconds)
        self._gauges["checkpoint_blocking_seconds"].set(blocking_seconds)

    def resumed(self, *, step: int, timestamp: float) -> None:
        """Records that the run continues from a checkpoint committed at `timestamp` (Unix seconds), from which its age counts."""
        self._newest_checkpoint(step, timestamp)
        self.verified(step)

    def verified(self, step: int) -> None:
        """Records that every byte of the checkpoint of a step was read back and found correct."""
        self._gauges["checkpoint_verified_step"].set(step)

    def _newest_checkpoint(self, step: int, timestamp: float) -> None:
        self._checkpoint_time = timestamp
        self._gauges["checkpoint_last_timestamp_seconds"].set(timestamp)
        self._gauges["checkpoint_step"].set(step)

    def checkpoint_failed(self) -> None:
        """Counts a save that failed or could not be read back."""
        self._counters["checkpoint_failures_total"].inc()

    def _checkpoint_age(self) -> float:
        age = time.time() - self._checkpoint_time
        return age if math.isnan(age) else max(age, 0.0)  # the clock may have been set back

    def _series(self, metric: _M, *labels: str) -> _M:
        known = self._known[metric]  # because the client's own look-up converts and locks, which takes longer than the rest of a call
        series = known.get(labels)
        if series is None:
            if len(known) >= self._most[metric]:
                return cast(_M, metric.labels(*(OTHER for _ in labels)))
            series = known[labels] = metric.labels(*map(label_value, labels))
        return cast(_M, series)
