"""What a run tells people while it goes on: a line or bar on the console, a line a step in the history, metrics for
Prometheus.

Losses stay on the device between two logged steps: reading them waits for the device, so it is done every `log_every`
steps for all of them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch

from monitoring.metrics.hardware import peak_flops
from pipeline.config import Config
from pipeline.recipes.player import Player
from pipeline.stream.loader import Batch, StreamLoader
from pipeline.training.checkpoint.store import SaveOutcome
from pipeline.training.phases import StepTimes
from pipeline.training.ranks.world import World
from pipeline.training.record.run_folder import RunFolder
from pipeline.training.record.samples_digest import samples_text
from pipeline.training.reporting.console import Progress
from pipeline.training.reporting.health import CollapseWatch, Starvation
from pipeline.training.reporting.telemetry import Telemetry
from pipeline.training.step import StepResult


class Reporting:
    """The console, the history and the metrics of one rank.

    Args:
        config: of the run.
        world: the ranks.
        folder: the run folder.
        loader: whose counters become metrics.
        first_step: steps that were done before this attempt.
        players: that may declare what a collapse of theirs looks like.
        telemetry: whose metrics are told everything.
    """

    def __init__(
        self,
        config: Config[Any],
        world: World,
        folder: RunFolder,
        loader: StreamLoader,
        first_step: int,
        players: Sequence[Player],
        telemetry: Telemetry,
    ) -> None:
        self._config, self._world, self._folder, self._loader = config, world, folder, loader
        self._closing = ExitStack()
        self._waiting: list[tuple[dict[str, Any], StepResult]] = []
        self._seconds = self._wait_seconds = 0.0
        self._steps = 0
        self.attempt = 0
        """Which attempt of the run this is, kept with every line of the history."""
        self._told: set[tuple[str, int]] = set()
        self._first = True
        self._nonfinite = 0
        self._starvation = Starvation(config.watchdog.starving_share, config.watchdog.starving_seconds)
        self._starving_ranks = 0
        steps = config.watchdog.collapse_steps
        self._collapses = {each.name: CollapseWatch(each.collapse, steps) for each in players if each.collapse is not None and steps}
        self.progress = Progress(config.training.steps, first_step, enabled=world.is_first)
        self._closing.callback(self.progress.close)
        self.metrics = telemetry.metrics
        self.metrics.follow(loader.counters.totals)
        for player in self._collapses:
            self.metrics.collapsed(player, False)
        if telemetry.summary:
            self.say(telemetry.summary)

    def say(self, text: str) -> None:
        """A line on the console, from rank 0."""
        if self._world.is_first:
            self.progress.message(text)

    @property
    def hunger(self) -> tuple[int, int]:
        """What the ranks tell each other about their data, summed with every step: whether this one starves, and then its share of the time
        that it waited, in thousandths."""
        return (1, round(1000 * self._starvation.share)) if self._starvation.starving else (0, 0)

    def step(
        self,
        step: int,
        batch: Batch,
        result: StepResult,
        rate: float,
        seconds: float,
        wait_seconds: float,
        samples: int,
        hunger: Sequence[int],
    ) -> None:
        """A step is done.

        Args:
            step: steps of the run, this one included.
            batch: of this rank.
            result: of the step.
            rate: factor of the learning rates.
            seconds: that the step took, the wait for its batch included.
            wait_seconds: of it spent waiting for the batch.
            samples: a number that is equal for two steps with the same samples, over all ranks.
            hunger: the sum over the ranks of what `hunger` was when the step began.
        """
        training = self._config.training
        self._seconds, self._wait_seconds, self._steps = self._seconds + seconds, self._wait_seconds + wait_seconds, self._steps + 1
        self._watch_numbers(step, result.skipped)
        self._watch_data(step, seconds, wait_seconds, *hunger)
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

    def times(self, steps: Sequence[StepTimes]) -> None:
        """Where the time of steps went, as far as the device is by now."""
        for each in steps:
            self.metrics.step_times(each.phases, each.own)

    def model(self, flops_per_image: float) -> None:
        """What a picture costs; NaN where that is unknown."""
        peak = self._config.monitoring.peak_teraflops * 1e12
        if not peak and self._world.device.type == "cuda":
            peak = peak_flops(torch.cuda.get_device_name(self._world.device), self._config.training.precision)
        self.metrics.model(flops_per_image, peak)

    def _log(self, step: int, batch: Batch) -> None:
        images_per_second = self._config.training.global_batch * self._steps / self._seconds if self._seconds else 0.0
        share = self._wait_seconds / self._seconds if self._seconds else 0.0
        losses = self.flush(images_per_second=round(images_per_second, 2), data_wait_share=round(share, 4))
        self.metrics.losses(losses)
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

    def _watch_numbers(self, step: int, skipped: Sequence[str]) -> None:
        """Non-finite gradients: every step is counted and said, the first and the last in a row are events."""
        if skipped:
            self.metrics.nonfinite()
            self.say(f"step {step}: a gradient of {', '.join(skipped)} is not finite, its weights stay as they were")
            if not self._nonfinite:
                self._folder.event("nonfinite", step=step, players=list(skipped))
            self._nonfinite += 1
        elif self._nonfinite:
            self._folder.event("nonfinite_over", step=step, steps=self._nonfinite)
            self._nonfinite = 0

    def _watch_data(self, step: int, seconds: float, wait_seconds: float, ranks: int, thousandths: int) -> None:
        """Ranks that wait for their data most of the time: the first is reported for all, and the end of the last."""
        if self._first:  # it waited for the first batch, and nothing was prepared ahead
            self._first = False
        elif self._starvation.add(seconds, wait_seconds):
            self.metrics.starving(self._starvation.starving)
        before, self._starving_ranks = self._starving_ranks, ranks
        if ranks and not before:
            share = thousandths / 1000 / ranks
            self._folder.event("starving", step=step, ranks=ranks, share=round(share, 3))
            self.say(
                f"step {step}: {ranks} of {self._world.size} ranks wait for data {share:.0%} of the time. Where processor cores are idle "
                "raise data.threads, where the store is slow data.requests and data.ready_batches; docs/watchdogs.md tells which it is"
            )
        elif before and not ranks:
            self._folder.event("starving_over", step=step)
            self.say(f"step {step}: no rank starves for data any more")

    def _watch_collapse(self, step: int, losses: dict[str, dict[str, float]]) -> None:
        for player, watch in self._collapses.items():
            if not watch.add(losses.get(player, {})):
                continue
            self.metrics.collapsed(player, watch.collapsed)
            means = {part: round(value, 6) for part, value in watch.means.items()}
            shown = ", ".join(f"{part} {value:.4g}" for part, value in means.items())
            if watch.collapsed:
                self._folder.event("collapse", step=step, player=player, means=means, steps=self._config.watchdog.collapse_steps)
                self.say(f"step {step}: the {player} has collapsed ({shown}, means of the steps before). {watch.collapse.advice}")
            else:
                self._folder.event("collapse_over", step=step, player=player, means=means)
                self.say(f"step {step}: the {player} has recovered from its collapse ({shown})")

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
            self._watch_collapse(row["step"], last)
        self._waiting.clear()
        self._folder.history(rows)
        return last

    def rates(self, rates: dict[str, float]) -> None:
        """The learning rates of the players."""
        self.metrics.learning_rates(rates)

    def saved(self, report: SaveOutcome) -> None:
        """A checkpoint was written, or could not be."""
        if report.error is not None:
            self.metrics.checkpoint_failed()
            self._folder.event("checkpoint_failed", step=report.step, error=report.error)
            self.say(f"step {report.step}: the checkpoint could not be written: {report.error}")
            return
        if report.warning is not None:
            self.say(f"step {report.step}: {report.warning}")
        self.metrics.checkpoint(
            step=report.step, size_bytes=report.bytes, duration_seconds=report.seconds, blocking_seconds=report.blocked_seconds
        )
        if report.verified:
            self.metrics.verified(report.step)
        elif self._config.checkpoint.read_back:
            self.metrics.checkpoint_failed()
        self._folder.event(
            "checkpoint",
            step=report.step,
            bytes=report.bytes,
            seconds=round(report.seconds, 3),
            blocked=round(report.blocked_seconds, 3),
            waited=round(report.waited_seconds, 3),
            verified=report.verified,
        )

    def resumed(self, step: int, saved_at: float) -> None:
        """The run continues from a checkpoint."""
        self.metrics.resumed(step=step, timestamp=saved_at)

    def close(self) -> None:
        """Ends the console's bar."""
        self._closing.close()


class Stopwatch:
    """Seconds since it was last asked."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        return seconds
