"""The frame that all dashboards of a run share: variables, annotations, links to each other, rows of panels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.builder import Builder as SdkBuilder
from grafana_foundation_sdk.models import dashboard as models

from monitoring.dashboards.panels import PROMETHEUS, Builder
from monitoring.dashboards.queries import FIRING, RUN, largest, series
from monitoring.metrics.definitions import PREFIX

TAG = "context-encoder"


@dataclass(frozen=True)
class Row:
    """A headline and the panels below it, from left to right. A line of panels is 24 columns wide."""

    title: str
    panels: Sequence[Builder]


def assemble(uid: str, title: str, description: str, rows: Sequence[Row], runbook: str) -> models.Dashboard:
    """Builds a dashboard.

    Args:
        uid: identifier in Grafana's addresses, which stays when the title changes.
        title: title after the project's name.
        description: one sentence about the dashboard.
        rows: rows from top to bottom.
        runbook: address of docs/operations.md.
    """
    builder = (
        builders.Dashboard(f"Context encoder: {title}")
        .uid(uid)
        .description(description)
        .tags([TAG])
        .timezone("browser")
        .time("now-6h", "now")
        .refresh("30s")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .variables([_datasource(), *_labels(), _Constant("runbook", runbook)])
        .annotations(_annotations())
        .links(
            [
                builders.DashboardLink("The run's dashboards")
                .type(models.DashboardLinkType.DASHBOARDS)
                .tags([TAG])
                .include_vars(True)
                .keep_time(True),
                builders.DashboardLink("Operations")
                .type(models.DashboardLinkType.LINK)
                .url("${runbook}")
                .icon("doc")
                .tooltip("What to do about each sign: docs/operations.md")
                .target_blank(True),
            ]
        )
    )
    for row in rows:
        builder.with_row(builders.Row(row.title))
        for panel in row.panels:
            builder.with_panel(panel)
    dashboard = builder.build()
    for number, placed in enumerate(dashboard.panels or (), start=1):
        placed.id_val = number
    return dashboard


class _Constant(builders.ConstantVariable):
    """A constant that is neither shown nor put into addresses, for which the SDK's builder has no method."""

    def __init__(self, name: str, value: str) -> None:
        super().__init__(name)
        self.value(value)
        self._internal.hide = models.VariableHide.HIDE_VARIABLE
        self._internal.skip_url_sync = True


def _datasource() -> builders.DatasourceVariable:
    return builders.DatasourceVariable("datasource").label("Prometheus").type("prometheus")


def _labels() -> list[builders.QueryVariable]:
    """Returns the variables of the labels. Each offers the values that the variables before it leave; the newest runs come first."""
    ascending, descending = models.VariableSort.NATURAL_ASC, models.VariableSort.NATURAL_DESC
    every = models.VariableOption(text=["All"], value=["$__all"])
    return [
        _label("job", "Job", "", ascending).current(every),
        _label("run", "Run", 'job=~"$job"', descending),
        _label("node", "Node", 'job=~"$job",run=~"$run"', ascending).current(every),
        _label("rank", "Rank", 'job=~"$job",run=~"$run",node=~"$node"', ascending).current(every),
    ]


def _label(name: str, label: str, among: str, sort: models.VariableSort) -> builders.QueryVariable:
    return (
        builders.QueryVariable(name)
        .label(label)
        .datasource(PROMETHEUS)
        .query(f"label_values({PREFIX}world_size{{{among}}}, {name})")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(sort)
        .multi(True)
        .include_all(True)
        .all_value(".+")  # because a proxy refuses expressions with a list of a thousand ranks
    )


class _Event(models.AnnotationQuery):
    """An annotation with `titleFormat`, which the SDK's model lacks: Grafana's Prometheus source makes an annotation's text from it."""

    text = ""

    def to_json(self) -> dict[str, object]:
        return {**super().to_json(), "titleFormat": self.text}


class _Mark(builders.AnnotationQuery):
    def __init__(self, name: str, expression: str, text: str, colour: str) -> None:
        super().__init__()
        self._internal = event = _Event()
        event.text = text
        self.name(name).datasource(PROMETHEUS).enable(True).icon_color(colour).expr(expression)


def _annotations() -> list[SdkBuilder[models.AnnotationQuery]]:
    return [
        _Mark("Restarts", _changes("attempt"), "attempt {{attempt}} of {{run}}", "orange"),
        _Mark("Checkpoints", _changes("checkpoint_step"), "checkpoint {{checkpoint_step}} of {{run}}", "blue"),
        _Mark("Firing alerts", f"max by (alertname, run) ({FIRING})", "{{alertname}} ({{run}})", "red"),
    ]


def _changes(name: str) -> str:
    """Returns an expression with the value as a label wherever it exceeds all values of the hour before, which makes one mark per change.

    `changes()` looks at a single series, and a restarted rank has another series when its port changed."""
    value = series(name, RUN, 'rank="0"')  # rank 0 alone, because all ranks report the same
    now, earlier = largest(value), largest(f"max_over_time({value}[1h] offset $__interval)")
    return f'count_values by (run) ("{name}", {now} > 0 unless {now} <= {earlier})'
