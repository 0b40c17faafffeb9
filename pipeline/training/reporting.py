"""What a run tells people while it goes on: a line or bar on the console, a line a step in the history, metrics for
Prometheus.

Losses stay on the device between two logged steps: reading them waits for the device, so it is done every `log_every`
steps for all of them.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from monitoring.exporter import Exporter
from monitoring.metrics import RunMetrics
from monitoring.targets import TargetsFile
from pipeline.config import Config
from pipeline.stream.loader import Batch, StreamLoader
from pipeline.training.checkpoint import SaveReport
from pipeline.training.distributed import World
from pipeline.training.progress import Progress
from pipeline.training.run_folder import RunFolder, samples_text
from pipeline.training.step import StepResult


class Reporting:
    """The console, the history and the metrics of one rank.

    Args:
        config: of the run.
        world: the ranks.
        folder: the run folder.
        loader: whose counters become metrics.
        first_step: steps that were done before this attempt.
    """

    def __init__(self, config: Config[Any], world: World, folder: RunFolder, loader: StreamLoader, first_step: int) -> None:
        self._config, self._world, self._folder, self._loader = config, world, folder, loader
        self._closing = ExitStack()
        self._waiting: list[tuple[dict[str, Any], StepResult]] = []
        self._seconds = self._wait_seconds = 0.0
        self._steps = 0
        self.attempt = 0
        """Which attempt of the run this is, kept with every line of the history."""
        self._told: set[tuple[str, int]] = set()
        self.progress = Progress(config.training.steps, first_step, enabled=world.is_first)
        self._closing.callback(self.progress.close)
        logging.basicConfig(format=f"rank {world.rank}: %(message)s")
        node = os.uname().nodename
        run = Path(config.run).name
        self.metrics = RunMetrics(
            run, world.rank, world.size, node, version=_version(), torch_version=str(torch.__version__), recipe=config.recipe
        )
        if config.monitoring.enabled:
            port = config.monitoring.port and config.monitoring.port + world.local_rank
            exporter = Exporter(self.metrics.registry, config.monitoring.address, port, config.monitoring.token_file)
            self._closing.callback(exporter.close)
            target = TargetsFile(folder.targets, exporter.target, run=run, rank=world.rank, world_size=world.size, node=node)
            self._closing.callback(target.close)
            self.say(f"metrics of rank 0: http://{exporter.target}/metrics, of all ranks: {folder.targets}/")

    def say(self, text: str) -> None:
        """A line on the console, from rank 0."""
        if self._world.is_first:
            self.progress.message(text)

    def step(self, step: int, batch: Batch, result: StepResult, rate: float, seconds: float, wait_seconds: float, samples: int) -> None:
        """A step is done.

        Args:
            step: steps of the run, this one included.
            batch: of this rank.
            result: of the step.
            rate: factor of the learning rates.
            seconds: that the step took, the wait for its batch included.
            wait_seconds: of it spent waiting for the batch.
            samples: a number that is equal for two steps with the same samples, over all ranks.
        """
        training = self._config.training
        self._seconds, self._wait_seconds, self._steps = self._seconds + seconds, self._wait_seconds + wait_seconds, self._steps + 1
        if result.skipped:
            self.metrics.nonfinite()
            self.say(f"step {step}: a gradient of {', '.join(result.skipped)} is not finite, its weights stay as they were")
        self.metrics.step(
            step=step,
            epoch=batch.epoch,
            progress=step / training.steps,
            seconds=seconds,
            images=len(batch.sample_ids),
            data_wait_seconds=wait_seconds,
        )
        row = {
            "step": step,
            "attempt": self.attempt,
            "epoch": batch.epoch,
            "batch": batch.index,
            "samples": samples_text(samples),
            "rate": rate,
        }
        self._waiting.append((row, result))
        if step % training.log_every == 0 or step == training.steps:
            self._log(step, batch)

    def _log(self, step: int, batch: Batch) -> None:
        images_per_second = self._config.training.global_batch * self._steps / self._seconds if self._seconds else 0.0
        share = self._wait_seconds / self._seconds if self._seconds else 0.0
        losses = self.flush(images_per_second=round(images_per_second, 2), data_wait_share=round(share, 4))
        self.metrics.losses(losses)
        self.metrics.data(self._loader.counters.totals())
        self._tell_failures()
        self.metrics.mask_coverage(float(batch.masks.float().mean()))
        shown = {
            f"{player} {part}": value
            for player, parts in losses.items()
            for part, value in parts.items()
            if part != "total" or len(parts) == 1
        }
        self.progress.update(step, shown, images_per_second, share, batch.epoch)
        self._seconds = self._wait_seconds = 0.0
        self._steps = 0

    def _tell_failures(self) -> None:
        """Names shards that could not be cached, once each; their samples are read as ranges."""
        failures = self._loader.cache_failures()
        for shard in failures.keys() - self._told:
            self._told.add(shard)
            self.say(f"not cached: {failures[shard]}")

    def flush(self, **facts: float) -> dict[str, dict[str, float]]:
        """Reads the losses that are still on the device into the history; returns those of the last step."""
        rows, last = [], dict[str, dict[str, float]]()
        for row, result in self._waiting:
            last = result.read()
            rows.append({**row, "losses": last, "gradient_norms": result.gradient_norms, "skipped": result.skipped, **facts})
            self.metrics.gradient_norms(result.gradient_norms)
        self._waiting.clear()
        self._folder.history(rows)
        return last

    def rates(self, rates: dict[str, float]) -> None:
        """The learning rates of the players."""
        self.metrics.learning_rates(rates)

    def saved(self, report: SaveReport) -> None:
        """A checkpoint was written, or could not be."""
        if report.error is not None:
            self.metrics.checkpoint_failed()
            self._folder.event("checkpoint_failed", step=report.step, error=report.error)
            self.say(f"step {report.step}: the checkpoint could not be written: {report.error}")
            return
        self.metrics.checkpoint(
            step=report.step, size_bytes=report.bytes, duration_seconds=report.seconds, blocking_seconds=report.blocked_seconds
        )
        self._folder.event(
            "checkpoint", step=report.step, bytes=report.bytes, seconds=round(report.seconds, 3), blocked=round(report.blocked_seconds, 3)
        )

    def resumed(self, step: int, saved_at: float) -> None:
        """The run continues from a checkpoint."""
        self.metrics.resumed(step=step, timestamp=saved_at)

    def close(self) -> None:
        """Ends the console's bar and the endpoint."""
        self._closing.close()


def _version() -> str:
    try:
        return metadata.version("context-encoders")
    except metadata.PackageNotFoundError:
        return "unknown"


class Stopwatch:
    """Seconds since it was last asked."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        return seconds
