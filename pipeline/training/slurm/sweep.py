"""Sweeps: one run for every combination of settings, as the elements of a job array.

Every run has a folder of its own, named after its combination, so that a longer list continues the runs that are there.
"""

from __future__ import annotations

import itertools
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.command_line import load_yaml
from pipeline.config import Config
from pipeline.mapping import ConfigError
from shards.urls import with_literal_dollars

_LONGEST_NAME = 100  # characters of the readable part of a run folder's name


@dataclass(frozen=True)
class Element:
    """One run of a sweep.

    Attributes:
        run: the run folder.
        settings: settings of launch/pretrain.py that follow those that all elements share.
    """

    run: Path
    settings: list[str]


def read_combinations(path: Path) -> list[dict[str, str]]:
    """Reads a sweep and combines its values.

    Args:
        path: YAML file such as `training.global_batch: [64, 128]`.

    Returns:
        Every combination as setting -> value; the last setting changes fastest.

    Raises:
        ConfigError: the file can't be read, or gives no setting a list of plain values.
    """
    axes = load_yaml(path, "--array")
    if not (isinstance(axes, dict) and axes and all(isinstance(values, list) and values for values in axes.values())):
        raise ConfigError(f"--array {path}: give each setting a list of values, as in training.global_batch: [64, 128]")
    if nested := [key for key, values in axes.items() if any(isinstance(value, list | dict) for value in values)]:
        raise ConfigError(f"--array {path}: {nested[0]}: only plain values can be combined, numbers and words")
    for key in axes:
        if key in ("run", "config") or "storage_options" in str(key):
            raise ConfigError(
                f"--array {path}: {key} is not for a sweep: every run gets a folder of its own below --run, named after its combination"
            )
    texts = {str(key): [str(value) for value in values] for key, values in axes.items()}
    return [dict(zip(texts, chosen, strict=True)) for chosen in itertools.product(*texts.values())]


def run_name(combination: Mapping[str, str]) -> str:
    """The name of a combination's run folder: readable, and different for every combination."""
    plain = ",".join(f"{key}={value}" for key, value in combination.items())
    readable = re.sub(r"[^A-Za-z0-9._=,+-]", "_", plain)
    if readable == plain and len(plain) <= _LONGEST_NAME:
        return plain
    return f"{readable[:_LONGEST_NAME]}-{zlib.crc32(plain.encode()):08x}"


def element(combination: Mapping[str, str], folder: Path, name: str) -> Element:
    """Makes the run of one combination.

    Args:
        combination: setting -> value.
        folder: folder of the sweep's runs.
        name: name of the sweep, with which the names of its runs in the metrics begin, because elements are named alike in every sweep.
    """
    run = folder / run_name(combination)
    settings = [f"--{key}={value}" for key, value in combination.items()]
    return Element(run, [*settings, f"--run={with_literal_dollars(str(run))}", f"--monitoring.run_name={name}/{run.name}"])


def refuse_twins(elements: Sequence[Element], configs: Sequence[Config[Any]]) -> None:
    """Refuses a sweep that has one combination twice, also spelt in two ways, because two jobs would train the same, perhaps in one folder.

    Args:
        elements: runs of the sweep.
        configs: all settings of each run.

    Raises:
        ConfigError: naming the combinations.
    """
    seen: list[Config[Any]] = []
    for each, config in zip(elements, configs, strict=True):
        unnamed = replace(config, run="", monitoring=replace(config.monitoring, run_name=""))
        if unnamed in seen:
            first = elements[seen.index(unnamed)].run.name
            raise ConfigError(f"--array: {each.run.name} is the same run as {first}. Give each value of a setting once")
        seen.append(unnamed)


def plan(folder: Path, elements: Sequence[Element]) -> tuple[Path, str]:
    """The file that keeps the settings of a job array's elements, and its content. The name depends on the content, because a job that
    waits must not find the plan of a later submission.

    Args:
        folder: folder of the sweep's runs.
        elements: runs of the sweep, in the order of the array.
    """
    content = json.dumps([each.settings for each in elements], indent=1)
    return folder / "slurm" / f"sweep-{zlib.crc32(content.encode()):08x}.json", content


def element_settings(path: Path, shared: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The settings of the element that runs in this job: those that all elements share, then its own.

    Args:
        path: file of the plan.
        shared: settings that all elements share.
        environment: environment of the batch script, which has the number of the element.

    Raises:
        ConfigError: the file is gone, or has no such element.
    """
    number = environment.get("SLURM_ARRAY_TASK_ID", "")
    try:
        return [*shared, *map(str, json.loads(path.read_text(encoding="utf-8"))[int(number)])]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{path}: has no settings for element {number!r} of the array ({error}). Submit the sweep again") from error
