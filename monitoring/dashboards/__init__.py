"""Grafana's dashboards of a run, as code: the metrics declared in monitoring/metrics/definitions.py in, monitoring/grafana/*.json out.

    python -m monitoring.dashboards            # writes the committed files anew
    python -m monitoring.dashboards FOLDER --runbook https://example.org/docs/operations.md

    training, data_path, cluster, checkpoints   one dashboard each: the state of the run first, then where the time goes, then details
    learning           row of the evaluations on held-back pictures
    state              numbers of the first row that several dashboards share
    frame              everything that all dashboards share: variables, annotations, links, rows
    panels, queries    kinds of panels, and expressions of PromQL

Public names: `render`, `DASHBOARDS`, `FOLDER` and `RUNBOOK`. The package needs grafana-foundation-sdk (the extra `dashboards`), which a
run does not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from monitoring.dashboards.checkpoints import build as build_checkpoints
from monitoring.dashboards.cluster import build as build_cluster
from monitoring.dashboards.data_path import build as build_data_path
from monitoring.dashboards.training import build as build_training

FOLDER = Path(__file__).resolve().parents[1] / "grafana"
DASHBOARDS: Mapping[str, Callable[[str], Dashboard]] = {
    "training": build_training,
    "data_path": build_data_path,
    "cluster": build_cluster,
    "checkpoints": build_checkpoints,
}
"""Name of the file -> function that builds the dashboard, given the address of docs/operations.md."""

RUNBOOK = "/public/context-encoder/operations.md"
"""Address of docs/operations.md in Grafana itself, where docs/ is mounted below its `public` folder."""


def render(name: str, runbook: str = RUNBOOK) -> str:
    """Returns the JSON of a dashboard, as Grafana reads it from a file."""
    return json.dumps(DASHBOARDS[name](runbook), cls=JSONEncoder, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


__all__ = ["render", "DASHBOARDS", "FOLDER", "RUNBOOK"]
