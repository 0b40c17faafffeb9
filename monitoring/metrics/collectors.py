"""What Prometheus's client lacks: a histogram that is filled from totals counted elsewhere, and labels that every series has."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class CountedHistogram(Collector):
    """A histogram whose observations somebody else has put into buckets.

    Args:
        name: with its unit.
        text: help.
        unit: at the end of the name; empty for none.
        buckets: upper bounds, without the infinite one.
    """

    def __init__(self, name: str, text: str, unit: str, buckets: Sequence[float]) -> None:
        self._name, self._text, self._unit = name, text, unit
        self._bounds = [*map(str, map(float, buckets)), "+Inf"]
        self._counts = [0.0] * len(self._bounds)
        self._sum = 0.0
        self._lock = threading.Lock()

    def add(self, bucket: int, observations: float) -> None:
        """So many more are in a bucket and in none below it."""
        with self._lock:
            self._counts[bucket] += observations

    def add_sum(self, amount: float) -> None:
        """The sum of the observations has grown."""
        with self._lock:
            self._sum += amount

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            counts, total = list(self._counts), self._sum
        buckets = list(zip(self._bounds, accumulate(counts), strict=True))
        yield HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=total, unit=self._unit)


class ConstantLabels(Collector):
    """Everything in a registry, with the same labels on every series and without `_created`, which would double the number of series.

    Args:
        inner: the registry.
        labels: that are added.
        before: called each time before the registry is read.
    """

    def __init__(self, inner: CollectorRegistry, labels: Mapping[str, str], before: Callable[[], None]) -> None:
        self._inner = inner
        self._labels = dict(labels)
        self._before = before

    def collect(self) -> Iterator[Metric]:
        self._before()
        for metric in self._inner.collect():
            kept = (sample for sample in metric.samples if not sample.name.endswith("_created"))
            metric.samples = [sample._replace(labels={**sample.labels, **self._labels}) for sample in kept]
            yield metric
