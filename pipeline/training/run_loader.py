"""The loader of a run: its share of every global batch, and the copies of its batches to the device of the rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.config import Config
from pipeline.recipes.player import Recipe
from pipeline.stream.loader import StreamConfig, StreamLoader
from pipeline.training.device_batches import DeviceCopies
from pipeline.training.ranks.world import World
from pipeline.training.record.run_folder import RunFolder


def open_loader(config: Config[Any], recipe: Recipe, world: World, folder: RunFolder, waiting: Callable[[], None]) -> StreamLoader:
    """Opens the loader of this rank; the caller closes it.

    Args:
        config: settings of the run.
        recipe: recipe of the run.
        world: ranks of the run.
        folder: run folder, which gets the list of unreadable samples.
        waiting: called once a second while a batch is waited for.

    Raises:
        ConfigError: as `StreamLoader`.
        OrderError: as `StreamLoader`.
        ShardError: as `StreamLoader`.
    """
    stream = StreamConfig(
        data=config.data,
        image_size=recipe.image_size,
        global_batch=config.training.global_batch,
        seed=config.seed,
        mask=recipe.mask,
        unit=recipe.unit,
        ranks_on_node=world.local_size,
        quarantine=folder.quarantine,
        held_back=0.0 if config.evaluation.shards else config.evaluation.held_back,
    )
    copies = DeviceCopies.to(world.device)
    return StreamLoader(stream, world.rank, world.size, waiting, copies.start if copies else None)
