"""The metrics of one rank: the training loop says what happened, Prometheus reads it.

A registry of its own for each `RunMetrics`, so that two runs in one process (tests, a notebook) never mix. `run`, `rank` and `node` are
added when the metrics are read, not when they are written: a call from the loop touches only the values that changed (microseconds a
step), and no call raises for a number that is odd, since no training job may end because of its monitoring.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from monitoring.metrics.collectors import ConstantLabels, CountedHistogram
from monitoring.metrics.definitions import ACCURACY, BAD_SAMPLES, DEFINITIONS, DIVIDED, PHASES, PREFIX, Definition, label_value
from monitoring.metrics.hardware import Gpu, host_memory

__all__ = ["RunMetrics", "Definition", "DEFINITIONS", "PREFIX", "OTHER"]

OTHER = "other"
"""Label value of what comes after a metric has as many as its definition allows."""
_WINDOW_SECONDS = 30.0
_REPORTS = 64  # names of totals that nobody has declared, before no more are reported

_log = logging.getLogger(__name__)
_M = TypeVar("_M", bound=Counter | Gauge | Histogram)


class RunMetrics:
    """What one rank of a run reports. Any thread may call any method.

    Args:
        run: name of the run.
        rank: of this process.
        world_size: ranks in the run.
        node: name of this machine.
        version: of this project.
        torch_version: of PyTorch.
        recipe: the pretext task.

    Attributes:
        registry: what an exporter serves; every series in it carries run, rank and node.
    """

    def __init__(
        self, run: str, rank: int, world_size: int, node: str, *, version: str = "", torch_version: str = "", recipe: str = ""
    ) -> None:
        self._inner = inner = CollectorRegistry()
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        self._known: defaultdict[Counter | Gauge | Histogram, dict[tuple[str, ...], Counter | Gauge | Histogram]] = defaultdict(dict)
        self._most: dict[Counter | Gauge | Histogram, int] = {}
        self._growing: dict[str, Callable[[float], None]] = {}
        self._moving: dict[str, Gauge] = {}
        self._totals: dict[str, float] = {}
        self._totals_lock = threading.Lock()  # the loop and a scrape may report them at the same time
        self._followed: Callable[[], Mapping[str, float]] | None = None
        self._unheard_of: set[str] = set()
        self._recent_seconds = self._recent_steps = self._recent_images = self._recent_wait = 0.0
        self._flops_per_image = self._peak_flops = math.nan
        self._checkpoint_time = math.nan
        for definition in DEFINITIONS:
            if not definition.only_with_gpu:
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
            ConstantLabels(inner, {"run": label_value(run), "rank": str(rank), "node": label_value(node)}, self._refresh)
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
            if definition.unknown_at_first:
                metric.set(math.nan)
        self._most[metric] = definition.most
        for values in definition.known:
            self._series(metric, *values)
        for total, values in definition.feeds.items():
            series = self._series(metric, *values) if labels else metric
            if isinstance(series, Counter):
                self._growing[total] = series.inc
            elif isinstance(series, Gauge):
                self._moving[total] = series

    def _add_counted(self, definition: Definition) -> None:
        histogram = CountedHistogram(PREFIX + definition.name, definition.help, definition.unit, definition.buckets)
        self._inner.register(histogram)
        places = {f"{bound:g}": place for place, bound in enumerate((*definition.buckets, math.inf))}
        for total, (bound,) in definition.feeds.items():
            self._growing[total] = histogram.add_sum if bound == "sum" else partial(histogram.add, places[bound])

    def step(self, *, step: int, epoch: int, progress: float, seconds: float, images: int, data_wait_seconds: float) -> None:
        """A step is done.

        Args:
            step: steps of the run so far, this one included.
            epoch: of the batch, from 0.
            progress: share of the run's steps that are done, 0 to 1.
            seconds: duration of the step, the wait for its data included.
            images: images of this rank in it.
            data_wait_seconds: part of `seconds` that was spent waiting for the batch.
        """
        seconds, wait = _grown(seconds), _grown(data_wait_seconds)
        self._counters["steps_total"].inc()
        self._counters["images_total"].inc(_grown(images))
        self._counters["data_wait_seconds_total"].inc(wait)
        self._histograms["step_seconds"].observe(seconds)
        self._phases["data_wait"].observe(wait)
        self._gauges["step"].set(step)
        self._gauges["epoch"].set(epoch)
        self._gauges["progress_ratio"].set(progress)
        kept = math.exp(-seconds / _WINDOW_SECONDS)
        self._recent_seconds = self._recent_seconds * kept + seconds
        self._recent_steps = self._recent_steps * kept + 1
        self._recent_images = self._recent_images * kept + _grown(images)
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
        """How long the parts of a step took, which may be known only later.

        Args:
            phases: seconds by the names in `monitoring.metrics.definitions.PHASES`, but for `data_wait`, which `step` is told.
            own_seconds: of the step, without the waits for other ranks.
        """
        for phase, seconds in phases.items():
            self._phases[phase].observe(_grown(seconds))
        self._counters["own_seconds_total"].inc(_grown(own_seconds))

    def model(self, flops_per_image: float, peak_flops: float) -> None:
        """What one image costs and what the device can do.

        Args:
            flops_per_image: floating-point operations of forward and backward passes, over all players; NaN where unknown.
            peak_flops: that the device can do a second; NaN or 0 where unknown.
        """
        self._flops_per_image, self._peak_flops = flops_per_image, peak_flops or math.nan

    def gpu(self, gpu: Gpu) -> None:
        """The GPU of this rank, which is asked when the metrics are read. Once."""
        for definition in DEFINITIONS:
            if definition.only_with_gpu:
                self._add(definition)
        self._gauges["gpu_memory_used_bytes"].set_function(gpu.memory_used)
        self._gauges["gpu_memory_total_bytes"].set_function(gpu.memory_total)
        self._gauges["gpu_utilisation_ratio"].set_function(gpu.utilisation)

    def losses(self, losses: Mapping[str, Mapping[str, float]]) -> None:
        """Means over the batch: player -> part -> value. Non-finite values are shown as they are; parts that begin with `accuracy_` are
        those of the discriminator's judgements."""
        for player, parts in losses.items():
            for part, value in parts.items():
                if part.startswith(ACCURACY):
                    self._series(self._gauges["discriminator_accuracy_ratio"], part.removeprefix(ACCURACY)).set(value)
                else:
                    self._series(self._gauges["loss"], player, part).set(value)

    def gradient_norms(self, norms: Mapping[str, float]) -> None:
        """Norm of the gradient by player, before it was scaled down."""
        for player, norm in norms.items():
            self._series(self._gauges["gradient_norm"], player).set(norm)

    def learning_rates(self, rates: Mapping[str, float]) -> None:
        """Learning rate by player."""
        for player, rate in rates.items():
            self._series(self._gauges["learning_rate"], player).set(rate)

    def mask_coverage(self, share: float) -> None:
        """Share of pixels that are dropped, 0 to 1."""
        self._gauges["mask_coverage_ratio"].set(share)

    def collapsed(self, player: str, collapsed: bool) -> None:
        """Whether a player's losses look like a collapse."""
        self._series(self._gauges["collapsed"], player).set(collapsed)

    def starving(self, starving: bool) -> None:
        """Whether this rank waits for data too much of the time."""
        self._gauges["data_starving"].set(starving)

    def heartbeat(self, age: Callable[[], float]) -> None:
        """Seconds since the loop last moved on, asked for when the metrics are read: the loop may hang."""
        self._gauges["heartbeat_age_seconds"].set_function(age)

    def attempt(self, number: int, restarts: int) -> None:
        """Which attempt of the run this is, and how many times the launcher has restarted it."""
        self._gauges["attempt"].set(number)
        self._gauges["launcher_restarts"].set(restarts)

    def nonfinite(self, *, skipped: bool = True) -> None:
        """A step had a non-finite loss or gradient; `skipped`: its update was left out."""
        self._counters["nonfinite_steps_total"].inc()
        if skipped:
            self._counters["skipped_steps_total"].inc()

    def data(self, totals: Callable[[], Mapping[str, float]]) -> None:
        """What the loader counted so far. A total that fell means that the loader was made anew: it is counted from 0.

        Args:
            totals: gives them, by the names that `DEFINITIONS` has under `feeds`, and `bad_samples_<cause>`. A name that belongs to no
                metric is reported once. It is asked while nobody else is: an older copy that came late would look like a new loader.
        """
        with self._totals_lock:
            self._take(totals())

    def follow(self, totals: Callable[[], Mapping[str, float]]) -> None:
        """What the loader counted is asked for whenever the metrics are read: a loop that waits for a store that is down reports nothing,
        and its retries are what there is to see."""
        self._followed = totals

    def _refresh(self) -> None:
        if self._followed is not None:
            self.data(self._followed)

    def _take(self, totals: Mapping[str, float]) -> None:
        for name, value in totals.items():
            before = self._totals.get(name)
            if value == before:
                continue
            self._totals[name] = value
            if (grow := self._growing.get(name)) is not None:
                grow(_grown(value - before if before is not None and value > before else value))
            elif (gauge := self._moving.get(name)) is not None:
                gauge.set(value)
            elif name.startswith(BAD_SAMPLES):
                self._growing[name] = self._series(self._counters["bad_samples_total"], name.removeprefix(BAD_SAMPLES)).inc
                self._growing[name](_grown(value))
            elif name not in DIVIDED:
                self._report_once(name)

    def checkpoint(self, *, step: int, size_bytes: int, duration_seconds: float, blocking_seconds: float) -> None:
        """A checkpoint is committed.

        Args:
            step: it holds.
            size_bytes: of all its files.
            duration_seconds: from the snapshot to the commit.
            blocking_seconds: that training stood still for it.
        """
        self._newest_checkpoint(step, time.time())
        self._gauges["checkpoint_bytes"].set(size_bytes)
        self._gauges["checkpoint_duration_seconds"].set(duration_seconds)
        self._gauges["checkpoint_blocking_seconds"].set(blocking_seconds)

    def resumed(self, *, step: int, timestamp: float) -> None:
        """The run continues from a checkpoint that was committed at `timestamp` (Unix seconds): its age counts from there."""
        self._newest_checkpoint(step, timestamp)
        self.verified(step)

    def verified(self, step: int) -> None:
        """Every byte of the checkpoint of a step was read back and found right."""
        self._gauges["checkpoint_verified_step"].set(step)

    def _newest_checkpoint(self, step: int, timestamp: float) -> None:
        self._checkpoint_time = timestamp
        self._gauges["checkpoint_last_timestamp_seconds"].set(timestamp)
        self._gauges["checkpoint_step"].set(step)

    def checkpoint_failed(self) -> None:
        """A save failed, or could not be read back."""
        self._counters["checkpoint_failures_total"].inc()

    def _checkpoint_age(self) -> float:
        age = time.time() - self._checkpoint_time
        return age if math.isnan(age) else max(age, 0.0)  # a clock that was set back is no negative age

    def _series(self, metric: _M, *labels: str) -> _M:
        known = self._known[metric]  # the client's own look-up converts and locks: it takes longer than the rest of a call
        series = known.get(labels)
        if series is None:
            if len(known) >= self._most[metric]:
                return cast(_M, metric.labels(*(OTHER for _ in labels)))
            series = known[labels] = metric.labels(*map(label_value, labels))
        return cast(_M, series)

    def _report_once(self, name: str) -> None:
        if name not in self._unheard_of and len(self._unheard_of) < _REPORTS:
            self._unheard_of.add(name)
            _log.warning("the loader's total %r belongs to no metric: declare it in monitoring/metrics/definitions.py", name)


def _grown(amount: float) -> float:
    """What a counter can take: a clock that jumped or a NaN adds nothing."""
    return amount if 0 < amount < math.inf else 0.0
