"""Writes the dashboards: `python -m monitoring.dashboards [FOLDER] [--runbook URL]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from monitoring.dashboards import DASHBOARDS, FOLDER, RUNBOOK, render


def main() -> None:
    """Writes one file per dashboard."""
    parser = argparse.ArgumentParser(prog="python -m monitoring.dashboards", description="Writes Grafana's dashboards of a run as JSON.")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="folder to write to (default: monitoring/grafana)")
    parser.add_argument("--runbook", default=RUNBOOK, help="address of docs/operations.md that the panels link to (default: %(default)s)")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name in DASHBOARDS:
        path = arguments.folder / f"{name}.json"
        path.write_text(render(name, arguments.runbook), encoding="utf-8")
        print(path)


main()
