"""Opens the pictures that a run is evaluated on: those that its loader holds back, or a data set of their own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from pipeline.config import Config, SourceConfig
from pipeline.recipes.player import Recipe
from pipeline.stream.dataset import Dataset
from pipeline.stream.fixed import FixedChoice, choice_of, held_back_choice
from pipeline.stream.loader import StreamLoader
from pipeline.training.engine.engine import Engine
from pipeline.training.held_back.evaluation import Evaluation
from pipeline.training.ranks.world import World


def open_evaluation(
    stack: ExitStack, config: Config[Any], recipe: Recipe, engines: Sequence[Engine], world: World, loader: StreamLoader
) -> Evaluation | None:
    """Opens the evaluation of a run, on every rank, and begins to read its pictures.

    Args:
        stack: closes what this opens.
        config: settings of the run.
        recipe: recipe of the run.
        engines: engines of the players.
        world: ranks of the run.
        loader: loader of the run, at the position that the run continues from.

    Returns:
        The evaluation; None if the run is not evaluated, or there is no picture to evaluate on.

    Raises:
        ShardError: the data set of `evaluation.shards` can't be read.
    """
    settings = config.evaluation
    if not settings.every:
        return None
    choice: FixedChoice
    if settings.shards:
        source, first_id = SourceConfig(shards=settings.shards), loader.total_samples
        dataset = Dataset("", source, config.data, config.seed, first_id, loader.counters)
        stack.callback(dataset.close)
        choice = choice_of(loader, dataset, settings.pictures)
    else:
        choice = held_back_choice(loader, settings.pictures)
    if not choice.count:
        return None
    evaluation = Evaluation(recipe, engines, world, config.training, choice, loader.quarantine.add)
    stack.callback(evaluation.close)
    return evaluation
