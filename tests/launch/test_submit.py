"""The command that submits to SLURM: what it would run, and what it refuses before SLURM is asked at all."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from pipeline.mapping import ConfigError
from pipeline.training.record.run_folder import RunFolder
from pipeline.training.slurm.submission import SCRIPT, Resources, SubmitError, describe, parse_settings, prepare
from pipeline.training.slurm.sweep import element_settings, read_combinations, run_name
from tests.conftest import ROOT
from tests.launching import clean_environment, python

DATA = ["--data.shards", "/data/set"]


def submit(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [python(), str(ROOT / "launch/slurm/submit.py"), *arguments]
    return subprocess.run(command, cwd=cwd, env=clean_environment(), capture_output=True, text=True, timeout=120, check=False)


def test_a_dry_run_shows_the_command_and_the_script_and_touches_nothing(tmp_path: Path) -> None:
    run = tmp_path / 'it\'s "odd" $5; 100% ä'
    options = ["--nodes", "2-8", "--gpus-per-node", "8", "--time", "1-00:00:00", "--partition", "gpu", "--account", "me", "--qos", "low"]
    done = submit("--dry-run", *options, "--sbatch", "mem=0", "--sbatch", "exclusive", *DATA, "--run", str(run), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    line, script = done.stdout.split("\n", 1)
    assert SCRIPT.read_text() in script
    words = shlex.split(line)
    assert words[0] == "sbatch"
    cut = words.index(str(SCRIPT))
    assert {*words[1:cut]} >= {
        *(
            "--nodes=2-8",
            "--gpus-per-node=8",
            "--time=1-00:00:00",
            "--partition=gpu",
            "--account=me",
            "--qos=low",
            "--mem=0",
            "--exclusive",
        ),
        *("--dependency=singleton", f"--output={run}/slurm/%j.log".replace("100%", "100%%")),
    }
    assert words[words.index("--") + 1 :] == [*DATA, "--run", str(run)], "settings arrive as they were typed"
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_the_job_is_that_of_the_run_folder_wherever_it_is_named_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, other = (prepare(Resources(), [*DATA, "--run", run]).name for run in ("runs/a", str(tmp_path / "runs" / "a")))
    assert one == other
    assert {prepare(Resources(), [*DATA, "--run", run]).name for run in ("runs/../runs/a", "./runs/a/.")} == {one}
    assert prepare(Resources(), [*DATA, "--run", "elsewhere/a"]).name != one


def test_wrong_settings_are_refused_on_the_spot(tmp_path: Path) -> None:
    for arguments, message in (
        (["--data.shard", "x"], "--data.shard: no such setting. Did you mean --data.shards?"),
        ([*DATA, "--node", "2"], "--node: no such setting"),
        ([*DATA, "--training.steps", "0"], "training.steps: 0 is not at least 1"),
        ([*DATA, "--nodes", "8-2"], "--nodes 8-2: give a number"),
        ([*DATA, "--ranks-per-node", "0"], "--ranks-per-node 0"),
    ):
        done = submit("--dry-run", *arguments, "--run", str(tmp_path / "run"))
        assert done.returncode == 1, arguments
        assert message in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        (Resources(gpus_per_node=2, ranks_per_node=2), "every GPU is one rank"),
        (Resources(container=Path("/no/image.sif")), "no such image"),
        (Resources(venv=Path("/no/venv")), "has no bin/accelerate"),
        (Resources(container=ROOT, venv=ROOT), "give one of them"),
        (Resources(options=[("array", "0-3")]), "--sbatch array=0-3"),
        (Resources(options=[("mem 0; rm", "")]), "--sbatch mem 0; rm"),
        (Resources(give_up_after=0), "--give-up-after 0"),
    ],
)
def test_resources_that_make_no_sense_are_refused(resources: Resources, message: str) -> None:
    with pytest.raises(SubmitError, match=message):
        prepare(resources, DATA)


def test_without_slurm_the_message_says_where_to_go(tmp_path: Path) -> None:
    command = [python(), str(ROOT / "launch/slurm/submit.py"), *DATA, "--run", str(tmp_path / "run")]
    environment = {**clean_environment(), "PATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "squeue: no such program here. Submit on a machine that has SLURM's commands" in done.stderr


def test_a_dependency_of_ones_own_does_not_replace_the_one_that_keeps_two_jobs_apart() -> None:
    command = prepare(Resources(options=[("dependency", "afterok:5")]), DATA).command
    assert "--dependency=singleton,afterok:5" in command


def test_what_is_secret_does_not_become_an_argument_that_everybody_can_read(tmp_path: Path) -> None:
    with pytest.raises(SubmitError, match="everybody can read"):
        prepare(Resources(), [*DATA, "--data.storage_options", "secret", "hunter2"])
    prepare(Resources(), [*DATA, "--data.storage_options", "profile", "mine"])
    for url in (["--checkpoint.url", "s3://key:hunter2@bucket/x"], ["--checkpoint.url=s3://key:hunter2@bucket/x=y"]):
        with pytest.raises(SubmitError, match="credentials in a URL: everybody can read") as refused:
            prepare(Resources(), [*DATA, *url])
        assert "hunter2" not in str(refused.value)
    sweep = tmp_path / "sweep.yaml"
    for text in ("checkpoint.url: ['s3://key:hunter2@bucket/x']", "data.storage_options: ['secret hunter2']"):
        sweep.write_text(text)
        with pytest.raises((SubmitError, ConfigError), match=r"everybody can read|not for a sweep"):
            prepare(Resources(), DATA, sweep)
    config = tmp_path / "config.yaml"
    config.write_text("data: {shards: s3://bucket/set, storage_options: {secret: hunter2}}")
    submission = prepare(Resources(), ["--config", str(config)])
    assert "hunter2" not in str(submission) + describe(submission, "1")


def test_a_finished_run_is_not_submitted_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, writes=True)
    folder.event("start", attempt=1, step=0)
    folder.event("end", step=10, reason="finished")
    folder.close()
    settings = [*DATA, "--run", str(tmp_path), "--training.steps"]
    with pytest.raises(SubmitError, match=r"all 10 steps are done\. Give more --training\.steps"):
        prepare(Resources(), [*settings, "10"])
    prepare(Resources(), [*settings, "11"])


def test_a_sweep_gives_each_combination_its_settings_and_a_folder_of_its_own(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("training.global_batch: [64, 128]\ndata.flip: [true, false]\n")
    submission = prepare(Resources(at_once=2), [*DATA, "--run", str(tmp_path / "s"), "--seed", "3"], sweep)
    assert [run.name for run in submission.runs] == [
        f"training.global_batch={batch},data.flip={flip}" for batch in (64, 128) for flip in ("True", "False")
    ]
    assert "--array=0-3%2" in submission.command
    assert f"--output={tmp_path}/s/slurm/%A_%a.log" in submission.command
    assert submission.plan is not None
    path, content = submission.plan
    path.parent.mkdir(parents=True)
    path.write_text(content)
    shared = submission.command[submission.command.index("--") + 1 :]
    assert element_settings(path, shared, {"SLURM_ARRAY_TASK_ID": "2"}) == [
        *(*DATA, "--run", str(tmp_path / "s"), "--seed", "3"),
        *("--training.global_batch=128", "--data.flip=True", f"--run={submission.runs[2]}"),
        f"--monitoring.run_name=s/{submission.runs[2].name}",
    ]
    for number in ("4", "", "x"):
        with pytest.raises(ConfigError, match="no settings for element"):
            element_settings(path, shared, {"SLURM_ARRAY_TASK_ID": number})
    assert "element 3" in describe(submission, "9")


def test_the_runs_of_a_sweep_are_below_a_folder_that_has_a_dollar(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("seed: [1, 2]")
    submission = prepare(Resources(), [*DATA, "--run", str(tmp_path / "a$$b")], sweep)
    assert submission.runs == [tmp_path / "a$b" / "seed=1", tmp_path / "a$b" / "seed=2"]
    assert submission.plan is not None
    path, content = submission.plan
    path.parent.mkdir(parents=True)
    path.write_text(content)
    settings = element_settings(path, [*DATA, "--run", str(tmp_path / "a$$b")], {"SLURM_ARRAY_TASK_ID": "1"})
    assert parse_settings(settings).run == str(submission.runs[1])


def test_a_changed_sweep_never_continues_a_run_of_another_combination(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.yaml"
    names = set()
    for values in ("[1]", "[2]", "[1, 2]"):
        sweep.write_text(f"seed: {values}")
        submission = prepare(Resources(), [*DATA, "--run", str(tmp_path / "s")], sweep)
        names |= {run.name for run in submission.runs}
        assert submission.plan is not None
        assert json.loads(submission.plan[1])
    assert names == {"seed=1", "seed=2"}
    assert run_name({"data.shards": "s3://a/b"}) != run_name({"data.shards": "s3:__a_b"}), "characters that no file name has stay different"
    assert len(run_name({"data.shards": "x" * 1000})) < 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 3", "a list of values"),
        ("[1, 2]", "a list of values"),
        ("", "a list of values"),
        ("seed: []", "a list of values"),
        ("run: [a, b]", "run is not for a sweep"),
        ("method.optimiser.betas: [[0.9, 0.99]]", "only plain values"),
        ("a: [", "not readable as YAML"),
        ("seed: [1]\nseed: [2]\n", "seed is given twice, in lines 1 and 2"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_combinations(tmp_path / "sweep.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: [1, 2, 1]", "seed=1 is the same run as seed=1"),
        ("method.optimiser.learning_rate: [0.001, 1e-3]", "method.optimiser.learning_rate=1e-3 is the same run as"),
        ("monitoring.run_name: [a, b]", "monitoring.run_name=b is the same run as monitoring.run_name=a"),
    ],
)
def test_a_sweep_that_has_one_run_twice_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"--array: {message}.*Give each value of a setting once"):
        prepare(Resources(), [*DATA, "--run", str(tmp_path / "s")], tmp_path / "sweep.yaml")


def test_one_wrong_combination_refuses_the_whole_sweep(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("training.steps: [10, 0]")
    with pytest.raises(ConfigError, match=r"training\.steps: 0"):
        prepare(Resources(), DATA, tmp_path / "sweep.yaml")
    with pytest.raises(ConfigError, match="No such file"):
        prepare(Resources(), DATA, tmp_path / "nothing.yaml")
