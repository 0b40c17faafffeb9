"""The end of a run for a person: the next commands, and the answer to a start of a run that was finished before.

The answer needs the run folder alone, so that it comes before ranks meet and networks are built. Every rank finds the same answer, because
all of them see the run folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from monitoring.run_files import COMMIT, SETTINGS
from pipeline.config import Config, to_mapping
from pipeline.training.checkpoint.files import folder_name
from pipeline.training.record.run_folder import RunFolder, last_saved_step
from pipeline.training.resume import changed_settings
from pipeline.training.slurm.attempts import is_finished
from shards.console import next_command
from shards.counting import counted

_WITHOUT_EFFECT = ("monitoring.", "watchdog.")  # sections that change nothing of a finished run


def next_step(run: Path) -> str:
    """The line that says what to do with a finished run."""
    return next_command("python", "launch/export.py", str(run), str(run / "encoder.safetensors"), storage={})


def finished_before(config: Config[Any]) -> str | None:
    """Sentences for the start of a run that was finished before; None if there is something to do or to refuse.

    A run whose settings have changed goes the usual way, because the change may be refused, or ask for an evaluation. So does a run whose
    last checkpoint is gone.

    Args:
        config: settings of this start.
    """
    run, steps = Path(config.run), config.training.steps
    if not is_finished(run, steps) or config.checkpoint.resume == "none":
        return None
    try:
        before = yaml.safe_load((run / SETTINGS).read_text(encoding="utf-8"))
        if before["checkpoint"]["url"] != to_mapping(config)["checkpoint"]["url"]:
            return None
        changed = [line for line in changed_settings(before, to_mapping(config)) if not line.startswith(_WITHOUT_EFFECT)]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return None
    saved = last_saved_step(run) or 0
    kept = config.checkpoint.url or (RunFolder(run, writes=False).checkpoints / folder_name(saved) / COMMIT).exists()
    if changed or not kept:
        return None
    return (
        f"finished before: {counted(saved, 'step is', 'steps are')} done, everything is in {run}; nothing was trained now\n"
        f"to train on, give more --training.steps than {saved}; to start anew, give another --run\n{next_step(run)}"
    )
