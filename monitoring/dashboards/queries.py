"""Expressions of PromQL over the metrics of a run, with Grafana's variables in them.

Counts and rates are those of one rank: their sum over ranks is the run's. A mean over ranks hides the one that holds up the others, so
whatever is shown of all ranks is shown with its extremes.
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
        expression: PromQL.
        legend: name of its series; `{{label}}` is the value of a label.
    """

    expression: str
    legend: str


def series(name: str, of: str = RANKS, only: str = "") -> str:
    """A selector. `name` without the prefix of the run's metrics; those of the process have names of their own."""
    full = name if name == "up" or name.startswith("process_") else PREFIX + name
    return f"{full}{{{of}{',' if only else ''}{only}}}"


def rule(name: str) -> str:
    """A series that a recording rule of monitoring/prometheus/rules makes, one a run."""
    return f'context_encoder:{name}{{run=~"$run"}}'


def rate(name: str, of: str = RANKS, only: str = "") -> str:
    """How much a counter grows a second."""
    return f"rate({series(name, of, only)}[$__rate_interval])"


def increase(name: str, of: str = RANKS, only: str = "") -> str:
    """How much a counter grows between two points of a curve."""
    return f"increase({series(name, of, only)}[$__rate_interval])"


def a_step(name: str) -> str:
    """What a rank counts in a mean step of its own, one series a rank."""
    return f"{rate(name)} / {rate('steps_total')}"


def largest(expression: str) -> str:
    """The largest over the ranks of each run."""
    return f"max by (run) ({expression})"


def smallest(expression: str) -> str:
    """The smallest over the ranks of each run."""
    return f"min by (run) ({expression})"


def total(expression: str) -> str:
    """The sum over the ranks of each run."""
    return f"sum by (run) ({expression})"


def or_zero(expression: str) -> str:
    """0 where there is nothing at all: an absence that is the answer."""
    return f"({expression}) or on () vector(0)"


def spread(expression: str, what: str) -> tuple[Query, ...]:
    """The ranks of a run at a glance: largest, median, smallest. Called `what`."""
    return (
        Query(largest(expression), f"highest {what} ({{{{run}}}})"),
        Query(f"quantile by (run) (0.5, {expression})", f"median {what} ({{{{run}}}})"),
        Query(smallest(expression), f"lowest {what} ({{{{run}}}})"),
    )


def percentiles(histogram: str) -> tuple[Query, ...]:
    """Median, 95th and 99th percentile of a histogram over all ranks of a run."""
    buckets = f"sum by (run, le) ({rate(histogram + '_bucket')})"
    return tuple(Query(f"histogram_quantile({part}, {buckets})", f"{name} ({{{{run}}}})") for part, name in PERCENTILES.items())


PERCENTILES = {0.5: "median", 0.95: "95 %", 0.99: "99 %"}
