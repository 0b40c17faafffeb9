"""What all dashboards of a run share: variables, marks of events, links to each other, rows of panels."""

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
    """A headline and the panels below it, from left to right; a line is full at 24 columns."""

    title: str
    panels: Sequence[Builder]


def assemble(uid: str, title: str, description: str, rows: Sequence[Row], runbook: str) -> models.Dashboard:
    """A dashboard of rows.

    Args:
        uid: in Grafana's addresses: it stays when the title changes.
        title: behind the project's name.
        description: one sentence.
        rows: from top to bottom.
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
                .tooltip("What to do about every sign: docs/operations.md")
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
    """Neither shown nor carried along in addresses, for which the SDK's builder has no method."""

    def __init__(self, name: str, value: str) -> None:
        super().__init__(name)
        self.value(value)
        self._internal.hide = models.VariableHide.HIDE_VARIABLE
        self._internal.skip_url_sync = True


def _datasource() -> builders.DatasourceVariable:
    return builders.DatasourceVariable("datasource").label("Prometheus").type("prometheus")


def _labels() -> list[builders.QueryVariable]:
    """Each is asked for among the series that the ones before it leave. The newest names of runs come first."""
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
        .all_value(".+")  # a list of a thousand ranks makes expressions that a proxy refuses
    )


class _Event(models.AnnotationQuery):
    """Adds what the SDK's model leaves out: Grafana's Prometheus source makes the text of a mark from the labels of the series."""

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
    """The value as a label, only where it is larger than all of it that was seen in the hour before: a mark a change.

    `changes()` looks at one series, and a restarted rank has another one when its port changed."""
    value = series(name, RUN, 'rank="0"')  # rank 0 alone: a thousand ranks say the same
    now, earlier = largest(value), largest(f"max_over_time({value}[1h] offset $__interval)")
    return f'count_values by (run) ("{name}", {now} > 0 unless {now} <= {earlier})'
