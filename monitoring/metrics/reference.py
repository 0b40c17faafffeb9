"""The page of all metrics, made from their definitions: python -m monitoring.metrics.reference > docs/metrics.md"""

from __future__ import annotations

from monitoring.metrics.definitions import DEFINITIONS, PREFIX, Definition

_HEAD = """# Metrics of a run

Made by `python -m monitoring.metrics.reference > docs/metrics.md`; `monitoring/metrics/definitions.py` is where they are declared.
Every series also carries `run`, `rank` and `node`, and counts and rates
are those of one rank: a sum over ranks is the run's. A histogram has the series
`_bucket`, `_sum` and `_count`. Beside these are `context_encoder_build_info` with the labels `version`, `torch` and `recipe`, and the
process's own as Prometheus's client has them: `process_open_fds`, `process_resident_memory_bytes`, `process_cpu_seconds_total` and others.
How they get to Prometheus is in docs/monitoring.md, what to do about them in docs/operations.md.

| metric | type | labels | meaning |
|---|---|---|---|
"""


def page() -> str:
    """The whole page, Markdown."""
    return _HEAD + "".join(f"{_row(definition)}\n" for definition in DEFINITIONS)


def _row(definition: Definition) -> str:
    values = {label: sorted({each[place] for each in _values(definition)}) for place, label in enumerate(definition.labels)}
    labels = "; ".join(f"`{label}`: {', '.join(known)}" if known else f"`{label}`" for label, known in values.items())
    meaning = definition.help + (" Only where there is a GPU." if definition.only_with_gpu else "")
    return f"| `{PREFIX}{definition.name}` | {definition.kind} | {labels} | {meaning} |"


def _values(definition: Definition) -> list[tuple[str, ...]]:
    """Label values that are known beforehand."""
    return [*definition.known, *definition.feeds.values()] if definition.labels else []


if __name__ == "__main__":
    print(page(), end="")
