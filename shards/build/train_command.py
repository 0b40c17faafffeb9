"""The command that trains on a data set which was just built, with the configuration and the batch that suit its size."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from shards.urls import SHOWN_OPTIONS, redacted, with_literal_dollars

SMALL_CONFIG, LARGE_CONFIG = "launch/configs/small.yaml", "launch/configs/features.yaml"
LARGE = 100_000
"""Pictures from which on a data set is trained on with the paper's batch and rate, on the GPUs of a node."""
SMALL_BATCH = 16
"""training.global_batch of launch/configs/small.yaml."""
FEWEST = 4
"""Fewest pictures that a command is made for: two ranks with a picture each, and as many that are held back."""


def train_command(samples: int, url: str, storage: Mapping[str, str], gpu: bool) -> str:
    """Returns the command, quoted for the shell; an empty text for too few pictures to train on.

    Args:
        samples: pictures of the data set.
        url: URL of the data set.
        storage: options of the data set's store; the value of an option that may be a secret is not repeated.
        gpu: whether this machine has a GPU; a small data set is trained on the CPUs of a machine that has none.
    """
    if samples < FEWEST:
        return ""
    large = samples >= LARGE
    words = shlex.split("accelerate launch")
    if large or not gpu:
        words += ["--config_file", f"launch/accelerate/{'node' if large else 'cpu'}.yaml"]
    words += ["launch/pretrain.py", "--config", LARGE_CONFIG if large else SMALL_CONFIG]
    words += ["--data.shards", with_literal_dollars(redacted(url))]
    if storage:
        words.append("--data.storage_options")
        words += [word for key, value in storage.items() for word in (key, value if key in SHOWN_OPTIONS else "VALUE")]
    words += [*_batch(samples), "--run", f"runs/{_name(url)}"]
    return shlex.join(words)


def _batch(samples: int) -> list[str]:
    """Lowers batch and batch-norm group to what the pictures fill that are not held back."""
    trained = samples - samples // 10  # at most a tenth of a small data set is held back
    if trained >= SMALL_BATCH:
        return []
    group = 1 << ((trained // 2).bit_length() - 1)  # two groups, one for each rank
    return ["--training.global_batch", str(2 * group), "--method.batch_norm_group", str(group)]


def _name(url: str) -> str:
    """Returns the last part of a URL, fit for the name of a run."""
    last = redacted(url).rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w.-]+", "_", last).strip("._-") or "default"
