"""The end of a run for a person: the next commands, and the answer to a start of a run that was finished before.

The answer comes before ranks meet and networks are built, where every rank is sure to find the same one. Ranks of one node see the same run
folder. On several nodes only rank 0 needs to see it, and only rank 0 asks the store of `checkpoint.url`, so such runs go the usual way.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from monitoring.run_files import COMMIT, SETTINGS
from pipeline.config import Config, to_mapping
from pipeline.training.checkpoint.files import CheckpointInvalid, folder_name, verify
from pipeline.training.record.run_folder import RunFolder, last_saved_step
from pipeline.training.resume import changed_settings
from pipeline.training.slurm.attempts import is_finished
from shards.console import next_command
from shards.counting import counted
from shards.errors import StoreError
from shards.store import Store

_WITHOUT_EFFECT = ("monitoring.", "watchdog.")  # sections that change nothing of a finished run


def next_step(run: Path) -> str:
    """The line that says what to do with a finished run."""
    return next_command("python", "launch/export.py", str(run), str(run / "encoder.safetensors"), storage={})


def finished_before(config: Config[Any]) -> str | None:
    """Sentences for the start of a run that was finished before; None if there is something to do or to refuse.

    A run whose settings have changed goes the usual way, because the change may be refused, or ask for an evaluation. So does a run whose
    last checkpoint is gone, damaged or can't be asked for, and one of several ranks that may see different things: ranks on several nodes,
    or those of a run with `checkpoint.url`. A rank that ended alone would leave the others waiting for it.

    Args:
        config: settings of this start.
    """
    if not _ranks_agree(config.checkpoint.url):
        return None
    run, steps = Path(config.run), config.training.steps
    if not is_finished(run, steps) or config.checkpoint.resume == "none":
        return None
    try:
        before, now = yaml.safe_load((run / SETTINGS).read_text(encoding="utf-8")), to_mapping(config)
        if before["checkpoint"]["url"] != now["checkpoint"]["url"]:
            return None
        changed = [line for line in changed_settings(before, now) if not line.startswith(_WITHOUT_EFFECT)]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return None
    saved = last_saved_step(run) or 0
    if changed or not _is_kept(config, saved):
        return None
    return (
        f"finished before: {counted(saved, 'step is', 'steps are')} done, everything is in {run}; nothing was trained now\n"
        f"to train on, give more --training.steps than {saved}; to start anew, give another --run\n{next_step(run)}"
    )


def _ranks_agree(url: str) -> bool:
    """Returns whether every rank finds the same answer: there is one rank, or all are on one node and look at its files alone."""
    size = os.environ.get("WORLD_SIZE", "1")
    return size == "1" or (os.environ.get("LOCAL_WORLD_SIZE") == size and not url)


def _is_kept(config: Config[Any], step: int) -> bool:
    """Returns whether the checkpoint of a step is where the settings say: byte for byte in a folder, by its commit file in a store."""
    url = config.checkpoint.url or str(RunFolder(Path(config.run), writes=False).checkpoints.absolute())
    try:
        store = Store(url, config.data.storage_options if "://" in url else None)
        if store.local is not None:
            verify(store, step)
        return store.size(f"{folder_name(step)}/{COMMIT}") is not None
    except (StoreError, CheckpointInvalid):  # the usual way explains it
        return False
