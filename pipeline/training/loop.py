"""The run: from a configuration to a trained encoder, whatever ends it on the way.

`pretrain` reads top to bottom as what happens: join the ranks, make the recipe's players, continue from the newest
checkpoint, and take steps until there are enough or a signal asks to stop. Everything that is written goes through
one object each: the run folder, the checkpoints, the progress on the console, the metrics.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline import recipes
from pipeline.config import Config, to_mapping
from pipeline.recipes.player import Recipe
from pipeline.stream.loader import Batch, StreamConfig, StreamLoader
from pipeline.stream.order import rank_slice
from pipeline.training.checkpoint.store import Checkpoint, CheckpointStore
from pipeline.training.engine.engine import Contestant
from pipeline.training.ranks import launcher
from pipeline.training.ranks import world as distributed
from pipeline.training.ranks.world import World
from pipeline.training.record.environment import environment
from pipeline.training.record.grid import save_grid
from pipeline.training.record.run_folder import RunFolder
from pipeline.training.record.samples_digest import samples_digest
from pipeline.training.reporting.flops import flops_per_image
from pipeline.training.reporting.reporter import Reporting, Stopwatch
from pipeline.training.reporting.telemetry import Telemetry
from pipeline.training.resume import enter, find
from pipeline.training.step import TrainStep, rate_factor
from pipeline.training.supervision.interruption import Interruption
from pipeline.training.supervision.watchdog import Watchdog, restart_count
from shards.keyed import key_of
from shards.store import Store

_OF_THE_ATTEMPT = ("run", "training.steps", "checkpoint.url", "checkpoint.resume")  # settings that may be others in every attempt


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        step: steps that were done in all.
        finished: whether that is all of them.
        reason: finished, or the signal that asked to stop.
        folder: the run folder.
        world_size: ranks of this attempt.
        rank: of this process.
    """

    step: int
    finished: bool
    reason: str
    folder: Path
    world_size: int
    rank: int

    def __str__(self) -> str:
        if self.finished:
            return f"finished: {self.step} steps with {self.world_size} ranks, everything is in {self.folder}"
        return f"stopped after step {self.step} ({self.reason}), saved: the same command continues from there"


def pretrain(config: Config[Any], interruption: Interruption) -> Outcome:
    """Trains a recipe from where its run folder stands to the end, or to a signal.

    Args:
        config: everything the run depends on.
        interruption: catches the signals that ask to stop; installed before this is called.

    Raises:
        LaunchError, ConfigError, RunFolderError, CheckpointInvalid, OrderError, ShardError, NonFiniteError: each says what to do.
    """
    config = dataclasses.replace(config, training=launcher.with_launcher_mode(config.training, os.environ))
    with ExitStack() as stack:
        watchdog = stack.enter_context(Watchdog(config))
        world = stack.enter_context(distributed.join(config.training, watchdog))
        path = Path(config.run)
        folder = world.on_first(lambda: RunFolder(path, writes=True)) or RunFolder(path, writes=False)
        stack.callback(folder.close)
        watchdog.opened(folder)
        telemetry = Telemetry(config, world, folder, watchdog)
        stack.callback(telemetry.close)
        watchdog.tell("opening the data set")
        recipe = recipes.make(config.recipe, config.method, config.seed)
        loader = stack.enter_context(StreamLoader(_stream_config(config, recipe, world, folder), world.rank, world.size))
        watchdog.follow(loader.counters)
        flops = flops_per_image(recipe) if config.monitoring.enabled else math.nan
        watchdog.tell("loading the newest checkpoint")
        kept = config.checkpoint.keep_last, config.checkpoint.keep_every
        checkpoints = CheckpointStore(_checkpoint_store(config, folder), *kept, config.checkpoint.read_back)
        found = find(config, checkpoints, world, loader.decoder.description)
        watchdog.tell("bringing the networks onto the devices")
        contestants = enter(recipe, found, world, config.training)
        for contestant in contestants:
            stack.callback(contestant.close)
        if found is not None:
            loader.load_state_dict(found.facts["position"])
        reporting = Reporting(config, world, folder, loader, found.step if found else 0, recipe.players, telemetry)
        stack.callback(reporting.close)
        reporting.model(flops)
        checkpoints.before_commit = folder.sync
        stack.callback(checkpoints.close)  # whatever ends the run: nobody else gets the folder while a save goes on
        run = _Run(config, world, folder, recipe, loader, checkpoints, contestants, reporting, interruption, watchdog)
        stack.callback(watchdog.at, "end")
        telemetry.training_begins()
        return run(found)


class _StoppedWaiting(Exception):
    """A stop was asked for while a batch was waited for, and nobody else waits for this rank."""


class _Run:
    """The parts of one attempt, and the loop over them."""

    def __init__(
        self,
        config: Config[Any],
        world: World,
        folder: RunFolder,
        recipe: Recipe,
        loader: StreamLoader,
        checkpoints: CheckpointStore,
        contestants: list[Contestant],
        reporting: Reporting,
        interruption: Interruption,
        watchdog: Watchdog,
    ) -> None:
        self.watchdog = watchdog
        self.config, self.world, self.folder, self.loader = config, world, folder, loader
        self.checkpoints, self.contestants, self.reporting, self.interruption = checkpoints, contestants, reporting, interruption
        self.step = 0
        self.saved_step = -1
        loader.waiting = self._wait_on
        checkpoints.report = reporting.saved
        training = config.training
        self.train_step = TrainStep(
            recipe,
            contestants,
            world,
            global_batch=training.global_batch,
            largest_share=_largest_share(training.global_batch, world.size, recipe.unit),
            micro_batch=training.micro_batch,
            bf16=training.precision == "bf16",
            max_nonfinite_steps=training.max_nonfinite_steps,
        )
        self.recipe = recipe

    def __call__(self, found: Checkpoint | None) -> Outcome:
        self.step = found.step if found else 0
        self._announce(found)
        reason = "finished"
        try:
            if self.step < self.config.training.steps:
                reason = self._train()
            self._save()
            # every rank waits for it: a launcher or batch system that sees some ranks end takes the others for stuck
            self.world.on_first(lambda: self.checkpoints.wait(must_succeed=True))
        except BaseException as error:
            self.reporting.flush()
            self.folder.event("end", step=self.step, reason=type(error).__name__, message=str(error))
            raise
        finished = self.step >= self.config.training.steps
        self.folder.event("end", step=self.step, reason="finished" if finished else reason)
        return Outcome(self.step, finished, reason, self.folder.path, self.world.size, self.world.rank)

    def _train(self) -> str:
        """Takes steps until there are enough or somebody asks to stop; returns why."""
        try:
            return self._steps()
        except _StoppedWaiting as stopped:
            return str(stopped)

    def _steps(self) -> str:
        training = self.config.training
        watch, beside, phases = Stopwatch(), 0.0, self.train_step.phases
        self.watchdog.at("data", self.step + 1)
        for batch in self.loader:
            self.watchdog.at("step", self.step + 1)
            waited = watch.lap()
            phases.begin()
            stop, digest = int(self.interruption.requested is not None), samples_digest(batch.sample_ids.numpy())
            news = torch.tensor([stop, digest, *self.reporting.hunger], dtype=torch.int64)
            telling = self.world.start_sum(news)
            rate = rate_factor(self.config.schedule, self.step, training.steps)
            torch.manual_seed(key_of(self.config.seed, self.step, self.world.rank) >> 1)  # for recipes that draw from torch's own generator
            result = self.train_step(batch, rate)
            with phases.collective():
                self.world.finish(telling)
            self.step += 1
            seconds = beside + waited + watch.lap()
            phases.end(seconds)
            self.reporting.rates({each.player.name: each.player.optimiser.learning_rate * rate for each in self.contestants})
            self.reporting.step(self.step, batch, result, rate, seconds, waited, int(news[1]), news[2:].tolist())
            self.reporting.times(phases.read())
            if training.pictures_every and self.step % training.pictures_every == 0:
                self._draw(batch)
            if self.step >= training.steps:
                return "finished"
            if news[0]:
                return self.interruption.requested or "another rank was asked to stop"
            if self.step % self.config.checkpoint.every == 0:
                self._save()
            self.watchdog.at("data", self.step + 1)
            beside = watch.lap()  # pictures, checkpoints and reports: part of the next step's time, and no wait for data
        raise AssertionError("a loader without a number of epochs has no end")

    def _wait_on(self) -> None:
        """While a batch is waited for, which may be as long as a store is down. Where there are several ranks, those that have their batch
        wait in the step for this one and can't be told of a stop: it is with that batch."""
        if self.world.size == 1 and self.interruption.requested is not None:
            raise _StoppedWaiting(self.interruption.requested)

    def _save(self) -> None:
        """Saves the steps that were done, unless that is so."""
        self.watchdog.at("checkpoint", self.step)
        began = time.monotonic()
        self.reporting.flush()  # steps that a checkpoint holds are never taken again, so their lines must be there
        if self.step == self.saved_step:
            return
        self.saved_step = self.step
        tensors: dict[str, Mapping[str, Tensor]] = {}
        for each in self.contestants:
            tensors |= each.full_state()
        if not self.world.is_first:
            return
        facts = {
            "recipe": self.config.recipe,
            "position": self.loader.state_dict(),
            "config": to_mapping(self.config),
            "world_size": self.world.size,
            "mode": self.config.training.mode,
            "decoder": self.loader.decoder.description,
            "torch": str(torch.__version__),
            "saved_at": time.time(),
        }
        self.checkpoints.save(Checkpoint(self.step, facts, tensors), began)

    def _draw(self, batch: Batch) -> None:
        """Writes the grid of what the networks paint, from the first pictures of rank 0. Every rank paints its own, since weights that
        are divided among the ranks come together in a forward of all of them."""
        networks = self.train_step.networks()
        for network in networks.values():
            network.eval()
        with torch.no_grad():
            shown = slice(0, min(self.config.training.pictures, len(batch.sample_ids)))
            columns = self.recipe.pictures(self.train_step.views(batch, shown), networks)
        try:
            if self.world.is_first:
                save_grid(self.folder.picture(self.step), columns)
        except OSError as error:  # a full disk: no reason to stop
            self.reporting.say(f"step {self.step}: the picture grid could not be written: {error}")
        for network in networks.values():
            network.train()

    def _announce(self, found: Checkpoint | None) -> None:
        config, reporting = self.config, self.reporting
        attempt = self.folder.attempts() + 1 if self.world.is_first else 0
        reporting.attempt = attempt
        share = "" if self.world.size == 1 else f" in shares of up to {self.train_step.largest_share}"
        reporting.say(
            f"recipe {config.recipe}, world size {self.world.size} ({self.world.device.type}), batch {config.training.global_batch}{share}"
        )
        for line in self.loader.describe():
            reporting.say(line)
        reporting.say(f"run folder {self.folder.path}")
        if found is not None:
            reporting.resumed(found.step, float(found.facts["saved_at"]))
            reporting.say(f"continues after step {found.step} of {config.training.steps}")
            for change in _changes(found.facts["config"], to_mapping(config)):
                reporting.say(f"changed since the checkpoint: {change}")
            self.saved_step = found.step
        self.folder.write_config(to_mapping(config))
        self.folder.event(
            "start",
            attempt=attempt,
            world_size=self.world.size,
            step=self.step,
            position=self.loader.state_dict(),
            global_batch=config.training.global_batch,
            shares=self.loader.samples_per_dataset(),
            recipe=config.recipe,
            restarts=restart_count(),
            mode=config.training.mode,
            device=self.world.device.type,
            decoder=self.loader.decoder.description,
            versions=environment() if self.world.is_first else {},
        )


def _stream_config(config: Config[Any], recipe: Recipe, world: World, folder: RunFolder) -> StreamConfig:
    return StreamConfig(
        data=config.data,
        image_size=recipe.image_size,
        global_batch=config.training.global_batch,
        seed=config.seed,
        mask=recipe.mask,
        unit=recipe.unit,
        ranks_on_node=world.local_size,
        quarantine=folder.quarantine,
    )


def _checkpoint_store(config: Config[Any], folder: RunFolder) -> Store:
    if not config.checkpoint.url:
        return Store(str(folder.checkpoints.absolute()))
    return Store(config.checkpoint.url, config.data.storage_options if "://" in config.checkpoint.url else None)


def _largest_share(global_batch: int, world_size: int, unit: int) -> int:
    parts = (rank_slice(global_batch, rank, world_size, unit) for rank in range(world_size))
    return max(int(part.stop - part.start) for part in parts)


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    """Settings that differ, but for those that only say how far and where this attempt goes, and those that there were not before."""
    found = []
    for key in sorted(before.keys() & now.keys()):
        where, old, new = f"{path}{key}", *(list(each) if isinstance(each, tuple) else each for each in (before[key], now[key]))
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _changes(old, new, f"{where}.")
        elif old != new and where not in _OF_THE_ATTEMPT:
            found.append(f"{where}: {old} -> {new}")
    return found
