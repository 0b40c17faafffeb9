"""The kinds of panels of the dashboards, each with its unit, limits and a description that says what to do.

A panel's colours mean the same everywhere: green is fine, orange wants a look, red wants somebody; blue and grey judge nothing.
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
"""Longest gap that a line bridges: slow steps leave points out, a run that is down leaves a hole."""


@dataclass(frozen=True)
class Text:
    """What a panel says of itself.

    Attributes:
        title: of the panel.
        meaning: what is shown, and when it is good.
        action: what to do when it is not.
        part: headline of docs/operations.md that says more.
    """

    title: str
    meaning: str
    action: str
    part: str

    @property
    def description(self) -> str:
        """Markdown, with a link to the part."""
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
    """One big number as it is now.

    Args:
        text: see `Text`.
        query: one series a run.
        unit: of Grafana's units.
        steps: from which value on which colour.
        width: of 24 columns.
        limits: smallest and largest value there can be, None where there is none.
        decimals: None lets Grafana choose.
        words: value, or `nan` -> word to show instead, colour.
        empty: what is shown when there is no series.
        name: show the name of the series with its value.
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
    """Curves over time, with a table of last and largest values below.

    Args:
        text: see `Text`.
        queries: A, B, C...
        unit: of the left axis.
        steps: dashed lines at these values; none are drawn without.
        width: of 24 columns.
        limits: of the left axis, None where Grafana chooses.
        stacked: on top of each other: they add up to something.
        bars: for what happens now and then.
        logarithmic: axis, to the base 10; has no 0.
        right: regular expression over names of series -> unit, for those on the right axis.
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
    """Bars of a few series as they are now, in the order of the query; see `number`."""
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
    """A band a series whose colour says how it was when; see `number`."""
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
    """A table with a line a series, without the columns `hidden`."""
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
