"""A run as a job of SLURM: what is refused before it is submitted, the command that submits it, and the elements of a sweep.

The batch script, launch/slurm/pretrain.sbatch, is the same for every job. What differs goes to it as arguments and never through a shell,
so that a setting with spaces and quotes arrives as it was typed.
"""

from __future__ import annotations

import getpass
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline import recipes
from pipeline.config import Config, parse, to_mapping
from pipeline.mapping import ConfigError
from pipeline.training.slurm.attempts import is_finished
from shards.errors import ExplainedError
from shards.urls import redacted

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "launch" / "slurm" / "pretrain.sbatch"
_OURS = ("array", "job-name", "nodes", "ntasks", "ntasks-per-node", "output", "parsable", "wrap")
_LONGEST_NAME = 100  # characters of the name of a sweep's run folder


class SubmitError(ExplainedError):
    """A job that is not submitted. Says why and what to do."""


@dataclass(frozen=True)
class Resources:
    """What a job asks SLURM for.

    Attributes:
        nodes: a number, or 2-8 for whatever is there when an attempt starts.
        gpus_per_node: ranks of a node, too; 0 trains on processors.
        ranks_per_node: where there are no GPUs.
        time: limit of one attempt, as SLURM writes it; empty for the partition's.
        partition, account, qos: empty for SLURM's defaults.
        container: an image for Apptainer that has the dependencies; None runs in `venv`, or in whatever environment the job finds.
        venv: a virtual environment.
        give_up_after: attempts in a row that may leave no newer checkpoint behind.
        at_once: elements of a sweep that run at the same time; 0 for as many as SLURM likes.
        options: further options of sbatch, as (name, value); an empty value for those that have none.
    """

    nodes: str = "1"
    gpus_per_node: int = 0
    ranks_per_node: int = 1
    time: str = ""
    partition: str = ""
    account: str = ""
    qos: str = ""
    container: Path | None = None
    venv: Path | None = None
    give_up_after: int = 3
    at_once: int = 0
    options: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Submission:
    """A job that is ready to be submitted.

    Attributes:
        command: sbatch and its arguments.
        name: of the job; the same for the same run folder.
        folder: that the job's logs go to, in the run folder or, for a sweep, in the folder of its runs.
        runs: run folders, one an element.
        sweep: file with the settings of each element, and its content; None for a single run.
    """

    command: list[str]
    name: str
    folder: Path
    runs: list[Path]
    sweep: tuple[Path, str] | None = field(default=None)

    def __str__(self) -> str:
        """The command, as a shell would take it."""
        return shlex.join(self.command)


def configured(settings: Sequence[str]) -> Config[Any]:
    """The configuration that settings of launch/pretrain.py mean.

    Raises:
        ConfigError: they mean none. What the command line's parser found wrong it has printed itself.
    """
    try:
        return parse(recipes.SETTINGS, list(settings))
    except SystemExit as error:
        raise ConfigError("these are not the settings of launch/pretrain.py") from error


def prepare(resources: Resources, settings: Sequence[str], sweep: Path | None = None) -> Submission:
    """Checks the settings of a run, or of every run of a sweep, and makes the command that submits it.

    Args:
        resources: to ask for.
        settings: of launch/pretrain.py.
        sweep: a YAML file that gives a list of values to each of some settings.

    Raises:
        ConfigError: a setting is wrong.
        SubmitError: resources that contradict each other, a file that is not there, or a run that is finished.
    """
    _check(resources)
    config = configured(settings)
    folder = Path(config.run).absolute()
    elements = combinations(sweep) if sweep else [{}]
    given = [word.partition("=")[2] if word.startswith("--") else word for word in settings]
    if any(redacted(value) != value for value in [*given, *(value for chosen in elements for value in chosen.values())]):
        raise SubmitError(
            "credentials in a URL: everybody can read the arguments of a job. Leave them to the environment, to a profile, or to a "
            "--config FILE.yaml that only you can read"
        )
    if any(re.match(r"--data\.(sources\.\w+\.)?storage_options", word) for word in settings) and "(not shown)" in str(to_mapping(config)):
        raise SubmitError(
            "data.storage_options: everybody can read the arguments of a job. Leave what is secret to the environment, to a profile, or to "
            "a --config FILE.yaml that only you can read"
        )
    runs, every = [], []
    for chosen in elements:
        run = folder / run_name(chosen) if chosen else folder
        own = [*(f"--{key}={value}" for key, value in chosen.items()), f"--run={run}"] if chosen else []
        if chosen:  # elements are called alike in every sweep
            own.append(f"--monitoring.run_name={config.monitoring.run_name or folder.name}/{run.name}")
        steps = configured([*settings, *own]).training.steps
        if is_finished(run, steps):
            raise SubmitError(f"{run}: all {steps} steps are done. Give more --training.steps, or another --run")
        runs.append(run)
        every.append(own)
    plan = json.dumps(every, indent=1)
    kept = folder / "slurm" / f"sweep-{zlib.crc32(plan.encode()):08x}.json"
    name = f"{re.sub(r'[^A-Za-z0-9._-]', '_', folder.name)}-{zlib.crc32(str(folder).encode()):08x}"
    command = ["sbatch", "--parsable", *_options(resources, name, folder, len(elements) if sweep else 0), str(SCRIPT)]
    command += ["--repository", str(ROOT), "--ranks-per-node", str(resources.ranks_per_node)]
    command += ["--give-up-after", str(resources.give_up_after)]
    for option, path in (("--venv", resources.venv), ("--container", resources.container), ("--sweep", kept if sweep else None)):
        command += [option, str(path.absolute())] if path else []
    command += ["--", *settings]
    return Submission(command, name, folder / "slurm", runs, (kept, plan) if sweep else None)


def combinations(path: Path) -> list[dict[str, str]]:
    """Every combination of a sweep's values, setting -> value, the last setting changing fastest.

    Args:
        path: YAML such as `training.global_batch: [64, 128]`.

    Raises:
        SubmitError: it is not such a file.
    """
    try:
        axes = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SubmitError(f"--array {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SubmitError(f"--array {path}: not readable as YAML: {' '.join(str(error).split())}") from error
    right = isinstance(axes, dict) and axes and all(isinstance(values, list) and values for values in axes.values())
    if not right:
        raise SubmitError(f"--array {path}: give each setting a list of values, as in training.global_batch: [64, 128]")
    if nested := [key for key, values in axes.items() if any(isinstance(value, list | dict) for value in values)]:
        raise SubmitError(f"--array {path}: {nested[0]}: only plain values can be combined, numbers and words")
    for key in axes:
        if key in ("run", "config") or "storage_options" in str(key):
            raise SubmitError(
                f"--array {path}: {key} is not for a sweep: every run gets a folder of its own below --run, named after what differs"
            )
    texts = {str(key): [str(value) for value in values] for key, values in axes.items()}
    return [dict(zip(texts, chosen, strict=True)) for chosen in itertools.product(*texts.values())]


def run_name(chosen: Mapping[str, str]) -> str:
    """The folder of one combination: it says which, and another combination never gets it."""
    plain = ",".join(f"{key}={value}" for key, value in chosen.items())
    readable = re.sub(r"[^A-Za-z0-9._=,+-]", "_", plain)
    if readable == plain and len(plain) <= _LONGEST_NAME:
        return plain
    return f"{readable[:_LONGEST_NAME]}-{zlib.crc32(plain.encode()):08x}"


def element(sweep: Path, settings: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The settings that all elements of an array share, with those of this one behind them.

    Raises:
        ConfigError: the file is gone, or has no such element.
    """
    number = environment.get("SLURM_ARRAY_TASK_ID", "")
    try:
        return [*settings, *map(str, json.loads(sweep.read_text(encoding="utf-8"))[int(number)])]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{sweep}: has no settings for element {number!r} of the array ({error}). Submit the sweep again") from error


def queued(name: str) -> list[str]:
    """The caller's jobs of a name that are waiting or running, as `NUMBER (STATE)`.

    Raises:
        SubmitError: SLURM does not answer.
    """
    listed = _call(["squeue", "--noheader", f"--name={name}", f"--user={getpass.getuser()}", "--format=%i (%T)"])
    return listed.splitlines()


def submit(submission: Submission) -> str:
    """Submits a job; returns its number.

    Raises:
        SubmitError: SLURM refuses it, or a job for the same run is there already.
    """
    if others := queued(submission.name):
        raise SubmitError(
            f"{submission.folder.parent}: job {', '.join(others)} is for this run already. Wait for its end, stop it with "
            f"scancel {others[0].split()[0]}, or choose another --run"
        )
    try:
        submission.folder.mkdir(parents=True, exist_ok=True)
        if submission.sweep is not None:
            submission.sweep[0].write_text(submission.sweep[1], encoding="utf-8")
    except OSError as error:
        raise SubmitError(f"{submission.folder}: can't be written ({error.strerror}). Choose another folder with --run") from error
    return _call(submission.command).strip().partition(";")[0]


def describe(submission: Submission, job: str) -> str:
    """Where to look when a job has been submitted."""
    runs, several = submission.runs, submission.sweep is not None
    run = f"{submission.folder.parent}/COMBINATION" if several else str(runs[0])
    element = f"{job}_ELEMENT" if several else job
    lines = [
        f"job          {job} ({submission.name}){f', {len(runs)} elements' if several else ''}",
        f"look         squeue --jobs={job}; scontrol show job {job}",
        f"log          {submission.folder}/{element}.log; of each node's ranks: {run}/slurm/{element}.NODE.log",
        f"attempts     {run}/slurm/attempts.jsonl",
        f"metrics      {run}/targets/*.json, for Prometheus's file_sd_configs",
        f"checkpoints  python launch/checkpoints.py list {run if several else shlex.quote(run)}",
        f"stop         scancel {job}",
    ]
    return "\n".join([*lines, *(f"element {number:<4} {path}" for number, path in enumerate(runs) if several)])


def _options(resources: Resources, name: str, folder: Path, elements: int) -> list[str]:
    extra = dict(resources.options)
    waits = ",".join(filter(None, ["singleton", extra.pop("dependency", "")]))  # two submissions at the same moment: one waits
    log = f"{folder}/slurm/".replace("%", "%%") + ("%A_%a.log" if elements else "%j.log")
    options = {"job-name": name, "dependency": waits, "output": log, "nodes": resources.nodes}
    if resources.gpus_per_node:
        options["gpus-per-node"] = str(resources.gpus_per_node)
    options |= {key: value for key in ("time", "partition", "account", "qos") if (value := getattr(resources, key))}
    if elements:
        options["array"] = f"0-{elements - 1}" + (f"%{resources.at_once}" if resources.at_once else "")
    return [f"--{key}={value}" if value else f"--{key}" for key, value in (options | extra).items()]


def _check(resources: Resources) -> None:
    sizes = re.fullmatch(r"([1-9]\d*)(?:-([1-9]\d*))?", resources.nodes)
    if not sizes or (sizes[2] and int(sizes[2]) < int(sizes[1])):
        raise SubmitError(f"--nodes {resources.nodes}: give a number, or a smallest and a largest one: 2-8")
    for option, value, least in (
        ("--gpus-per-node", resources.gpus_per_node, 0),
        ("--ranks-per-node", resources.ranks_per_node, 1),
        ("--give-up-after", resources.give_up_after, 1),
        ("--at-once", resources.at_once, 0),
    ):
        if value < least:
            raise SubmitError(f"{option} {value}: is below {least}")
    if resources.gpus_per_node and resources.ranks_per_node != 1:
        raise SubmitError("--ranks-per-node: with --gpus-per-node every GPU is one rank")
    if resources.container and resources.venv:
        raise SubmitError("--container, --venv: give one of them")
    if resources.container and not resources.container.exists():
        raise SubmitError(f"--container {resources.container}: no such image")
    if resources.venv and not os.access(resources.venv / "bin" / "accelerate", os.X_OK):
        raise SubmitError(f"--venv {resources.venv}: has no bin/accelerate. Install the package into it: pip install -e '.[s3]'")
    for key, text in resources.options:
        if key in _OURS or not re.fullmatch(r"[a-z][a-z-]*", key):
            raise SubmitError(f"--sbatch {key}={text}: no option of sbatch that can be given here. Is there one of this program for it?")


def _call(command: Sequence[str]) -> str:
    program = shutil.which(command[0])
    if program is None:
        raise SubmitError(f"{command[0]}: no such program here. Submit on a machine that has SLURM's commands, such as a login node")
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SubmitError(f"{command[0]}: {' '.join(done.stderr.split()) or f'ended with {done.returncode}'}")
    return done.stdout
