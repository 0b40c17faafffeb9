"""The metrics of one rank."""

from __future__ import annotations

import pytest

from monitoring import RunMetrics
from pipeline.training.reporting.loader_series import LOADER_SERIES


@pytest.fixture
def metrics() -> RunMetrics:
    return RunMetrics("runs/first", 0, 8, "node-7", version="0.1.0", torch_version="2.9", recipe="features", loader=LOADER_SERIES)
