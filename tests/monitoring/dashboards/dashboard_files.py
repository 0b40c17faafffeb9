"""The committed dashboards as tests read them: panels, and every expression with its place."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tests.conftest import ROOT

FOLDER = ROOT / "monitoring" / "grafana"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
VALUES = {"$__rate_interval": "1m", "$__interval": "15s", "$__range": "6h", "$job": ".+", "$run": ".+", "$node": ".+", "$rank": ".+"}
"""Values that tests substitute for Grafana's variables."""


def load(name: str) -> dict[str, Any]:
    dashboard: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return dashboard


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns all panels except the headlines of rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions(dashboard: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields every expression as (place, expression)."""
    for panel in panels(dashboard):
        for target in panel["targets"]:
            yield f"{dashboard['title']} / {panel['title']} / {target['refId']}", target["expr"]
    for annotation in dashboard["annotations"]["list"]:
        yield f"{dashboard['title']} / {annotation['name']}", annotation["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
            assert asked, variable["query"]
            assert asked[2] == variable["name"]
            yield f"{dashboard['title']} / ${variable['name']}", asked[1]


def substituted(expression: str) -> str:
    """Substitutes values for Grafana's variables, the longest names first."""
    for variable in sorted(VALUES, key=len, reverse=True):
        expression = expression.replace(variable, VALUES[variable])
    return expression
