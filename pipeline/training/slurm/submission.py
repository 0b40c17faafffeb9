"""A run as a SLURM job: checks of its settings and resources, the command that submits it, and a page that says where to look.

The batch script, launch/slurm/pretrain.sbatch, is the same for every job. Settings go to it as arguments and never through a shell, so
that a setting with spaces and quotes arrives as it was typed.
"""

from __future__ import annotations

import getpass
import os
import re
import shlex
import shutil
import subprocess
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import recipes
from pipeline.config import Config, parse, to_mapping
from pipeline.mapping import ConfigError
from pipeline.training.record.run_folder import absolute
from pipeline.training.slurm.attempts import is_finished
from pipeline.training.slurm.surroundings import submission_environment
from pipeline.training.slurm.sweep import Element, element, plan, read_combinations, refuse_twins
from shards.counting import counted
from shards.errors import ExplainedError
from shards.urls import redacted

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "launch" / "slurm" / "pretrain.sbatch"
_OWN_OPTIONS = ("array", "job-name", "nodes", "ntasks", "ntasks-per-node", "output", "parsable", "wrap")


class SubmitError(ExplainedError):
    """A job can't be submitted; the message says why and what to do."""


@dataclass(frozen=True)
class Resources:
    """The resources that a job asks SLURM for.

    Attributes:
        nodes: number of nodes, or a range such as 2-8 for as many as there are when an attempt starts.
        gpus_per_node: number of GPUs, and of ranks, of a node; 0 trains on CPUs.
        ranks_per_node: number of ranks of a node without GPUs.
        time: time limit of one attempt, as SLURM writes it; empty for the partition's.
        partition, account, qos: options of sbatch; empty for SLURM's defaults.
        container: Apptainer image that has the dependencies; None runs in `venv`, or in the environment that the job inherits.
        venv: virtual environment that has the dependencies.
        give_up_after: number of attempts in a row that may leave no newer checkpoint behind.
        at_once: number of elements of a sweep that run at the same time; 0 for no limit.
        options: further options of sbatch as (name, value); the value is empty for options without one.
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
        name: name of the job; the same for the same run folder.
        folder: folder of the job's logs, in the run folder or, for a sweep, in the folder of its runs.
        runs: run folders, one an element.
        plan: file with the settings of each element of a sweep, and its content; None for a single run.
    """

    command: list[str]
    name: str
    folder: Path
    runs: list[Path]
    plan: tuple[Path, str] | None = None

    def __str__(self) -> str:
        """The command, quoted for a shell."""
        return shlex.join(self.command)


def parse_settings(settings: Sequence[str]) -> Config[Any]:
    """Parses settings of launch/pretrain.py.

    Raises:
        ConfigError: a setting is wrong. Errors of the command line's parser are printed already.
    """
    try:
        return parse(recipes.SETTINGS, list(settings))
    except SystemExit as error:
        raise ConfigError("these are not the settings of launch/pretrain.py") from error


def prepare(resources: Resources, settings: Sequence[str], sweep: Path | None = None) -> Submission:
    """Checks the settings of a run, or of every run of a sweep, and makes the command that submits it.

    Args:
        resources: resources to ask for.
        settings: settings of launch/pretrain.py.
        sweep: YAML file that gives a list of values to each of some settings.

    Raises:
        ConfigError: a setting is wrong.
        SubmitError: resources contradict each other, a file is missing, a secret is among the arguments, or a run is finished.
    """
    _check_resources(resources)
    config = parse_settings(settings)
    folder = absolute(config.run)
    combinations = read_combinations(sweep) if sweep else []
    _refuse_secrets(config, settings, [value for combination in combinations for value in combination.values()])
    sweep_name = config.monitoring.run_name or folder.name
    elements = [element(combination, folder, sweep_name) for combination in combinations] or [Element(folder, [])]
    configs = [parse_settings([*settings, *each.settings]) for each in elements]
    refuse_twins(elements, configs)
    for each, steps in zip(elements, (of_it.training.steps for of_it in configs), strict=True):
        if is_finished(each.run, steps):
            raise SubmitError(
                f"{each.run}: all {counted(steps, 'step is', 'steps are')} done. Give more --training.steps, or another --run"
            )
    plan_file = plan(folder, elements) if sweep else None
    name = f"{re.sub(r'[^A-Za-z0-9._-]', '_', folder.name)}-{zlib.crc32(str(folder).encode()):08x}"
    command = ["sbatch", "--parsable", *_options(resources, name, folder, len(elements) if sweep else 0), str(SCRIPT)]
    command += ["--repository", str(ROOT), "--ranks-per-node", str(resources.ranks_per_node)]
    command += ["--give-up-after", str(resources.give_up_after)]
    for option, path in (("--venv", resources.venv), ("--container", resources.container), ("--sweep", plan_file and plan_file[0])):
        command += [option, str(path.absolute())] if path else []
    command += ["--", *settings]
    return Submission(command, name, folder / "slurm", [each.run for each in elements], plan_file)


def _refuse_secrets(config: Config[Any], settings: Sequence[str], sweep_values: Sequence[str]) -> None:
    """Refuses credentials among the arguments of a job, because SLURM shows the arguments to every user."""
    values = [word.partition("=")[2] if word.startswith("--") else word for word in settings]
    if any(redacted(value) != value for value in [*values, *sweep_values]):
        raise SubmitError(
            "credentials in a URL: everybody can read the arguments of a job. Leave them to the environment, to a profile, or to a "
            "--config FILE.yaml that only you can read"
        )
    if any(re.match(r"--data\.(sources\.\w+\.)?storage_options", word) for word in settings) and "(not shown)" in str(to_mapping(config)):
        raise SubmitError(
            "data.storage_options: everybody can read the arguments of a job. Leave secrets to the environment, to a profile, or to "
            "a --config FILE.yaml that only you can read"
        )


def queued(name: str) -> list[str]:
    """Lists the caller's jobs of a name that wait or run, as `NUMBER (STATE)`.

    Raises:
        SubmitError: SLURM does not answer.
    """
    listed = _call(["squeue", "--noheader", f"--name={name}", f"--user={getpass.getuser()}", "--format=%i (%T)"])
    return listed.splitlines()


def submit(submission: Submission) -> str:
    """Submits a job; returns its number.

    Raises:
        SubmitError: SLURM refuses the job, or another job for the same run waits or runs.
    """
    if others := queued(submission.name):
        raise SubmitError(
            f"{submission.folder.parent}: job {', '.join(others)} is for this run already. Wait for its end, stop it with "
            f"scancel {others[0].split()[0]}, or choose another --run"
        )
    try:
        submission.folder.mkdir(parents=True, exist_ok=True)
        if submission.plan is not None:
            submission.plan[0].write_text(submission.plan[1], encoding="utf-8")
    except OSError as error:
        raise SubmitError(f"{submission.folder}: can't be written ({error.strerror}). Choose another folder with --run") from error
    return _call(submission.command).strip().partition(";")[0]


def describe(submission: Submission, job: str) -> str:
    """The lines that say where to look after a job was submitted.

    Args:
        submission: the job.
        job: number of the job.
    """
    runs, several = submission.runs, submission.plan is not None
    run = f"{submission.folder.parent}/COMBINATION" if several else str(runs[0])
    element = f"{job}_ELEMENT" if several else job
    lines = [
        f"job          {job} ({submission.name})" + (f", {counted(len(runs), 'element')}" if several else ""),
        f"look         squeue --jobs={job}; scontrol show job {job}",
        f"log          {submission.folder}/{element}.log; of each node's ranks: {run}/slurm/{element}.NODE.log",
        f"attempts     {run}/slurm/attempts.jsonl",
        f"metrics      {run}/targets/*.json, for Prometheus's file_sd_configs",
        f"checkpoints  python launch/checkpoints.py list {shlex.quote(run)}",
        f"stop         scancel {job}",
    ]
    return "\n".join([*lines, *(f"element {number:<4} {path}" for number, path in enumerate(runs) if several)])


def _options(resources: Resources, name: str, folder: Path, elements: int) -> list[str]:
    extra = dict(resources.options)
    waits = ",".join(filter(None, ["singleton", extra.pop("dependency", "")]))  # of two submissions at the same moment, one waits
    log = f"{folder}/slurm/".replace("%", "%%") + ("%A_%a.log" if elements else "%j.log")
    # an explicit export, because a site's SBATCH_EXPORT=NONE would leave the job without the environment that its programs are in
    options = {"job-name": name, "dependency": waits, "output": log, "export": "ALL", "nodes": resources.nodes}
    if resources.gpus_per_node:
        options["gpus-per-node"] = str(resources.gpus_per_node)
    options |= {key: value for key in ("time", "partition", "account", "qos") if (value := getattr(resources, key))}
    if elements:
        options["array"] = f"0-{elements - 1}" + (f"%{resources.at_once}" if resources.at_once else "")
    return [f"--{key}={value}" if value else f"--{key}" for key, value in (options | extra).items()]


def _check_resources(resources: Resources) -> None:
    sizes = re.fullmatch(r"([1-9]\d*)(?:-([1-9]\d*))?", resources.nodes)
    if not sizes or (sizes[2] and int(sizes[2]) < int(sizes[1])):
        raise SubmitError(f"--nodes {resources.nodes}: give a number, or a range such as 2-8")
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
        if key in _OWN_OPTIONS or not re.fullmatch(r"[a-z][a-z-]*", key):
            raise SubmitError(
                f"--sbatch {key}={text}: not an option of sbatch that can be given here. See --help for this program's own options"
            )


def _call(command: Sequence[str]) -> str:
    program = shutil.which(command[0])
    if program is None:
        raise SubmitError(f"{command[0]}: no such program here. Submit on a machine that has SLURM's commands, such as a login node")
    environment = submission_environment(os.environ)
    done = subprocess.run([program, *command[1:]], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SubmitError(f"{command[0]}: {' '.join(done.stderr.split()) or f'ended with {done.returncode}'}")
    return done.stdout
