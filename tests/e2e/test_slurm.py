"""Jobs of a real SLURM, submitted with the command and the batch script of the repository: preempted, broken, refused, and done."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from launch.local.object_store import SeaweedFS
from pipeline.training.record.run_folder import read_lines
from tests.conftest import ROOT
from tests.datasets import upload
from tests.faults.proxy import Proxy
from tests.faults.shaping import Shape
from tests.launching import clean_environment, python, run_program
from tests.slurm_cluster import SlurmCluster

BATCHES = 12  # an epoch
FROM_STORE = {"shards": "s3://slurm/set", "cache": "none", "requests": 1, "ready_batches": 1}
"""Settings of data of the jobs of `slow_store`."""
VENV = Path(sys.executable).parent.parent
INSIDE_A_JOB = {
    **{"SBATCH_EXPORT": "NONE", "SBATCH_OPEN_MODE": "truncate", "SBATCH_SIGNAL": "B:TERM@5", "SQUEUE_STATES": "PENDING"},
    **{"SLURM_JOB_ID": "1", "SLURM_ARRAY_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": "5", "SLURM_RESTART_COUNT": "3"},
    **{"SLURM_MEM_PER_CPU": "100", "SLURM_GPUS_ON_NODE": "2", "SLURM_NTASKS_PER_NODE": "2", "PMI_SIZE": "2", "OMP_NUM_THREADS": "2,1"},
}
"""Variables of a shell inside another job, at a site whose jobs inherit nothing."""


@dataclass(frozen=True)
class Job:
    """A submitted job and its run folder."""

    number: str
    run: Path
    cluster: SlurmCluster

    @property
    def steps(self) -> int:
        return max((row["step"] for row in read_lines(self.run / "history.jsonl")), default=0)

    def record(self, event: str) -> list[dict[str, Any]]:
        return [row for row in read_lines(self.run / "slurm" / "attempts.jsonl") if row["event"] == event]

    def events(self, event: str) -> list[dict[str, Any]]:
        return [row for row in read_lines(self.run / "events.jsonl") if row["event"] == event]

    def log(self) -> str:
        return "\n".join(f"--- {path}\n{path.read_text(errors='replace')[-6000:]}" for path in sorted(self.run.rglob("slurm/*.log")))

    def wait_until(self, condition: Callable[[], Any], what: str, seconds: float = 300) -> None:
        try:
            self.cluster.wait_until(condition, what, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}\n{self.cluster.job(self.number)}") from None

    def wait_for_steps(self, attempt: int) -> None:
        """Until an attempt has taken a few steps."""
        self.wait_until(
            lambda: sum(row["attempt"] == attempt for row in read_lines(self.run / "history.jsonl")) > 3, f"attempt {attempt} trains"
        )


@pytest.fixture(scope="module")
def slow_store(s3: SeaweedFS, shards: Path) -> Iterator[Mapping[str, str]]:
    """The variables for jobs that read the pictures from s3://slurm/set, of a distant store: they take four steps a second, and leave the
    processors to the others while they wait for SLURM, which looks at its clocks every half minute."""
    upload(s3, "slurm", shards)
    with Proxy(s3.endpoint, Shape(latency_ms=60)) as proxy:
        yield {**s3.environment, "AWS_ENDPOINT_URL": proxy.endpoint}


def submit_command(*arguments: str) -> list[str]:
    return [python(), "launch/slurm/submit.py", "--venv", str(VENV), *arguments]


def submit(cluster: SlurmCluster, run: Path, *arguments: str, **surroundings: str) -> Job:
    environment = {**clean_environment(**surroundings), **cluster.environment}
    command = submit_command(*arguments, "--run", str(run))
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    number = next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("job "))
    return Job(number, run, cluster)


@pytest.fixture(scope="module")
def shards(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 ImageNet photographs in 3 shards: 12 batches of 8, so that no epoch leaves one out."""
    folder, target = tmp_path_factory.mktemp("photographs"), tmp_path_factory.mktemp("set")
    for path in sorted((data_folder / "imagenet_sample").rglob("*.JPEG"))[: 8 * BATCHES]:
        shutil.copy(path, folder)
    command = [sys.executable, "-m", "shards", "build", str(folder), str(target), "--shard-size", "40"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def settings(shards: Path) -> dict[str, Any]:
    """The smallest network there is."""
    return {
        "recipe": "inpainting",
        "method": {"width": 8, "bottleneck": 16, "batch_norm_group": 2},
        "training": {"steps": 100_000, "global_batch": 8, "micro_batch": 4, "log_every": 1, "pictures_every": 0},
        "data": {"shards": str(shards), "threads": 1},
        "evaluation": {"held_back": 0.0},  # so that every epoch holds every sample
        "checkpoint": {"every": 50},
        "monitoring": {"port": 0},
    }


def write(path: Path, settings: dict[str, Any], **changed: dict[str, Any]) -> Path:
    """Writes a configuration; a program that reads the file meanwhile sees the old one or the new one, whole."""
    partial = path.with_suffix(".partial")
    partial.write_text(yaml.safe_dump({**settings, **{section: {**settings[section], **values} for section, values in changed.items()}}))
    partial.replace(path)
    return path


def ledger(run: Path, **environment: str) -> str:
    done = run_program("launch/ledger.py", str(run), **environment)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_preempted_four_ways_a_job_finishes_and_every_sample_of_every_epoch_counts_once(
    slurm: SlurmCluster, settings: dict[str, Any], tmp_path: Path, quick: list[str], slow_store: Mapping[str, str]
) -> None:
    token = tmp_path / "token"
    token.write_text("only for Prometheus")
    monitoring = {"address": "0.0.0.0", "token_file": str(token)}  # noqa: S104 (what a cluster's nodes have to be told)
    config = write(tmp_path / "run's config.yaml", settings, monitoring=monitoring, data=FROM_STORE)
    run = tmp_path / 'it\'s a "run" of $5; 100% ä'
    options = [*quick, "--nodes", "1-2", "--time", "30", "--sbatch", "signal=B:USR1@90", "--give-up-after", "2"]
    job = submit(slurm, run, *options, "--config", str(config), **slow_store)

    job.wait_for_steps(1)
    check_targets(run, token.read_text())
    again = [*submit_command("--config", str(config)), "--run", str(run)]
    refused = subprocess.run(again, cwd=ROOT, env={**clean_environment(), **slurm.environment}, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert f"job {job.number} (RUNNING) is for this run already" in refused.stderr
    slurm.command("scancel", "--signal=USR1", "--batch", job.number)

    job.wait_for_steps(2)
    assert [(end["signal"], end["verdict"], end["fruitless"]) for end in job.record("end")] == [("USR1", "requeue", 0)]
    slurm.command("scontrol", "requeue", job.number)

    job.wait_for_steps(3)
    # SLURM looks at the limits every 30 seconds: what is left is enough for one look, and within the 90 seconds of --signal then
    hours, minutes, seconds = map(int, slurm.job(job.number)["RunTime"].split(":"))
    limit = (3600 * hours + 60 * minutes + seconds + 35) // 60 + 1
    slurm.command("scontrol", "update", f"JobId={job.number}", f"TimeLimit={limit}")
    job.wait_until(lambda: len(job.record("end")) > 1, "SLURM warns of the time limit")
    slurm.command("scontrol", "update", f"JobId={job.number}", "TimeLimit=30")

    job.wait_for_steps(4)
    # the last attempt is to end with an epoch, whenever this machine gets there
    steps = (job.steps // BATCHES + 3) * BATCHES
    write(config, settings, monitoring=monitoring, data=FROM_STORE, training={"steps": steps})
    slurm.command("scontrol", "update", "NodeName=n1", "State=down", "Reason=test")
    slurm.command("scontrol", "update", "NodeName=n1", "State=drain", "Reason=test")  # or its daemon reports it back at once
    try:
        states = slurm.wait_for_end(job.number)
    finally:
        slurm.command("scontrol", "update", "NodeName=n1", "State=resume")
    assert states == {job.number: "COMPLETED"}, job.log()
    assert int(slurm.job(job.number)["Restarts"]) == 4

    starts = job.events("start")
    assert [start["world_size"] for start in starts] == [2, 2, 2, 2, 1], "the last attempt had one node"
    assert [begin["nodes"] for begin in job.record("begin")] == ["n[0-1]"] * 4 + ["n0"]
    assert [(end["signal"], end["verdict"]) for end in job.record("end")] == [("USR1", "requeue"), ("USR1", "requeue"), ("", "finished")]
    assert job.events("end")[-1] == {**job.events("end")[-1], "reason": "finished", "step": steps}
    for before, after in itertools.pairwise(starts):
        assert after["step"] > before["step"], "an attempt that was told to stop saved what it had"
    said = ledger(run, **slow_store)
    assert f"{steps} steps count, of 5 attempts with 2, 2, 2, 2, 1 ranks" in said
    assert said.count("12 batches, 96 samples, 0 of them more than once, 0 not seen; complete") == steps // BATCHES, said
    log = (run / "slurm" / f"{job.number}.log").read_text()
    assert log.count("restart 0 on n[0-1]") == 1, "a later attempt truncated the log"
    assert "restart 4 on n0" in log
    assert "continues after step" in (run / "slurm" / f"{job.number}.n0.log").read_text()
    assert (run / "slurm" / f"{job.number}.n1.log").exists()


def check_targets(run: Path, token: str) -> None:
    """Asserts that the targets for Prometheus can be reached from another machine: names of nodes, not loopback."""
    found = [json.loads(path.read_text())[0] for path in sorted((run / "targets").glob("rank*.json"))]
    assert [target["labels"]["node"] for target in found] in (["n0", "n1"], ["n1", "n0"])
    for target in found:
        host, port = target["targets"][0].rsplit(":", 1)
        assert host == target["labels"]["node"]
        url = f"http://127.0.0.1:{port}/metrics"  # the names of the nodes are known inside the cluster only
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
        assert b"context_encoder_world_size" in urllib.request.urlopen(request, timeout=20).read()  # noqa: S310
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(url, timeout=20)


@pytest.fixture(scope="module")
def limited(
    slurm: SlurmCluster,
    settings: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
    quick: list[str],
    slow_store: Mapping[str, str],
) -> Iterator[Job]:
    """A job that trains and has a minute, which SLURM says by half minutes: the tests that follow run beside it."""
    folder = tmp_path_factory.mktemp("limited")
    config = write(folder / "config.yaml", settings, data=FROM_STORE)
    job = submit(slurm, folder / "run", *quick, "--sbatch", "signal=B:USR1@0", "--config", str(config), **slow_store)
    job.wait_for_steps(1)
    slurm.command("scontrol", "update", f"JobId={job.number}", "TimeLimit=1")
    yield job
    slurm.command("scancel", job.number, check=False)
    slurm.wait_for_end(job.number)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("limited")
def test_what_can_not_go_on_ends(slurm: SlurmCluster, settings: dict[str, Any], shards: Path, tmp_path: Path, quick: list[str]) -> None:
    """Three jobs at once: one crashes whenever it is started, one has settings that only its ranks can refuse, one may not be requeued."""
    broken = tmp_path / "broken"
    shutil.copytree(shards, broken)
    (broken / "shard-000001.tar").unlink()
    config = ["--config", str(write(tmp_path / "config.yaml", settings))]
    crashing = submit(slurm, tmp_path / "crashing", *quick, "--give-up-after", "2", *config, "--data.shards", str(broken))
    small = ["--training.global_batch", "2", "--training.micro_batch", "2"]
    refused = submit(slurm, tmp_path / "refused", *quick, "--ranks-per-node", "2", *config, *small)
    forbidden = submit(slurm, tmp_path / "forbidden", "--sbatch", "no-requeue", *config)
    forbidden.wait_until(lambda: forbidden.record("begin"), "the job begins")
    slurm.command("scancel", "--signal=USR1", "--batch", forbidden.number)
    jobs = [crashing, refused, forbidden]
    states = slurm.wait_for_end(*(job.number for job in jobs))
    assert set(states.values()) == {"FAILED"}, "\n".join(job.log() for job in jobs)
    found = {job.run.name: slurm.job(job.number) for job in jobs}
    assert {name: (job["Restarts"], job["ExitCode"]) for name, job in found.items()} == {
        "crashing": ("1", "70:0"),
        "refused": ("0", "78:0"),
        "forbidden": ("0", "75:0"),
    }
    assert [(end["verdict"], end["fruitless"]) for end in crashing.record("end")] == [("requeue", 1), ("give_up", 2)]
    assert "shard-000001.tar: missing" in crashing.log()
    assert "2 ranks share 1 batch-norm groups of 2 a step" in (refused.run / "slurm" / f"{refused.number}.log").read_text()
    assert "SLURM does not requeue this job" in forbidden.log()
    assert "Submit it again" in forbidden.log()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sweep_is_an_array_with_a_run_for_each_combination(slurm: SlurmCluster, settings: dict[str, Any], tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("seed: [1, 2]\ntraining.steps: [24]\n")
    config = write(tmp_path / "config.yaml", settings)
    array = submit(slurm, tmp_path / "sweep", "--sbatch", "mem=300", "--array", str(sweep), "--config", str(config), **INSIDE_A_JOB)
    # the last element has the number of the whole array: what it does to itself must not reach the others
    last = Job(f"{array.number}_1", array.run / "seed=2,training.steps=24", slurm)
    last.wait_until(lambda: last.record("begin"), "the last element begins")
    slurm.command("scancel", "--signal=USR1", "--batch", last.number)
    states = slurm.wait_for_end(f"{array.number}_0", f"{array.number}_1")
    assert set(states.values()) == {"COMPLETED"}, array.log()
    for element, name in enumerate(["seed=1,training.steps=24", "seed=2,training.steps=24"]):
        job = Job(f"{array.number}_{element}", array.run / name, slurm)
        assert yaml.safe_load((job.run / "config.yaml").read_text())["seed"] == element + 1
        assert job.events("end")[-1]["reason"] == "finished"
        assert [(row["job"], row["signal"]) for row in job.record("end")] == [(job.number, sign) for sign in ["USR1"] * element + [""]]
        assert slurm.job(job.number)["Restarts"] == str(element)
        assert "24 steps count" in ledger(job.run)


@pytest.mark.slow
def test_a_cancelled_job_stays_cancelled(slurm: SlurmCluster, settings: dict[str, Any], tmp_path: Path) -> None:
    """Also in the seconds in which it has not begun to train, where everything of it dies of the signal."""
    job = submit(slurm, tmp_path / "run", "--config", str(write(tmp_path / "config.yaml", settings)))
    job.wait_until((job.run / "slurm" / f"{job.number}.log").exists, "the batch script runs")
    slurm.command("scancel", job.number)
    assert slurm.wait_for_end(job.number) == {job.number: "CANCELLED"}
    assert slurm.job(job.number)["Restarts"] == "0"


@pytest.mark.slow
def test_an_attempt_that_nobody_can_write_down_is_tried_again_as_often_as_is_allowed_in_a_row(slurm: SlurmCluster, tmp_path: Path) -> None:
    """However often the job was requeued before for other reasons."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho 'the disk of the environment is not there' >&2\nexit 1\n")
    python.chmod(0o755)
    script = ["launch/slurm/pretrain.sbatch", "--repository", str(ROOT), "--give-up-after", "2", "--venv", str(python.parent.parent)]
    command = ["sbatch", "--parsable", "--hold", f"--output={tmp_path / 'log'}", *script, "--", "--data.shards", "x"]
    environment = {**clean_environment(), **slurm.environment}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    job = done.stdout.strip()
    slurm.command("scontrol", "update", f"JobId={job}", "Comment=unknown=1@-5")  # of an attempt long ago
    slurm.command("scontrol", "release", job)
    assert slurm.wait_for_end(job) == {job: "FAILED"}
    found = slurm.job(job)
    assert (found["Restarts"], found["ExitCode"], found["Comment"]) == ("1", "70:0", "unknown=1@0")
    assert re.findall(r"the attempt can't begin \((\d of \d) in a row\)", (tmp_path / "log").read_text()) == ["1 of 2", "2 of 2"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_time_limit_that_comes_without_a_warning_is_a_requeue(slurm: SlurmCluster, limited: Job) -> None:
    """SLURM looks at its clocks every half minute, so that a warning may come with the limit or not at all."""
    job = limited
    job.wait_until(lambda: len(job.events("start")) > 1, "the job goes on")
    first, second, *more = (start["step"] for start in job.events("start"))  # more where this machine took minutes to get here
    assert first == 0 < second, "an attempt that was killed at the limit saved what it had"
    assert int(slurm.job(job.number)["Restarts"]) in (1 + len(more), 2 + len(more))
    assert {end["signal"] for end in job.record("end")} <= {"TERM"}, "a warning was heard"
    slurm.command("scancel", job.number)
    assert slurm.wait_for_end(job.number) == {job.number: "CANCELLED"}


def test_a_wrong_key_is_refused_before_anything_is_submitted(slurm: SlurmCluster, settings: dict[str, Any], tmp_path: Path) -> None:
    config = write(tmp_path / "config.yaml", {**settings, "trainig": {}})
    command = submit_command("--config", str(config), "--run", str(tmp_path / "run"))
    environment = {**clean_environment(), **slurm.environment}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "trainig: no such setting. Did you mean 'training'?" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_the_cluster_leaves_no_process_behind(tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\nsetsid sleep 1000 &\ntrap '' TERM\necho up\nsleep 1000\nsleep 1000\n")
    with SlurmCluster(tmp_path / "cluster", nodes=1, kill_wait=2) as cluster:
        job = cluster.command("sbatch", "--parsable", f"--output={tmp_path / 'out'}", str(script)).stdout.strip()
        cluster.wait_until(lambda: (tmp_path / "out").exists() and (tmp_path / "out").read_text(), f"job {job} runs")
        assert owned(cluster.environment["SLURM_CONF"])
    assert owned(cluster.environment["SLURM_CONF"]) == []


def owned(conf: str) -> Sequence[str]:
    """Processes of a cluster and of its jobs, zombies left out."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE and process.environ().get("SLURM_CONF") == conf:
                found.append(" ".join(process.cmdline()))
        except (psutil.Error, OSError):
            continue
    return found
