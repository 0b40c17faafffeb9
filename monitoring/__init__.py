"""What a run tells Prometheus: metrics in, one HTTP endpoint a rank out.

The training loop calls one small object, `RunMetrics`, with numbers that it has anyway; `Exporter` serves them; `TargetsFile` tells
Prometheus where. Nothing here knows the pipeline, and nothing here may stop a training job or slow it down.
"""

from monitoring.exporter import Exporter, ExporterError
from monitoring.metrics import DEFINITIONS, PREFIX, Definition, RunMetrics
from monitoring.targets import TargetsFile

__all__ = ["RunMetrics", "Definition", "DEFINITIONS", "PREFIX", "Exporter", "ExporterError", "TargetsFile"]
