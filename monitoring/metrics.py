"""The metrics of one rank: the training loop says what happened, Prometheus reads it.

A registry of its own for each `RunMetrics`, so that two runs in one process (tests, a notebook) never mix. `run`, `rank` and `node` are
added when the metrics are read, not when they are written: a call from the loop touches only the values that changed (microseconds a
step), and no call raises for a number that is odd, since no training job may end because of its monitoring.
"""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from monitoring.definitions import BAD_SAMPLES, DEFINITIONS, PREFIX, STEP_BUCKETS, Definition

__all__ = ["RunMetrics", "Definition", "DEFINITIONS", "PREFIX", "MAX_SERIES", "OTHER"]

MAX_SERIES = 64
"""Sets of label values that one metric may have; what comes after goes under `other`."""
OTHER = "other"
_WINDOW_SECONDS = 30.0

_log = logging.getLogger(__name__)
_M = TypeVar("_M", Counter, Gauge)


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
        inner = CollectorRegistry()
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._known: defaultdict[Counter | Gauge, dict[tuple[str, ...], Counter | Gauge]] = defaultdict(dict)
        self._counter_feeds: dict[str, Counter] = {}
        self._gauge_feeds: dict[str, Gauge] = {}
        self._totals: dict[str, float] = {}
        self._unheard_of: set[str] = set()
        self._recent_seconds = self._recent_images = self._recent_wait = 0.0
        self._checkpoint_time = math.nan
        for definition in DEFINITIONS:
            self._add(definition, inner)
        self._gauges["checkpoint_age_seconds"].set_function(self._checkpoint_age)
        self._gauges["world_size"].set(world_size)
        build = Info(f"{PREFIX}build", "Versions and recipe of the process.", registry=inner)
        build.info({"version": version, "torch": torch_version, "recipe": recipe})
        ProcessCollector(registry=inner)
        self.registry = CollectorRegistry()
        self.registry.register(_ConstantLabels(inner, {"run": _text(run), "rank": str(rank), "node": _text(node)}))

    def _add(self, definition: Definition, registry: CollectorRegistry) -> None:
        name, text, labels, unit = PREFIX + definition.name, definition.help, definition.labels, definition.unit
        if definition.kind == "histogram":
            self._step_seconds = Histogram(name, text, labels, unit=unit, registry=registry, buckets=STEP_BUCKETS)
        elif definition.kind == "counter":
            counter = self._counters[definition.name] = Counter(name, text, labels, unit=unit, registry=registry)
            for total, values in definition.feeds.items():
                self._counter_feeds[total] = self._series(counter, *values) if labels else counter
        else:
            gauge = self._gauges[definition.name] = Gauge(name, text, labels, unit=unit, registry=registry)
            for total, values in definition.feeds.items():
                self._gauge_feeds[total] = self._series(gauge, *values) if labels else gauge
            if definition.unknown_at_first:
                gauge.set(math.nan)

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
        self._step_seconds.observe(seconds)
        self._gauges["step"].set(step)
        self._gauges["epoch"].set(epoch)
        self._gauges["progress_ratio"].set(progress)
        kept = math.exp(-seconds / _WINDOW_SECONDS)
        self._recent_seconds = self._recent_seconds * kept + seconds
        self._recent_images = self._recent_images * kept + _grown(images)
        self._recent_wait = self._recent_wait * kept + wait
        if self._recent_seconds > 0:
            self._gauges["images_per_second"].set(self._recent_images / self._recent_seconds)
            self._gauges["data_wait_ratio"].set(self._recent_wait / self._recent_seconds)

    def losses(self, losses: Mapping[str, Mapping[str, float]]) -> None:
        """Means over the batch: player -> part -> value. Non-finite values are shown as they are."""
        for player, parts in losses.items():
            for part, value in parts.items():
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

    def data(self, totals: Mapping[str, float]) -> None:
        """What the loader counted so far. A total that fell means that the loader was made anew: it is counted from 0.

        Args:
            totals: by the names that `DEFINITIONS` has under `feeds`, and `bad_samples_<cause>`. A name that belongs to no metric is
                reported once.
        """
        for name, value in totals.items():
            before = self._totals.get(name)
            if value == before:
                continue
            self._totals[name] = value
            if (counter := self._counter_feeds.get(name)) is not None:
                counter.inc(_grown(value - before if before is not None and value > before else value))
            elif (gauge := self._gauge_feeds.get(name)) is not None:
                gauge.set(value)
            elif name.startswith(BAD_SAMPLES):
                cause = name.removeprefix(BAD_SAMPLES)
                counter = self._counter_feeds[name] = self._series(self._counters["bad_samples_total"], cause)
                counter.inc(_grown(value))
            else:
                self._report_once(name)

    def checkpoint(self, *, step: int, size_bytes: int, duration_seconds: float, blocking_seconds: float) -> None:
        """A checkpoint is committed.

        Args:
            step: it holds.
            size_bytes: of all its files.
            duration_seconds: from the snapshot to the commit.
            blocking_seconds: that training stood still for it.
        """
        self.resumed(step=step, timestamp=time.time())
        self._gauges["checkpoint_bytes"].set(size_bytes)
        self._gauges["checkpoint_duration_seconds"].set(duration_seconds)
        self._gauges["checkpoint_blocking_seconds"].set(blocking_seconds)

    def resumed(self, *, step: int, timestamp: float) -> None:
        """The run continues from a checkpoint that was committed at `timestamp` (Unix seconds): its age counts from there."""
        self._checkpoint_time = timestamp
        self._gauges["checkpoint_last_timestamp_seconds"].set(timestamp)
        self._gauges["checkpoint_step"].set(step)

    def checkpoint_failed(self) -> None:
        """A save failed."""
        self._counters["checkpoint_failures_total"].inc()

    def _checkpoint_age(self) -> float:
        age = time.time() - self._checkpoint_time
        return age if math.isnan(age) else max(age, 0.0)  # a clock that was set back is no negative age

    def _series(self, metric: _M, *labels: str) -> _M:
        known = self._known[metric]  # the client's own look-up converts and locks: it takes longer than the rest of a call
        series = known.get(labels)
        if series is None:
            if len(known) >= MAX_SERIES:
                return metric.labels(*(OTHER for _ in labels))
            series = known[labels] = metric.labels(*map(_text, labels))
        return cast(_M, series)

    def _report_once(self, name: str) -> None:
        if name not in self._unheard_of and len(self._unheard_of) < MAX_SERIES:
            self._unheard_of.add(name)
            _log.warning("the loader's total %r belongs to no metric: declare it in monitoring/definitions.py", name)


class _ConstantLabels(Collector):
    """Everything in a registry, with the same labels on every series and without `_created`, which would double the number of series."""

    def __init__(self, inner: CollectorRegistry, labels: Mapping[str, str]) -> None:
        self._inner = inner
        self._labels = dict(labels)

    def collect(self) -> Iterator[Metric]:
        for metric in self._inner.collect():
            kept = (sample for sample in metric.samples if not sample.name.endswith("_created"))
            metric.samples = [sample._replace(labels={**sample.labels, **self._labels}) for sample in kept]
            yield metric


def _grown(amount: float) -> float:
    """What a counter can take: a clock that jumped or a NaN adds nothing."""
    return amount if 0 < amount < math.inf else 0.0


def _text(value: str) -> str:
    """UTF-8 that can be sent: a file name may hold bytes that are none."""
    return value.encode("utf-8", "replace").decode("utf-8")
