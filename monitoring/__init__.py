"""Metrics of a run for Prometheus: numbers of the training loop in, one HTTP endpoint a node out.

The training loop hands numbers that it has anyway to one small object, `RunMetrics`. A `Publication` has them served by a process beside
the ranks, in which a `MetricsServer` answers, and `TargetsFile` gives Prometheus the address. `MonitoringConfig` holds the settings.
Nothing here knows the pipeline, and nothing here may stop a training job or slow it down. Names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monitoring.endpoint.identity import RankIdentity
    from monitoring.endpoint.publish import Publication
    from monitoring.endpoint.server import MetricsServer
    from monitoring.endpoint.targets import TargetsFile
    from monitoring.metrics.run_metrics import DEFINITIONS, PREFIX, Definition, RunMetrics
    from monitoring.settings import EndpointError, MonitoringConfig

__all__ = [
    "RunMetrics",
    "Definition",
    "DEFINITIONS",
    "PREFIX",
    "MonitoringConfig",
    "EndpointError",
    "RankIdentity",
    "Publication",
    "MetricsServer",
    "TargetsFile",
]
_MODULES = {
    "MonitoringConfig": "settings",
    "EndpointError": "settings",
    "RankIdentity": "endpoint.identity",
    "Publication": "endpoint.publish",
    "MetricsServer": "endpoint.server",
    "TargetsFile": "endpoint.targets",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'metrics.run_metrics')}"), name)
