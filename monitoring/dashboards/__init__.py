"""Grafana's dashboards of a run, as code: in go the metrics that monitoring/metrics/definitions.py declares, out comes
monitoring/grafana/*.json.

    python -m monitoring.dashboards            # writes the committed files anew
    python -m monitoring.dashboards FOLDER --runbook https://example.org/docs/operations.md

Needs grafana-foundation-sdk (the extra `dashboards`); a run needs neither. Every dashboard begins with the state of the run, goes on with
where the time goes, and ends with the details.
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
"""Name of the file -> what makes the dashboard of the address of docs/operations.md."""

RUNBOOK = "/public/context-encoder/operations.md"
"""Where Grafana itself serves docs/operations.md when docs/ is mounted at this place below its `public` folder."""


def render(name: str, runbook: str = RUNBOOK) -> str:
    """The JSON of a dashboard, as Grafana reads it from a file."""
    return json.dumps(DASHBOARDS[name](runbook), cls=JSONEncoder, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


__all__ = ["render", "DASHBOARDS", "FOLDER", "RUNBOOK"]
