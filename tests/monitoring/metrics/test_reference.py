"""The reference page of the metrics holds every declared metric."""

from __future__ import annotations

import subprocess
import sys

from monitoring import DEFINITIONS, PREFIX
from pipeline.training.reporting.loader_series import LOADER_SERIES
from tests.conftest import ROOT


def test_the_page_is_up_to_date() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "monitoring.metrics.reference"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert made.stdout == page, "write it anew: python -m monitoring.metrics.reference > docs/metrics.md"
    for definition in DEFINITIONS:
        assert f"| `{PREFIX}{definition.name}` | {definition.kind} |" in page


def test_the_operations_manual_explains_every_cause_that_the_loader_counts() -> None:
    manual = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    for cause in (*LOADER_SERIES.retry_causes, *LOADER_SERIES.bad_causes):
        assert f"`{cause}`" in manual, f"docs/operations.md does not explain the cause {cause}"
