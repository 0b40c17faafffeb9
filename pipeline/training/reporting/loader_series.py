"""The causes and buckets that the loader counts by, handed over to its metrics, because neither imports the other."""

from __future__ import annotations

from monitoring.metrics.definitions import LoaderSeries
from pipeline.stream.counters import REQUEST_BOUNDS
from pipeline.stream.read.retries import CAUSES
from pipeline.stream.read.samples import BAD_CAUSES

LOADER_SERIES = LoaderSeries(retry_causes=CAUSES, bad_causes=BAD_CAUSES, request_bounds=REQUEST_BOUNDS)
"""Causes and buckets of every run."""
