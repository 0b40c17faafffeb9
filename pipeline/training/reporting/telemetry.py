"""The metrics of a rank, published as soon as the ranks have joined, so that Prometheus also sees a run that can't start again."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import torch

from monitoring.endpoint.identity import RankIdentity
from monitoring.endpoint.publish import Publication
from monitoring.metrics.hardware import Gpu
from monitoring.metrics.run_metrics import RunMetrics
from pipeline.config import Config
from pipeline.training.ranks.world import World
from pipeline.training.record.run_folder import RunFolder, absolute
from pipeline.training.reporting.loader_series import LOADER_SERIES
from pipeline.training.supervision.watchdog import Watchdog, restart_count


def rank_metrics(config: Config[Any], world: World, watchdog: Watchdog) -> RunMetrics:
    """Makes the metrics of this rank.

    Args:
        config: settings of the run.
        world: ranks of the run.
        watchdog: watchdog of this process, which knows the attempt and the age of the loop's last beat.
    """
    logging.basicConfig(format=f"rank {world.rank}: %(message)s")  # before the first warning
    run, node = names_of(config)
    metrics = RunMetrics(
        run,
        world.rank,
        world.size,
        node,
        version=_version(),
        torch_version=str(torch.__version__),
        recipe=config.recipe,
        loader=LOADER_SERIES,
    )
    metrics.heartbeat(watchdog.age)
    metrics.attempt(watchdog.attempt, restart_count())
    if world.device.type == "cuda":
        gpu = Gpu.find(f"GPU-{str(torch.cuda.get_device_properties(world.device).uuid).removeprefix('GPU-')}")
        if gpu is not None:
            metrics.gpu(gpu)
    return metrics


@contextmanager
def published(metrics: RunMetrics, config: Config[Any], world: World, folder: RunFolder, attempt: int) -> Iterator[Publication | None]:
    """Publishes the metrics of this rank while `with` lasts; None if monitoring is disabled.

    Args:
        metrics: metrics of this rank.
        config: settings of the run.
        world: ranks of the run.
        folder: run folder, which gets the targets file.
        attempt: attempt of the run, from 1.

    Raises:
        EndpointError: a setting of monitoring.* can't be used on this machine.
    """
    if not config.monitoring.enabled:
        yield None
        return
    run, node = names_of(config)
    identity = RankIdentity(folder.path, run, node, world.rank, world.size, world.local_rank, world.local_size, attempt)
    with Publication(metrics.registry, config.monitoring, identity, folder.targets) as publication:
        yield publication


def names_of(config: Config[Any]) -> tuple[str, str]:
    """Returns the names of the run and of this machine, as the series carry them."""
    return config.monitoring.run_name or absolute(config.run).name or config.run, os.uname().nodename


def _version() -> str:
    try:
        return metadata.version("context-encoders")
    except metadata.PackageNotFoundError:
        return "unknown"
