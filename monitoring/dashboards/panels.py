"""The kinds of panels of the dashboards, each with its unit, limits and a description that says what to do.

The colours of a panel mean the same everywhere: green is fine, orange needs a look, red needs action; blue and grey do not judge.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder as SdkBuilder
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from monitoring.dashboards.queries import Query

Builder = SdkBuilder[models.Panel]
Steps = Sequence[tuple[float | None, str]]
_P = TypeVar("_P", stat.Panel, timeseries.Panel, bargauge.Panel, statetimeline.Panel, table.Panel)

PROMETHEUS = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
NEUTRAL: Steps = ((None, "blue"),)
GAP_MILLISECONDS = 300_000
"""Longest gap that a line bridges: slow steps leave points out, while a run that is down leaves a gap in the line."""


@dataclass(frozen=True)
class Text:
    """Title and description of a panel.

    Attributes:
        title: title of the panel.
        meaning: sentences that say what is shown, and which values are good.
        action: sentences that say what to do about other values.
        part: headline of docs/operations.md that says more.
    """

    title: str
    meaning: str
    action: str
    part: str

    @property
    def description(self) -> str:
        """The description as Markdown, with a link to the part of docs/operations.md."""
        anchor = re.sub(r"[^a-z0-9 -]", "", self.part.lower()).replace(" ", "-")
        return f"{self.meaning}\n\n{self.action}\n\n[Operations: {self.part}](${{runbook}}#{anchor})"


def number(
    text: Text,
    query: Query,
    unit: str,
    steps: Steps,
    *,
    width: int = 3,
    limits: tuple[float | None, float | None] = (0, None),
    decimals: int | None = None,
    words: Mapping[str, tuple[str, str]] | None = None,
    empty: str = "none",
    name: bool = False,
) -> Builder:
    """Builds a panel with one big number, the present value.

    Args:
        text: title and description.
        query: expression with one series per run.
        unit: unit of Grafana.
        steps: (value, colour) pairs; a colour holds from its value on.
        width: width in columns, of 24.
        limits: smallest and largest possible value, None for no limit.
        decimals: number of decimals; None lets Grafana choose.
        words: value, or `nan` -> word to show instead and its colour.
        empty: text to show when there is no series.
        name: shows the name of the series with its value.
    """
    mode = options.BigValueTextMode.VALUE_AND_NAME if name else options.BigValueTextMode.AUTO
    panel = (
        stat.Panel()
        .color_mode(options.BigValueColorMode.BACKGROUND)
        .graph_mode(options.BigValueGraphMode.NONE)
        .text_mode(mode)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .no_value(empty)
        .mappings(_mappings(words or {}))
        .with_target(_target(query, "A").instant())
    )
    if decimals is not None:
        panel.decimals(decimals)
    return _described(panel, text, unit, steps, width, 4, limits)


def curves(
    text: Text,
    queries: Sequence[Query],
    unit: str,
    *,
    steps: Steps = (),
    width: int = 8,
    limits: tuple[float | None, float | None] = (0, None),
    stacked: bool = False,
    bars: bool = False,
    logarithmic: bool = False,
    right: Mapping[str, str] | None = None,
    colours: Mapping[str, str] | None = None,
) -> Builder:
    """Builds a panel with curves over time and a table of their last and largest values below.

    Args:
        text: title and description.
        queries: expressions, called A, B, C and so on in Grafana.
        unit: unit of the left axis.
        steps: (value, colour) pairs; each draws a dashed line at its value.
        width: width in columns, of 24.
        limits: ends of the left axis, None where Grafana chooses.
        stacked: stacks the curves, because they add up to a total.
        bars: draws bars instead of lines, for rare events.
        logarithmic: makes the axis logarithmic to the base 10, which has no 0.
        right: regular expression over names of series -> unit, for the series on the right axis.
        colours: name of a series -> its colour.
    """
    legend = common.VizLegendOptions().show_legend(True).placement(options.LegendPlacement.BOTTOM)
    panel = (
        timeseries.Panel()
        .legend(legend.display_mode(options.LegendDisplayMode.TABLE).calcs(["lastNotNull", "max"]))
        .tooltip(common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI).sort(options.SortOrder.DESCENDING))
        .draw_style(options.GraphDrawStyle.BARS if bars else options.GraphDrawStyle.LINE)
        .fill_opacity(60 if stacked or bars else 0)
        .show_points(options.VisibilityMode.AUTO)
        .span_nulls(GAP_MILLISECONDS)
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(options.StackingMode.NORMAL).group("A"))
    if logarithmic:
        panel.scale_distribution(common.ScaleDistributionConfig().type(options.ScaleDistribution.LOG).log(10))
    if steps:
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(options.GraphThresholdsStyleMode.DASHED))
    for pattern, other in (right or {}).items():
        axis = [_property("custom.axisPlacement", "right"), _property("unit", other), _property("max", None)]
        panel.override_by_regexp(pattern, axis)
    for series, colour in (colours or {}).items():
        panel.override_by_name(series, [_property("color", {"mode": "fixed", "fixedColor": colour})])
    for letter, query in zip("ABCDEFGH", queries, strict=False):
        panel.with_target(_target(query, letter).range())
    return _described(panel, text, unit, steps or NEUTRAL, width, 9, limits)


def ranking(
    text: Text, query: Query, unit: str, steps: Steps, *, largest: float | None = None, words: Mapping[str, tuple[str, str]] | None = None
) -> Builder:
    """Builds a panel with bars of the present values of a few series, in the order of the query; arguments as for `number`."""
    panel = (
        bargauge.Panel()
        .orientation(options.VizOrientation.HORIZONTAL)
        .display_mode(options.BarGaugeDisplayMode.BASIC)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .no_value("none")
        .mappings(_mappings(words or {}))
        .with_target(_target(query, "A").instant())
    )
    return _described(panel, text, unit, steps, 8, 9, (0, largest))


def states(text: Text, queries: Sequence[Query], words: Mapping[str, tuple[str, str]], *, steps: Steps, width: int = 24) -> Builder:
    """Builds a panel with one band per series, whose colour shows its value over time; arguments as for `number`."""
    panel = (
        statetimeline.Panel()
        .show_value(options.VisibilityMode.AUTO)
        .merge_values(True)
        .row_height(0.8)
        .line_width(0)
        .fill_opacity(70)
        .legend(common.VizLegendOptions().show_legend(False).display_mode(options.LegendDisplayMode.LIST))
        .mappings(_mappings(words))
    )
    for letter, query in zip("ABCDEFGH", queries, strict=False):
        panel.with_target(_target(query, letter).range())
    return _described(panel, text, "none", steps, width, 5, (0, None))


def rows(text: Text, query: Query, unit: str, hidden: Sequence[str], *, width: int = 24) -> Builder:
    """Builds a table with one line per series, without the columns `hidden`."""
    panel = table.Panel().align(options.FieldTextAlignment.AUTO).inspect(False)
    panel.with_target(_target(query, "A").instant().format(PromQueryFormat.TABLE))
    exclude = {"excludeByName": dict.fromkeys(hidden, True), "indexByName": {}, "renameByName": {"Value": "ranks"}}
    panel.with_transformation(models.DataTransformerConfig(id_val="organize", options=exclude))
    return _described(panel, text, unit, NEUTRAL, width, 6, (0, None))


def _described(panel: _P, text: Text, unit: str, steps: Steps, width: int, height: int, limits: tuple[float | None, float | None]) -> _P:
    thresholds = dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE)
    base: Steps = () if steps[0][0] is None else ((None, "transparent"),)
    panel.title(text.title).description(text.description).datasource(PROMETHEUS).unit(unit).span(width).height(height)
    panel.thresholds(thresholds.steps([models.Threshold(value=value, color=colour) for value, colour in (*base, *steps)]))
    by_value = isinstance(panel, stat.Panel | bargauge.Panel | statetimeline.Panel)
    mode = models.FieldColorModeId.THRESHOLDS if by_value else models.FieldColorModeId.PALETTE_CLASSIC
    panel.color_scheme(dashboard.FieldColor().mode(mode))
    smallest, largest = limits
    if smallest is not None:
        panel.min(smallest)
    if largest is not None:
        panel.max(largest)
    return panel


def _target(query: Query, letter: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(query.expression).legend_format(query.legend).ref_id(letter)


def _mappings(words: Mapping[str, tuple[str, str]]) -> list[models.ValueMapping]:
    mappings: list[models.ValueMapping] = []
    for value, (word, colour) in words.items():
        result = models.ValueMappingResult(text=word, color=colour, index=len(mappings))
        if value == "nan":
            match = models.DashboardSpecialValueMapOptions(match=models.SpecialValueMatch.NULL_AND_NAN, result=result)
            mappings.append(models.SpecialValueMap(options=match))
        else:
            mappings.append(models.ValueMap(options={value: result}))
    return mappings


def _property(name: str, value: object) -> models.DynamicConfigValue:
    return models.DynamicConfigValue(id_val=name, value=value)
