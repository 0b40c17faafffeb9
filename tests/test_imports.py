"""The import rules of pyproject.toml hold, and are broken by what they forbid."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.conftest import ROOT

PACKAGES = ("shards", "pipeline", "monitoring", "launch")
FORBIDDEN = {
    "shards need neither the pipeline nor monitoring": ("shards/keyed.py", "import monitoring.metrics.definitions"),
    "monitoring needs neither the pipeline nor data sets": ("monitoring/metrics/collectors.py", "import shards.store"),
    "the pipeline reads data sets and never builds them": ("pipeline/stream/loader.py", "import shards.build.build"),
    "only the training reports to monitoring": ("pipeline/stream/order.py", "import monitoring.metrics.run_metrics"),
    "the pipeline follows an image": ("pipeline/objective.py", "import pipeline.recipes.player"),
    "the training, from the loop down to what it writes": ("pipeline/training/step.py", "import pipeline.training.loop"),
    "the stream, from the loader down to the order": ("pipeline/stream/order.py", "import pipeline.stream.loader"),
    "shards, from the commands down to what everybody may import": ("shards/dataset/manifest.py", "import shards.build.plan"),
    "monitoring, from what is served down to what is measured": ("monitoring/metrics/definitions.py", "import monitoring.report.page"),
    "the endpoint's process starts without torch and NumPy": ("monitoring/endpoint/main.py", "import numpy"),
    "signals are caught before anything slow is imported": ("pipeline/training/supervision/stacks.py", "import torch"),
}
"""Contract -> a file and an import that the contract forbids there."""


def checked(folder: Path) -> str:
    """Returns the output of `lint-imports` for the packages in a folder."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False).stdout


def test_every_contract_is_broken_by_what_it_forbids(tmp_path: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "*.json"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    contracts = [each["name"] for each in tomllib.loads((tmp_path / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]]
    assert sorted(contracts) == sorted(FORBIDDEN)
    assert "0 broken" in checked(tmp_path)
    for file, line in FORBIDDEN.values():
        path = tmp_path / file
        path.write_text(path.read_text() + f"\n{line}\n")
    said = checked(tmp_path)
    assert not [name for name in FORBIDDEN if f"{name} BROKEN" not in said], said
