"""Opens the pictures that a run is evaluated on: those that its loader holds back, or a data set of their own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from pipeline import recipes
from pipeline.config import Config, SourceConfig
from pipeline.recipes.player import Recipe
from pipeline.stream.dataset import Dataset
from pipeline.stream.fixed import FixedChoice, choice_of, held_back_choice
from pipeline.stream.loader import StreamLoader
from pipeline.training.engine.engine import Engine
from pipeline.training.held_back.evaluation import Evaluation
from pipeline.training.ranks.world import World
from shards.errors import ExplainedError
from shards.urls import redacted


class EvaluationError(ExplainedError):
    """The pictures to evaluate on can't be used; the message says why and what to do."""


def open_evaluation(
    stack: ExitStack, config: Config[Any], recipe: Recipe, engines: Sequence[Engine], world: World, loader: StreamLoader
) -> Evaluation | str:
    """Opens the evaluation of a run, on every rank, and begins to read its pictures.

    Args:
        stack: closes what this opens.
        config: settings of the run.
        recipe: recipe of the run.
        engines: engines of the players.
        world: ranks of the run.
        loader: loader of the run, at the position that the run continues from.

    Returns:
        The evaluation, or a sentence about why the run has none.

    Raises:
        ConfigError: the recipe learns labels, and those of the data set of `evaluation.shards` are others.
        EvaluationError: the data set of `evaluation.shards` is one that is trained on.
        ShardError: it can't be read.
    """
    settings = config.evaluation
    if not settings.every:
        return "evaluation.every is 0"
    choice: FixedChoice
    if settings.shards:
        source, first_id = SourceConfig(shards=settings.shards), loader.total_samples
        dataset = Dataset("", source, config.data, config.seed, first_id, loader.counters)
        stack.callback(dataset.close)
        if any(dataset.manifest.fingerprint == each.manifest.fingerprint for each in loader.datasets):
            raise EvaluationError(
                f"evaluation.shards: {redacted(settings.shards)} is trained on as well, so it says nothing about other pictures. Name "
                "another data set, or leave the setting out: then a part of the pictures is held back"
            )
        trained = loader.datasets[0].manifest
        named = dataset.manifest.classes or trained.classes  # numbers without names are taken as they are
        recipes.check_labels(recipe, [trained, dataset.manifest] if named else [dataset.manifest])
        choice = choice_of(loader, dataset, settings.pictures)
    else:
        choice = held_back_choice(loader, settings.pictures)
    if not choice.count:
        if not settings.held_back:
            return "evaluation.held_back is 0 and evaluation.shards names no data set"
        return "the run holds no pictures back, because it began so or its data sets have fewer than 80 pictures; see evaluation.shards"
    evaluation = Evaluation(recipe, engines, world, config.training, choice, loader.quarantine.add)
    stack.callback(evaluation.close)
    return evaluation
