"""A run that was killed, stopped or interrupted continues as if nothing had been, to the last bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from pipeline.model import Encoder
from pipeline.training.checkpoint.store import CheckpointStore, read
from pipeline.training.record.ledger import account
from pipeline.training.record.run_folder import read_lines
from shards.store import Store
from tests.launching import kill_all, launch, losses, rank_processes, ranks_of, run_program, setting_list, start, wait_until

STEPS, EVERY = 48, 3
LAST_KILL = 16
"""Step after which no run is disturbed. Many steps follow it, because a narrow network takes some while a busy machine does not look."""
COMMON = ["--training.global_batch", "4", "--checkpoint.every", str(EVERY), "--data.shuffle_block", "64"]
COMMON += ["--evaluation.every", "0"]  # an evaluation takes longer than the training, and never changes it
WIDTH = 12  # an eighth of the published network
KINDS = {
    "features": ["--recipe", "features", *COMMON, "--training.micro_batch", "1", "--method.width", str(WIDTH)],
    "inpainting": [
        *("--recipe", "inpainting", *COMMON, "--training.micro_batch", "2"),
        *("--method.batch_norm_group", "2", "--method.width", "8", "--method.bottleneck", "16"),
    ],
}


@pytest.fixture(scope="module")
def undisturbed(imagenet_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each recipe at two ranks that nothing happened to."""
    runs = {}
    for recipe, settings in KINDS.items():
        runs[recipe] = tmp_path_factory.mktemp(recipe) / "run"
        done = launch(2, *setting_list(imagenet_shards, runs[recipe], STEPS, *settings))
        assert done.returncode == 0, done.stderr[-3000:]
    return runs


def assert_equal_runs(run: Path, expected: Path) -> None:
    """Same losses, gradient norms and samples at every step, same weights and optimiser state at the end: every bit."""
    assert losses(run) == losses(expected)
    one, other = (read(Store(str(folder / "checkpoints")), STEPS) for folder in (run, expected))
    for file, tensors in other.tensors.items():
        for name, tensor in tensors.items():
            assert one.tensors[file][name].equal(tensor), (file, name)
    assert one.facts["position"] == other.facts["position"]
    assert_every_step_counts_once(run)


def assert_every_step_counts_once(run: Path) -> None:
    found = account(run)
    assert found.problems == []
    assert found.steps == STEPS


def steps_done(run: Path) -> int:
    return max(losses(run), default=0)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", KINDS)
@pytest.mark.parametrize("victim", ["one rank", "all"])
def test_kill_9_at_a_random_step(
    imagenet_shards: Path, undisturbed: dict[str, Path], tmp_path: Path, recipe: str, victim: str, draw: random.Random
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    settings = setting_list(imagenet_shards, run, STEPS, *KINDS[recipe])
    at = draw.randint(EVERY + 1, LAST_KILL)
    saved = CheckpointStore(Store(str(run / "checkpoints")))
    launcher = start(2, *settings, log=log)
    wait_until(lambda: len(ranks_of(launcher)) == 2 or launcher.poll() is not None, log)
    chosen = ranks_of(launcher)[draw.randrange(2)]
    # a save is written beside the steps that follow it
    wait_until(lambda: (steps_done(run) >= at and saved.steps()) or launcher.poll() is not None, log)
    if victim == "all":
        kill_all(launcher)
    else:
        chosen.kill()
        assert launcher.wait(timeout=60) != 0, log.read_text()
    assert steps_done(run) < STEPS
    assert saved.steps()
    done = launch(2, *settings)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "continues after step" in done.stderr
    assert_equal_runs(run, undisturbed[recipe])
    attempts = [row for row in read_lines(run / "events.jsonl") if row["event"] == "start"]
    assert [row["attempt"] for row in attempts] == [1, 2]
    assert attempts[1]["step"] >= EVERY
    assert attempts[1]["position"]["consumed"] == attempts[1]["step"] * 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_saves_and_ends_cleanly(imagenet_shards: Path, undisturbed: dict[str, Path], tmp_path: Path, name: str) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    settings = setting_list(imagenet_shards, run, STEPS, *KINDS["features"])
    launcher = start(2, *settings, log=log)
    wait_until(lambda: steps_done(run) >= 4 or launcher.poll() is not None, log)
    os.kill(rank_processes(launcher)[-1].pid, signal.Signals[name])  # one rank is told, all stop at the same step
    assert launcher.wait(timeout=60) == 0, log.read_text()
    stopped = steps_done(run)
    assert 4 <= stopped < STEPS
    assert CheckpointStore(Store(str(run / "checkpoints"))).steps()[-1] == stopped
    end = read_lines(run / "events.jsonl")[-1]
    assert (end["event"], end["step"]) == ("end", stopped)
    assert end["reason"] in (name, "another rank was asked to stop")
    assert f"stopped after step {stopped}" in log.read_text()
    assert launch(2, *settings).returncode == 0
    assert_equal_runs(run, undisturbed["features"])


@pytest.mark.slow
def test_a_launcher_that_is_killed_leaves_no_orphans(imagenet_shards: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    launcher = start(1, *setting_list(imagenet_shards, run, 10_000, *KINDS["features"]), log=log, real=True)
    wait_until(lambda: steps_done(run) >= 2 or launcher.poll() is not None, log)
    ranks = rank_processes(launcher)
    assert ranks
    launcher.kill()
    launcher.wait()
    for rank in ranks:
        rank.wait(timeout=60)
    assert read_lines(run / "events.jsonl")[-1]["reason"] == "PARENT_DIED"
    assert CheckpointStore(Store(str(run / "checkpoints"))).steps()[-1] == steps_done(run)


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_skipped(imagenet_shards: Path, undisturbed: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    subprocess.run(["cp", "-r", str(undisturbed["features"]), str(run)], check=True)
    newest = run / "checkpoints" / f"step_{STEPS:09d}" / "context_encoder.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    done = launch(2, *setting_list(imagenet_shards, run, STEPS, *KINDS["features"]))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "context_encoder.safetensors: damaged" in done.stdout + done.stderr
    assert f"continues after step {STEPS - EVERY}" in done.stderr
    assert_equal_runs(run, undisturbed["features"])


@pytest.mark.slow
def test_another_number_of_ranks_continues_with_the_same_samples(
    imagenet_shards: Path, undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    settings = setting_list(imagenet_shards, run, STEPS, *KINDS["features"])
    launcher = start(2, *settings, log=log)
    wait_until(lambda: steps_done(run) >= 5 or launcher.poll() is not None, log)
    kill_all(launcher)
    assert launch(3, *settings).returncode == 0
    found, expected = losses(run), losses(undisturbed["features"])
    assert {step: row["samples"] for step, row in found.items()} == {step: row["samples"] for step, row in expected.items()}
    last = [rows[STEPS]["losses"]["context_encoder"]["total"] for rows in (found, expected)]
    assert last[0] == pytest.approx(last[1], rel=1e-4)
    assert_every_step_counts_once(run)
    said = run_program("launch/ledger.py", str(run))
    assert said.returncode == 0, said.stderr
    assert f"{STEPS} steps count, of 2 attempts with 2, 3 ranks" in said.stdout
    assert "every counted step saw exactly the samples that the order has for it" in said.stdout


@pytest.mark.slow
def test_a_finished_run_is_left_alone(imagenet_shards: Path, undisturbed: dict[str, Path]) -> None:
    before, events = losses(undisturbed["features"]), read_lines(undisturbed["features"] / "events.jsonl")
    done = launch(2, *setting_list(imagenet_shards, undisturbed["features"], STEPS, *KINDS["features"]))
    assert done.returncode == 0
    assert f"finished before: {STEPS} steps are done" in done.stdout
    assert "world size" not in done.stderr, "no rank met another"
    assert losses(undisturbed["features"]) == before
    assert read_lines(undisturbed["features"] / "events.jsonl") == events


@pytest.mark.slow
def test_the_encoder_of_a_run_loads_into_the_network(undisturbed: dict[str, Path], tmp_path: Path) -> None:
    target = tmp_path / "encoder.safetensors"
    done = run_program("launch/export.py", str(undisturbed["features"]), str(target))
    assert done.returncode == 0, done.stderr
    assert f"after {STEPS} steps" in done.stdout
    encoder = Encoder("caffenet", width=WIDTH)
    encoder.load_state_dict(load_file(target))
    trained = read(Store(str(undisturbed["features"] / "checkpoints")), STEPS).tensors["context_encoder"]
    assert encoder.conv3.weight.equal(trained["encoder.conv3.weight"])
    with safe_open(target, "pt") as file:
        assert file.metadata()["step"] == str(STEPS)
    (tmp_path / "empty").mkdir()
    refused = run_program("launch/export.py", str(tmp_path / "empty"), str(target))
    assert refused.returncode == 1
    assert "no checkpoint that verifies" in refused.stderr
