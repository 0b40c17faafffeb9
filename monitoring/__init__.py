"""What a run tells Prometheus: metrics in, one HTTP endpoint a node out.

The training loop calls one small object, `RunMetrics`, with numbers that it has anyway; `open_export` has them served from a process
beside the ranks, `Exporter` is the server in it, and `TargetsFile` tells Prometheus where. Nothing here knows the pipeline, and nothing
here may stop a training job or slow it down.
"""

from monitoring.endpoint.export import Export, Place, open_export
from monitoring.endpoint.server import Exporter, ExporterError
from monitoring.endpoint.targets import TargetsFile
from monitoring.metrics.run_metrics import DEFINITIONS, PREFIX, Definition, RunMetrics

__all__ = [
    "RunMetrics",
    "Definition",
    "DEFINITIONS",
    "PREFIX",
    "open_export",
    "Export",
    "Place",
    "Exporter",
    "ExporterError",
    "TargetsFile",
]
