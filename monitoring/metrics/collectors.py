"""Two collectors that Prometheus's client lacks: a histogram filled from counts made elsewhere, and labels that every series has."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class CountedHistogram(Collector):
    """A histogram whose observations were sorted into buckets elsewhere.

    Args:
        name: name of the metric, with its unit.
        text: help text.
        unit: unit at the end of the name; empty for none.
        buckets: upper bounds of the buckets, without the infinite one.
    """

    def __init__(self, name: str, text: str, unit: str, buckets: Sequence[float]) -> None:
        self._name, self._text, self._unit = name, text, unit
        self._bounds = [*map(str, map(float, buckets)), "+Inf"]
        self._counts = [0.0] * len(self._bounds)
        self._sum = 0.0
        self._lock = threading.Lock()

    def add(self, bucket: int, observations: float) -> None:
        """Adds observations to a bucket, which lie above the bounds of all lower buckets."""
        with self._lock:
            self._counts[bucket] += observations

    def add_sum(self, amount: float) -> None:
        """Adds to the sum of the observations."""
        with self._lock:
            self._sum += amount

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            counts, total = list(self._counts), self._sum
        buckets = list(zip(self._bounds, accumulate(counts), strict=True))
        yield HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=total, unit=self._unit)


class ConstantLabels(Collector):
    """Exposes a registry with the same labels added to every series, and without `_created`, which would double the number of series.

    Args:
        inner: registry whose metrics are exposed.
        labels: labels to add to every series.
        before: function that is called each time before the registry is read.
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
