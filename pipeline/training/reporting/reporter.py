"""Everything that a run reports while it goes on: a line or bar on the console, a line a step in the history, metrics for Prometheus.

Losses stay on the device between two logged steps, because reading them waits for the device. They are read every `log_every` steps, for
all steps since the last time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from monitoring.metrics.run_metrics import RunMetrics
from pipeline.config import Config, to_mapping
from pipeline.recipes.player import Player
from pipeline.stream.loader import Batch, StreamLoader
from pipeline.training.checkpoint.store import Checkpoint, SaveOutcome
from pipeline.training.held_back.evaluation import Evaluation
from pipeline.training.held_back.sheet import Sheet
from pipeline.training.phases import StepTimes
from pipeline.training.ranks.world import World
from pipeline.training.record.environment import environment
from pipeline.training.record.grid import save_grid
from pipeline.training.record.run_folder import RunFolder
from pipeline.training.record.samples_digest import samples_text
from pipeline.training.reporting.alarms import Alarms
from pipeline.training.reporting.console import Progress
from pipeline.training.reporting.flops import peak_of
from pipeline.training.reporting.learning import Learning
from pipeline.training.resume import changed_settings
from pipeline.training.step import StepResult, rate_jump
from pipeline.training.supervision.watchdog import restart_count
from shards.counting import counted


@dataclass(frozen=True)
class StepFacts:
    """One step, as the loop reports it.

    Attributes:
        step: steps of the run that are done, this one included.
        batch: this rank's slice of the batch.
        result: losses and gradient norms.
        rate: factor of the learning rates.
        seconds: time since the end of the step before, the wait for the batch included.
        wait_seconds: part of `seconds` that was spent waiting for the batch.
        samples: digest of the samples, summed over all ranks.
        starvation: sum over the ranks of `Reporter.starvation` when the step began.
        times: reads the times of the steps that the device has finished meanwhile; called after the losses are read, which waits for it.
    """

    step: int
    batch: Batch
    result: StepResult
    rate: float
    seconds: float
    wait_seconds: float
    samples: int
    starvation: Sequence[int]
    times: Callable[[], Sequence[StepTimes]]


class Reporter:
    """The console, the history and the metrics of one rank.

    Args:
        config: settings of the run.
        world: ranks of the run.
        folder: run folder.
        loader: loader, whose counters become metrics.
        players: players of the recipe.
        metrics: metrics of this rank.
        flops_per_image: operations that a picture costs; NaN if unknown.
    """

    def __init__(
        self,
        config: Config[Any],
        world: World,
        folder: RunFolder,
        loader: StreamLoader,
        players: Sequence[Player],
        metrics: RunMetrics,
        flops_per_image: float,
    ) -> None:
        self._config, self._world, self._folder, self._loader, self._players = config, world, folder, loader, players
        self._attempt = folder.attempts() + 1 if world.is_first else 0
        self._unread: list[tuple[dict[str, Any], StepResult]] = []
        self._seconds = self._wait_seconds = 0.0
        self._steps = 0
        self._named_failures: set[tuple[str, int]] = set()
        self._progress = Progress(config.training.steps, enabled=world.is_first)
        self.metrics = metrics
        self.metrics.follow(loader.counters.totals)
        self._flops_per_image = flops_per_image
        self._peak_flops = peak_of(world.device, config.training.precision, config.monitoring.peak_teraflops)
        self.metrics.model(flops_per_image, self._peak_flops)
        self.learning = Learning(config.evaluation, folder, metrics, self.say)
        self.alarms = Alarms(config.watchdog, players, world.size, folder, metrics, self.say)

    def say(self, text: str) -> None:
        """Prints a line on the console of rank 0."""
        if self._world.is_first:
            self._progress.message(text)

    def begin(self, found: Checkpoint | None, largest_slice: int, evaluation: Evaluation | str) -> None:
        """Reports the start of this attempt: lines on the console, `config.yaml`, and the event `start`.

        Args:
            found: checkpoint that the run continues from; None for a new run.
            largest_slice: samples of the rank that has most of a global batch.
            evaluation: evaluation of the run, or a sentence about why it has none.
        """
        wanted, size, step = self._config, self._world.size, found.step if found else 0
        config = replace(wanted, data=self._loader.config.data)  # with the orientation of pictures that the run began with
        slices = "" if size == 1 else f" in slices of up to {largest_slice}"
        self._progress.begin(step)
        self.say(f"recipe {config.recipe}, world size {size} ({self._world.device.type}), batch {config.training.global_batch}{slices}")
        for line in self._loader.describe():
            self.say(line)
        self.say(f"run folder {self._folder.path}")
        if found is not None:
            self.metrics.resumed(step=step, timestamp=float(found.facts["saved_at"]))
            self.say(
                f"continues after step {step} of {config.training.steps}"
                if step < config.training.steps
                else f"finished before: {counted(step, 'step is', 'steps are')} done; to train on, give more --training.steps than {step}"
            )
            for change in changed_settings(found.facts["config"], to_mapping(config)):
                self.say(f"changed since the checkpoint: {change}")
            if config.data.orientation != wanted.data.orientation and self._loader.may_turn:
                kept, asked = config.data.orientation, wanted.data.orientation
                self.say(f"data.orientation stays {kept}, as the run began; only a new run takes {asked}")
            if step < config.training.steps and (jump := rate_jump(found.facts["config"], config, step)):
                self.say(jump)
        self._folder.write_config(to_mapping(config))
        if self._world.is_first and isinstance(evaluation, str):
            self.learning.not_evaluated(evaluation)
        elif self._world.is_first and not isinstance(evaluation, str):
            self.learning.resume(step, evaluation.digest)
        self._peak_flops = self._world.sum(torch.full((1,), self._peak_flops, dtype=torch.float64)).item()  # of all ranks from here on
        self._folder.event(
            "start",
            attempt=self._attempt,
            world_size=size,
            step=step,
            position=self._loader.state_dict(),
            global_batch=config.training.global_batch,
            shares=self._loader.samples_per_dataset(),
            recipe=config.recipe,
            restarts=restart_count(),
            mode=config.training.mode,
            device=self._world.device.type,
            decoder=self._loader.decoder.description,
            flops_per_image=self._flops_per_image,
            peak_flops=self._peak_flops,
            versions=environment() if self._world.is_first else {},
        )

    @property
    def starvation(self) -> tuple[int, int]:
        """Two integers that every step sums over the ranks; see `Alarms.starvation`."""
        return self.alarms.starvation

    def step(self, facts: StepFacts) -> None:
        """Reports a step."""
        training, step, batch = self._config.training, facts.step, facts.batch
        self.metrics.learning_rates({each.name: each.optimiser.learning_rate * facts.rate for each in self._players})
        self._seconds, self._wait_seconds = self._seconds + facts.seconds, self._wait_seconds + facts.wait_seconds
        self._steps += 1
        self.alarms.check_starvation(step, facts.seconds, facts.wait_seconds, *facts.starvation)
        self.metrics.step(
            step=step,
            epoch=batch.epoch,
            progress=step / training.steps,
            seconds=facts.seconds,
            images=len(batch.sample_ids),
            data_wait_seconds=facts.wait_seconds,
        )
        row = {
            "step": step,
            "attempt": self._attempt,
            "epoch": batch.epoch,
            "batch": batch.index,
            "samples": samples_text(facts.samples),
            "rate": facts.rate,
        }
        self._unread.append((row, facts.result))
        if step % training.log_every == 0 or step == training.steps:
            self._log(facts)
        for each in facts.times():
            self.metrics.step_times(each.phases, each.own)

    def _log(self, facts: StepFacts) -> None:
        step, batch = facts.step, facts.batch
        images_per_second = self._config.training.global_batch * self._steps / self._seconds if self._seconds else 0.0
        wait_fraction = self._wait_seconds / self._seconds if self._seconds else 0.0
        utilisation = images_per_second * self._flops_per_image / self._peak_flops
        known = {"model_flop_utilisation": round(utilisation, 4)} if math.isfinite(utilisation) else {}
        losses = self.flush(images_per_second=round(images_per_second, 2), data_wait_share=round(wait_fraction, 4), **known)
        self.metrics.losses(losses)
        self._name_cache_failures()
        self.metrics.mask_coverage(float(batch.masks.float().mean()))
        players = sorted(self._players, key=lambda each: "reconstruction" not in losses.get(each.name, {}))  # the painter first, unnamed
        shown = {
            f"{each.name} {part}" if number else part: value
            for number, each in enumerate(players)
            for part, value in sorted(losses.get(each.name, {}).items(), key=lambda pair: pair[0] != "reconstruction")
            if part != "total" or len(losses[each.name]) == 1
        }
        norms = [facts.result.gradient_norms[each.name] for each in players if each.name in facts.result.gradient_norms]
        rates = [each.optimiser.learning_rate * facts.rate for each in players]
        self._progress.update(step, shown, images_per_second, wait_fraction, batch.epoch, norms, rates, utilisation)
        self._seconds = self._wait_seconds = 0.0
        self._steps = 0

    def flush(self, **facts: float) -> dict[str, dict[str, float]]:
        """Reads the losses that are still on the device into the history.

        Args:
            facts: further facts for each line.

        Returns:
            The losses of the last step: player -> part -> mean over the global batch.
        """
        rows, last = [], dict[str, dict[str, float]]()
        for row, result in self._unread:
            last = result.read()
            self.alarms.check_numbers(row["step"], result.skipped)
            rows.append({**row, "losses": last, "gradient_norms": result.gradient_norms, "skipped": result.skipped, **facts})
            self.metrics.gradient_norms(result.gradient_norms)
            self.alarms.check_collapse(row["step"], last)
        self._unread.clear()
        self._folder.history(rows)
        return last

    def evaluation(self, step: int, found: Mapping[str, Any] | None) -> None:
        """Reports an evaluation on held-back pictures, on rank 0.

        Args:
            step: steps of the run that are done.
            found: figures of the evaluation, as `Evaluation` returns them; None if no picture could be read.
        """
        if found is None:
            self.say(f"step {step}: none of the held-back pictures can be read; {self._folder.quarantine} names them")
        elif self._world.is_first:
            self.learning.add({"step": step, "attempt": self._attempt, **found})

    def pictures(self, step: int, sheet: Sheet | None) -> None:
        """Writes a picture grid, on rank 0. A full disk costs the grid, not the run.

        Args:
            step: steps of the run that are done.
            sheet: pictures of the grid; None on other ranks.
        """
        if not self._world.is_first or sheet is None:
            return
        try:
            title = f"step {step}, {sheet.origin}"
            save_grid(self._folder.picture(step), sheet.paintings, sheet.l1, sheet.baseline_l1, title)
        except OSError as error:
            self.say(f"step {step}: the picture grid could not be written: {error}")

    def saved(self, report: SaveOutcome) -> None:
        """Reports a checkpoint that was written, or could not be. Called by the thread that writes it."""
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

    def close(self) -> None:
        """Ends the console's bar."""
        self._progress.close()

    def _name_cache_failures(self) -> None:
        """Names shards that could not be cached, once each; their samples are read as ranges."""
        failures = self._loader.cache_failures()
        for shard in failures.keys() - self._named_failures:
            self._named_failures.add(shard)
            self.say(f"not cached: {failures[shard]}")
