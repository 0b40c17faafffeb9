"""The metrics of a rank from the moment when the ranks have joined, so that Prometheus also sees a run that can't start again."""

from __future__ import annotations

import logging
import os
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from monitoring.endpoint.identity import RankIdentity
from monitoring.endpoint.publish import Publication
from monitoring.metrics.hardware import Gpu
from monitoring.metrics.run_metrics import RunMetrics
from pipeline.config import Config
from pipeline.training.ranks.world import World
from pipeline.training.record.run_folder import RunFolder
from pipeline.training.supervision.watchdog import Watchdog, restart_count


class Telemetry:
    """Opened by every rank, and closed after everything else that it reports of.

    Args:
        config: of the run.
        world: the ranks.
        folder: the run folder.
        watchdog: of this process.

    Attributes:
        metrics: of this rank.

    Raises:
        EndpointError: a setting of monitoring.* can't be used on this machine.
    """

    def __init__(self, config: Config[Any], world: World, folder: RunFolder, watchdog: Watchdog) -> None:
        logging.basicConfig(format=f"rank {world.rank}: %(message)s")  # before anything here has something to say
        run, node = config.monitoring.run_name or Path(config.run).name, os.uname().nodename
        self.metrics = RunMetrics(
            run, world.rank, world.size, node, version=_version(), torch_version=str(torch.__version__), recipe=config.recipe
        )
        self.metrics.heartbeat(watchdog.age)
        self.metrics.attempt(watchdog.attempt, restart_count())
        if world.device.type == "cuda":
            gpu = Gpu.find(f"GPU-{str(torch.cuda.get_device_properties(world.device).uuid).removeprefix('GPU-')}")
            if gpu is not None:
                self.metrics.gpu(gpu)
        self._export: Publication | None = None
        if config.monitoring.enabled:
            identity = RankIdentity(folder.path, run, node, world.rank, world.size, world.local_rank, world.local_size, watchdog.attempt)
            self._export = Publication(self.metrics.registry, config.monitoring, identity, folder.targets)

    @property
    def summary(self) -> str:
        """Where the metrics are read, for the console; empty where nobody does, or another rank sees to it."""
        return self._export.summary if self._export is not None else ""

    def training_begins(self) -> None:
        """From here on the run is missed where an error ends it. A first attempt that is refused before has told so whoever started it."""
        if self._export is not None:
            self._export.alert_on_failure = True

    def close(self) -> None:
        """Ends the endpoint."""
        if self._export is not None:
            self._export.close()


def _version() -> str:
    try:
        return metadata.version("context-encoders")
    except metadata.PackageNotFoundError:
        return "unknown"
