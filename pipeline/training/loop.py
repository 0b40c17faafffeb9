"""The run: from a configuration to a trained encoder, however often it is stopped on the way.

`pretrain` reads top to bottom in the order of a run: join the ranks, open the run, resume it from its newest checkpoint, take steps until
there are enough or a signal requests a stop, and save. Everything that the run has is in `Run`, everything that changes in `State`.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline import recipes
from pipeline.config import Config, to_mapping
from pipeline.stream.loader import Batch, StreamLoader
from pipeline.training.checkpoint.store import Checkpoint, CheckpointStore
from pipeline.training.device_batches import arrive
from pipeline.training.engine.compilation import begin_step, check_compiler
from pipeline.training.engine.engine import Engine
from pipeline.training.failures import cause_of
from pipeline.training.held_back.evaluation import Evaluation
from pipeline.training.held_back.opening import open_evaluation
from pipeline.training.held_back.sheet import sheet_of
from pipeline.training.mask_shapes import SHAPES, shapes_digest
from pipeline.training.ranks.launcher import with_launcher_mode
from pipeline.training.ranks.world import World, join
from pipeline.training.record.run_folder import RunFolder
from pipeline.training.record.samples_digest import samples_digest
from pipeline.training.reporting.flops import flops_per_image
from pipeline.training.reporting.reporter import Reporter, StepFacts
from pipeline.training.reporting.telemetry import published, rank_metrics
from pipeline.training.resume import build_engines, find_checkpoint
from pipeline.training.run_loader import open_loader
from pipeline.training.step import TrainStep, rate_factor
from pipeline.training.supervision.interruption import Interruption
from pipeline.training.supervision.watchdog import Watchdog, restart_count
from shards.counting import counted
from shards.keyed import key_of
from shards.store import Store


@dataclass(frozen=True)
class Outcome:
    """The end of a run's attempt.

    Attributes:
        step: steps of the run that are done.
        finished: whether all steps are done.
        reason: "finished", or the signal that requested the stop.
        folder: run folder.
        world_size: ranks of this attempt.
        rank: rank of this process.
        learned: sentences about what the newest evaluation found; empty without one, and on other ranks than 0.
    """

    step: int
    finished: bool
    reason: str
    folder: Path
    world_size: int
    rank: int
    learned: str = ""

    def __str__(self) -> str:
        if self.finished:
            learned = f"\n{self.learned}" if self.learned else ""
            return (
                f"finished: {counted(self.step, 'step')} with {counted(self.world_size, 'rank')}, everything is in {self.folder}{learned}"
            )
        return f"stopped after step {self.step} ({self.reason}), saved: the same command continues from there"


@dataclass(frozen=True)
class Run:
    """Everything that one attempt of a run has, from its opening to its end.

    Attributes:
        config: settings of the run.
        world: ranks of the run.
        interruption: holds the signal that requests a stop.
        watchdog: ends this process if the loop hangs.
        folder: run folder.
        loader: batches of this rank.
        checkpoints: checkpoints of the run.
        engines: networks and optimisers, in the order of their turns.
        train_step: trains the engines on a batch.
        reporter: console, history and metrics.
        evaluation: evaluation on held-back pictures, or a sentence about why there is none.
    """

    config: Config[Any]
    world: World
    interruption: Interruption
    watchdog: Watchdog
    folder: RunFolder
    loader: StreamLoader
    checkpoints: CheckpointStore
    engines: Sequence[Engine]
    train_step: TrainStep
    reporter: Reporter
    evaluation: Evaluation | str


@dataclass
class State:
    """The position of a run.

    Attributes:
        step: steps that are done.
        saved_step: step of the newest checkpoint; -1 if there is none.
    """

    step: int = 0
    saved_step: int = -1


def pretrain(config: Config[Any], interruption: Interruption) -> Outcome:
    """Trains a recipe from the newest checkpoint of its run to the last step, or to a signal.

    Args:
        config: everything that the run depends on.
        interruption: catches the signals that request a stop; installed before this is called.

    Raises:
        ExplainedError: the run can't start or can't go on; the message names the next thing to do.
    """
    config = dataclasses.replace(config, training=with_launcher_mode(config.training, os.environ))
    with (
        Watchdog(config) as watchdog,
        join(config.training, watchdog) as world,
        _open_run(config, world, watchdog, interruption) as (run, found),
    ):
        steps, phases = config.training.steps, run.train_step.phases
        state = _resume(run, found)
        with _recorded_failure(run, state):
            _evaluate_start(run, state)
            step_began = time.monotonic()
            for batch, wait_seconds in _batches(run, state):
                phases.begin()
                arrive(batch, phases)
                news = torch.tensor(
                    [interruption.requested is not None, samples_digest(batch.sample_ids.numpy()), *run.reporter.starvation],
                    dtype=torch.int64,
                )
                summing = world.start_sum(news)  # beside the computation
                rate = rate_factor(config.schedule, state.step, steps)
                torch.manual_seed(key_of(config.seed, state.step, world.rank) >> 1)  # for recipes that draw from torch's own generator
                begin_step(config.training, world.device)
                result = run.train_step(batch, rate)
                with phases.collective():
                    world.finish(summing)
                state.step += 1
                now = time.monotonic()
                seconds, step_began = now - step_began, now  # pictures, checkpoints and reports count for the step after them
                phases.end(seconds)
                stop, samples, *starvation = news.tolist()
                run.reporter.step(StepFacts(state.step, batch, result, rate, seconds, wait_seconds, samples, starvation, phases.read))
                if config.training.pictures_every and state.step % config.training.pictures_every == 0:
                    _draw(run, state, batch)
                if stop:
                    break
                if state.step == steps or (config.evaluation.every and state.step % config.evaluation.every == 0):
                    _evaluate(run, state)
                if state.step < steps and state.step % config.checkpoint.every == 0:
                    _save(run, state)
            _save(run, state)
            # every rank waits for the last save: launchers and batch systems take ranks for stuck that outlive the others
            world.on_first(lambda: run.checkpoints.wait(must_succeed=True))
        outcome = _outcome(run, state)
        run.folder.event("end", step=outcome.step, reason=outcome.reason)
        return outcome


@contextmanager
def _open_run(config: Config[Any], world: World, watchdog: Watchdog, interruption: Interruption) -> Iterator[tuple[Run, Checkpoint | None]]:
    """Opens everything that a run has, and closes it in the opposite order, however the run ends.

    Yields:
        The run, and the checkpoint whose weights its engines have; None for a new run.
    """
    with ExitStack() as stack:
        path = Path(config.run)
        folder = world.on_first(lambda: RunFolder(path, writes=True)) or RunFolder(path, writes=False)
        stack.enter_context(closing(folder))
        watchdog.open_stacks()
        if (restarts := restart_count()) > 0:
            folder.event("restart", restarts=restarts, attempt=watchdog.attempt)
        metrics = rank_metrics(config, world, watchdog)
        publication = stack.enter_context(published(metrics, config, world, folder, watchdog.attempt))
        watchdog.note_startup("opening the data set")
        recipe = recipes.make(config.recipe, config.method, config.seed, config.data.storage_options)
        waiting = partial(_stop_waiting, world, interruption)
        loader = stack.enter_context(open_loader(config, recipe, world, folder, waiting))
        recipes.check_labels(recipe, [each.manifest for each in loader.datasets])
        reporter = Reporter(config, world, folder, loader, recipe.players, metrics, flops_per_image(recipe))
        watchdog.note_startup("loading the newest checkpoint")
        checkpoints = _checkpoints(config, folder, reporter)
        found = find_checkpoint(config, checkpoints, world, loader.decoder.description, recipe.mask)
        watchdog.note_startup("bringing the networks onto the devices")
        if compiled := check_compiler(config.training, world.device):
            reporter.say(compiled)
        engines = build_engines(recipe, found, world, config.training)
        for engine in engines:
            stack.enter_context(engine)
        if found is not None:
            loader.load_state_dict(found.facts["position"])
            config = dataclasses.replace(config, data=loader.config.data)  # with the orientation of pictures that the run began with
        train_step = TrainStep(recipe, engines, world, config.training, loader.datasets)
        stack.enter_context(closing(reporter))
        stack.enter_context(closing(checkpoints))  # before all others: the folder is released only when no save is being written
        stack.callback(watchdog.at, "end")
        evaluation = open_evaluation(stack, config, recipe, engines, world, loader)
        if publication is not None:
            reporter.say(publication.summary)
            publication.alert_on_failure = True  # from now on a failure must raise an alert; before, an error is on the starter's console
        yield Run(config, world, interruption, watchdog, folder, loader, checkpoints, engines, train_step, reporter, evaluation), found


def _resume(run: Run, found: Checkpoint | None) -> State:
    """Reports the start of this attempt, and returns the state that it continues from."""
    run.reporter.begin(found, run.train_step.largest_slice, run.evaluation)
    return State(found.step, found.step) if found is not None else State()


def _evaluate_start(run: Run, state: State) -> None:
    """Evaluates the random start, or the checkpoint of an attempt that was stopped where an evaluation was due."""
    every = run.config.evaluation.every
    due = every > 0 and (state.step % every == 0 or state.step >= run.config.training.steps)
    if run.world.broadcast(due and not run.reporter.learning.has(state.step)):
        run.watchdog.note_startup("evaluating on held-back pictures")
        _evaluate(run, state)


def _evaluate(run: Run, state: State) -> None:
    """Evaluates the networks on held-back pictures, where there are any."""
    if isinstance(run.evaluation, str):
        return
    if state.step > 0:
        run.watchdog.at("evaluation", state.step)
    run.reporter.evaluation(state.step, run.evaluation())


def _draw(run: Run, state: State, batch: Batch) -> None:
    """Draws a picture grid: of the same held-back pictures each time, or of the batch where nothing is held back."""
    if isinstance(run.evaluation, str):
        run.reporter.pictures(state.step, sheet_of(run.train_step.paintings(batch), "pictures of this batch"))
    else:
        run.watchdog.at("evaluation", state.step)
        run.reporter.pictures(state.step, run.evaluation.sheet())


class _StoppedWaiting(Exception):
    """A stop was requested while the only rank waited for a batch."""


def _stop_waiting(world: World, interruption: Interruption) -> None:
    """Ends the wait for a batch if a stop is requested. The loader calls this once a second while it waits, possibly as long as the store
    is down. A single rank may stop at once. With several, the others already wait in the next step's collective, so the stop has to travel
    with that batch."""
    if world.size == 1 and interruption.requested is not None:
        raise _StoppedWaiting


def _batches(run: Run, state: State) -> Iterator[tuple[Batch, float]]:
    """Yields batches while there are steps to take, each with the seconds that it was waited for."""
    batches = iter(run.loader)
    while state.step < run.config.training.steps:
        began = time.monotonic()
        run.watchdog.at("data", state.step + 1, activity=run.loader.counters)
        try:
            batch = next(batches)
        except _StoppedWaiting:
            return
        run.watchdog.at("step", state.step + 1)
        yield batch, time.monotonic() - began


def _save(run: Run, state: State) -> None:
    """Saves a checkpoint of the current step, unless this step is already saved."""
    run.watchdog.at("checkpoint", state.step)
    began = time.monotonic()
    run.reporter.flush()  # steps that a checkpoint holds are never taken again, so their lines must be in the history
    if state.step == state.saved_step:
        return
    state.saved_step = state.step
    tensors: dict[str, Mapping[str, Tensor]] = {}
    for engine in run.engines:
        tensors |= engine.full_state()
    if not run.world.is_first:
        return
    facts = {
        "recipe": run.config.recipe,
        "position": run.loader.state_dict(),
        "config": to_mapping(run.config),
        "world_size": run.world.size,
        "mode": run.config.training.mode,
        "decoder": run.loader.decoder.description,
        SHAPES: shapes_digest(run.loader.config.mask),
        "stored_side": run.loader.stored_side,
        "torch": str(torch.__version__),
        "saved_at": time.time(),
    }
    run.checkpoints.save(Checkpoint(state.step, facts, tensors), began)


@contextmanager
def _recorded_failure(run: Run, state: State) -> Iterator[None]:
    """Records an error that ends the loop as the event `end`."""
    try:
        yield
    except BaseException as error:
        run.reporter.flush()
        cause = cause_of(error, run.folder.path, run.watchdog.attempt) if run.world.size > 1 else error
        run.folder.event("end", step=state.step, reason=type(cause).__name__, message=str(cause))
        if cause is error:
            raise
        raise cause from error


def _outcome(run: Run, state: State) -> Outcome:
    finished = state.step >= run.config.training.steps
    reason = "finished" if finished else run.interruption.requested or "another rank was asked to stop"
    learned = run.reporter.learning.conclusion() if run.world.is_first else ""
    return Outcome(state.step, finished, reason, run.folder.path, run.world.size, run.world.rank, learned)


def _checkpoints(config: Config[Any], folder: RunFolder, reporter: Reporter) -> CheckpointStore:
    url = config.checkpoint.url
    store = Store(url, config.data.storage_options if "://" in url else None) if url else Store(str(folder.checkpoints.absolute()))
    settings = config.checkpoint
    return CheckpointStore(store, settings.keep_last, settings.keep_every, settings.read_back, reporter.saved, folder.sync)
