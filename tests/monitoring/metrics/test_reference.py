"""The page of metrics says what is declared."""

from __future__ import annotations

import subprocess
import sys

from monitoring import DEFINITIONS, PREFIX
from tests.conftest import ROOT


def test_the_page_is_up_to_date() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "monitoring.metrics.reference"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert made.stdout == page, "make it anew: python -m monitoring.metrics.reference > docs/metrics.md"
    for definition in DEFINITIONS:
        assert f"| `{PREFIX}{definition.name}` | {definition.kind} |" in page
