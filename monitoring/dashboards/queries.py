"""Expressions of PromQL over the metrics of a run, with Grafana's variables in them.

Counts and rates are those of one rank, so their sum over ranks is the run's. A mean over ranks hides the rank that holds up the others,
so values of all ranks are shown with their extremes.
"""

from __future__ import annotations

from dataclasses import dataclass

from monitoring.metrics.definitions import PREFIX

RUN = 'job=~"$job",run=~"$run"'
"""Labels of all series of the chosen runs."""
RANKS = f'{RUN},node=~"$node",rank=~"$rank"'
"""Labels of the series of the chosen ranks of the chosen runs."""
FIRING = 'ALERTS{alertstate="firing",run=~"$run"}'


@dataclass(frozen=True)
class Query:
    """One expression of a panel.

    Attributes:
        expression: expression of PromQL.
        legend: name of each series; `{{label}}` stands for the value of a label.
    """

    expression: str
    legend: str


def series(name: str, of: str = RANKS, only: str = "") -> str:
    """Returns a selector of series. `name` is given without the prefix of the run's metrics; `up` and `process_...` have none."""
    full = name if name == "up" or name.startswith("process_") else PREFIX + name
    return f"{full}{{{of}{',' if only else ''}{only}}}"


def rule(name: str) -> str:
    """Returns a selector of the series that a recording rule of monitoring/prometheus/rules makes, one per run."""
    return f'context_encoder:{name}{{run=~"$run"}}'


def rate(name: str, of: str = RANKS, only: str = "") -> str:
    """Returns the growth of a counter per second."""
    return f"rate({series(name, of, only)}[$__rate_interval])"


def increase(name: str, of: str = RANKS, only: str = "") -> str:
    """Returns the growth of a counter between two points of a curve."""
    return f"increase({series(name, of, only)}[$__rate_interval])"


def a_step(name: str) -> str:
    """Returns the growth of a counter in a mean step of a rank, one series per rank."""
    return f"{rate(name)} / {rate('steps_total')}"


def largest(expression: str) -> str:
    """Returns the largest value over the ranks of each run."""
    return f"max by (run) ({expression})"


def smallest(expression: str) -> str:
    """Returns the smallest value over the ranks of each run."""
    return f"min by (run) ({expression})"


def total(expression: str) -> str:
    """Returns the sum over the ranks of each run."""
    return f"sum by (run) ({expression})"


def or_zero(expression: str) -> str:
    """Returns an expression that is 0 where the given one has no series, because absence means zero there."""
    return f"({expression}) or on () vector(0)"


def spread(expression: str, what: str) -> tuple[Query, ...]:
    """Returns three queries that show all ranks of a run: the largest, the median and the smallest value, named after `what`."""
    return (
        Query(largest(expression), f"highest {what} ({{{{run}}}})"),
        Query(f"quantile by (run) (0.5, {expression})", f"median {what} ({{{{run}}}})"),
        Query(smallest(expression), f"lowest {what} ({{{{run}}}})"),
    )


def percentiles(histogram: str) -> tuple[Query, ...]:
    """Returns the median, the 95th and the 99th percentile of a histogram over all ranks of a run."""
    buckets = f"sum by (run, le) ({rate(histogram + '_bucket')})"
    return tuple(Query(f"histogram_quantile({part}, {buckets})", f"{name} ({{{{run}}}})") for part, name in PERCENTILES.items())


PERCENTILES = {0.5: "median", 0.95: "95 %", 0.99: "99 %"}
