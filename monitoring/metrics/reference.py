"""The reference page of all metrics, made from their definitions: python -m monitoring.metrics.reference > docs/metrics.md"""

from __future__ import annotations

from monitoring.metrics.definitions import DEFINITIONS, PREFIX, Definition

_HEAD = """# Metrics of a run

The metrics are declared in `monitoring/metrics/definitions.py`. This page is made from them by
`python -m monitoring.metrics.reference > docs/metrics.md`.

Every series also carries the labels `run`, `rank` and `node`. Counts and rates are those of one
rank, so a sum over ranks is the run's. A histogram has the series `_bucket`, `_sum` and `_count`.
The values of the label `cause`, and what to do about each, are in docs/operations.md ("Bad samples"
and "The store fails").

There are also `context_encoder_build_info`, with the labels `version`, `torch` and `recipe`, and
the process's own metrics from Prometheus's client: `process_open_fds`,
`process_resident_memory_bytes`, `process_cpu_seconds_total` and others.

How the metrics get to Prometheus is in docs/monitoring.md. What to do about them is in
docs/operations.md. How to add a metric is in docs/extending.md.

| metric | type | labels | meaning |
|---|---|---|---|
"""


def page() -> str:
    """Returns the whole page, as Markdown."""
    return _HEAD + "".join(f"{_row(definition)}\n" for definition in DEFINITIONS)


def _row(definition: Definition) -> str:
    values = {label: sorted({each[index] for each in _values(definition)}) for index, label in enumerate(definition.labels)}
    labels = "; ".join(f"`{label}`: {', '.join(known)}" if known else f"`{label}`" for label, known in values.items())
    where = (" Only where there is a GPU." if definition.only_with_gpu else "") + (" Only rank 0." if definition.only_on_first_rank else "")
    meaning = definition.help + where
    return f"| `{PREFIX}{definition.name}` | {definition.kind} | {labels} | {meaning} |"


def _values(definition: Definition) -> list[tuple[str, ...]]:
    """Sets of label values that the definition names."""
    return [*definition.known, *definition.feeds.values()] if definition.labels else []


if __name__ == "__main__":
    print(page(), end="")
