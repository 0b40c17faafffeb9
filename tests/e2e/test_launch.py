"""First commands of a new user, and settings that are refused before anything is trained."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch

from launch.local.object_store import SeaweedFS
from pipeline.training.checkpoint.store import CheckpointStore, verify
from pipeline.training.record.run_folder import read_lines
from shards.store import Store
from tests.conftest import ROOT
from tests.datasets import photographs, upload, write_dataset
from tests.launching import clean_environment, launch, rank_processes, run_alone, run_program, setting_list, start, wait_until

SMALL = ["--recipe", "inpainting", "--method.width", "8", "--method.bottleneck", "16", "--method.batch_norm_group", "2"]
BATCH = ["--training.global_batch", "8", "--training.micro_batch", "4"]


@pytest.mark.slow
def test_plain_accelerate_launch_trains_on_one_process_whatever_other_programs_left_around_it(shards: Path, tmp_path: Path) -> None:
    """A web service's folder of metrics, a rank of another launcher, an encoding without umlauts, and another project on the path."""
    for name in ("pipeline.py", "monitoring.py", "shards.py"):
        (tmp_path / name).write_text("raise ImportError('of another project')")
    around = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "missing"), "LOCAL_RANK": "0", "RANK": "", "PYTHONIOENCODING": "ascii"}
    settings = setting_list(shards, tmp_path / "run ä", 4, *SMALL, *BATCH)
    done = launch(1, *settings, real=True, PYTHONPATH=str(tmp_path), **around)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "world size 1 (cpu)" in done.stderr
    assert done.stdout.count("finished: 4 steps with 1 rank,") == 1
    assert "run \\xe4/report.html" in done.stdout


@pytest.mark.slow
def test_with_the_cpu_file_two_ranks_train_and_say_so_in_the_metrics(shards: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    settings = [*SMALL, *BATCH, "--training.pictures_every", "3", "--monitoring.peak_teraflops", "0.001"]
    launcher = start(2, *setting_list(shards, run, 100_000, *settings), log=log)
    try:
        wait_until(lambda: launcher.poll() is not None or len(read_lines(run / "history.jsonl")) > 5, log)
        (target,) = sorted((run / "targets").glob("*.json"))
        (address,) = json.loads(target.read_text())[0]["targets"]
        assert address.startswith("127.0.0.1:")
        text = urllib.request.urlopen(f"http://{address}/metrics", timeout=30).read().decode()
        for rank in (0, 1):
            assert re.search(rf'^context_encoder_rank_up\{{.*rank="{rank}".*\}} 1.0$', text, re.MULTILINE)
            assert re.search(rf'^context_encoder_world_size\{{.*rank="{rank}".*\}} 2.0$', text, re.MULTILINE)
            loss = rf'^context_encoder_loss\{{.*part="reconstruction",player="generator",rank="{rank}".*\}} 0\.\d+$'
            assert re.search(loss, text, re.MULTILINE)
            for name in ("step", "images_per_second", "data_wait_ratio", "checkpoint_age_seconds"):
                assert re.search(rf'^context_encoder_{name}\{{.*rank="{rank}"', text, re.MULTILINE), name
            assert re.search(rf'^context_encoder_model_flop_utilisation_ratio\{{.*rank="{rank}".*\}} \d\.\d+$', text, re.MULTILINE)
    finally:
        launcher.terminate()
        assert launcher.wait(timeout=60) is not None
    assert "world size 2 (cpu)" in log.read_text()
    began, row = read_lines(run / "events.jsonl")[0], read_lines(run / "history.jsonl")[-1]
    assert began["peak_flops"] == 2e9, "of both ranks, as the images a second of the history"
    expected = row["images_per_second"] * began["flops_per_image"] / began["peak_flops"]
    assert row["model_flop_utilisation"] == pytest.approx(expected, abs=1e-3)
    assert not list((run / "targets").glob("*.json"))
    store = Store(str(run / "checkpoints"))
    assert verify(store, CheckpointStore(store).steps()[-1]) > 10_000
    assert list((run / "pictures").glob("*.png"))


@pytest.mark.server
def test_checkpoints_and_shards_may_both_be_in_s3(s3: SeaweedFS, shards: Path, tmp_path: Path) -> None:
    bucket = f"launch-{time.time_ns()}"
    url = upload(s3, bucket, shards)
    settings = [*SMALL, *BATCH, "--data.cache", str(tmp_path / "cache"), "--checkpoint.url", f"s3://{bucket}/checkpoints"]
    for steps in (3, 5):
        done = launch(1, *setting_list(url, tmp_path / "run", steps, *settings), **s3.environment)
        assert done.returncode == 0, done.stderr[-3000:]
    assert "continues after step 3" in done.stderr
    assert CheckpointStore(Store(f"s3://{bucket}/checkpoints", s3.options)).steps() == [3, 5]
    for path in (tmp_path / "run").rglob("*"):
        assert path.is_dir() or s3.secret not in path.read_text(errors="replace")
    listed = run_program("launch/checkpoints.py", "verify", f"s3://{bucket}/checkpoints", **s3.environment)
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.count("verified") == 2


def refuse(message: str, *settings: str, real: bool = False, **environment: str) -> None:
    """The program ends with one clear line and without a traceback."""
    done = run_alone(*settings, real=real, **environment)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error") == 1, done.stderr


@pytest.mark.slow
def test_bad_settings_are_refused(shards: Path, tmp_path: Path) -> None:
    run = ["--run", str(tmp_path / "run")]
    refuse(r"--data\.shards", "--data.shard", str(shards))
    (tmp_path / "bad.yaml").write_text("training: {step: 3}")
    refuse("training.step: no such setting. Did you mean 'steps'", "--config", str(tmp_path / "bad.yaml"))
    refuse("data.shards: give the URL", *run, real=True)
    refuse(
        "method.mask.max_fraction: 7.0 is not above 0",
        "--config",
        str(write(tmp_path, "method: {mask: {max_fraction: 7}}")),
        "--data.shards",
        str(shards),
    )
    refuse(
        "training.micro_batch: 1 is less than the batch-norm group of 2",
        *setting_list(shards, tmp_path / "run", 1, *SMALL),
        *BATCH[:2],
        "--training.micro_batch",
        "1",
    )
    refuse(
        "training.precision: the launcher has mixed_precision bf16",
        *setting_list(shards, tmp_path / "run", 1),
        ACCELERATE_MIXED_PRECISION="bf16",
    )


def write(folder: Path, text: str) -> Path:
    path = folder / "written.yaml"
    path.write_text(text)
    return path


def test_a_missing_data_set_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refuse("empty holds no shards. Build it with", *setting_list(tmp_path / "empty", tmp_path / "run", 1))
    refuse("nothing/here", *setting_list(tmp_path / "nothing" / "here", tmp_path / "run", 1))


@pytest.mark.server
def test_a_missing_bucket_and_wrong_keys_are_named(s3: SeaweedFS, tmp_path: Path) -> None:
    refuse("s3://no-such-bucket", *setting_list("s3://no-such-bucket/set", tmp_path / "run", 1), **s3.environment)
    wrong = {**s3.environment, "AWS_SECRET_ACCESS_KEY": "wrong-secret"}
    refuse("access refused .*Check the credentials", *setting_list("s3://no-such-bucket/set", tmp_path / "run", 1), **wrong)


@pytest.mark.slow
def test_damaged_shards_are_named(tmp_path: Path) -> None:
    pictures = photographs(40, 140, 160)
    pictures[7] = pictures[7][:2000]
    settings = [*SMALL, *BATCH, "--training.steps", "5", "--run", str(tmp_path / "run"), "--data.shards"]
    write_dataset(tmp_path / "corrupt", pictures, [40])
    refuse(r"000000007.jpg in .*shard-000000.tar\): .*whole list is in .*quarantine.jsonl", *settings, str(tmp_path / "corrupt"))
    assert [row["cause"] for row in read_lines(tmp_path / "run" / "quarantine.jsonl")] == ["undecodable"]
    pictures = photographs(40, 140, 160)
    write_dataset(tmp_path / "flipped", pictures, [40])
    shard = tmp_path / "flipped" / "shard-000000.tar"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    refuse(r"its bytes are not those that were stored", *settings, str(tmp_path / "flipped"))
    write_dataset(tmp_path / "cut", pictures, [20, 20])
    with open(tmp_path / "cut" / "shard-000001.tar", "r+b") as file:
        file.truncate(50_000)
    refuse(r"shard-000001.tar: 50,000 bytes long", *settings, str(tmp_path / "cut"))
    write_dataset(tmp_path / "unindexed", pictures, [40])
    (tmp_path / "unindexed" / "shard-000000.tar.idx").unlink()
    refuse(r"shard-000000.tar has no readable index", *settings, str(tmp_path / "unindexed"))


def test_more_ranks_than_samples_in_a_batch_are_refused(shards: Path, tmp_path: Path) -> None:
    done = launch(3, *setting_list(shards, tmp_path / "run", 1, *SMALL, "--training.global_batch", "4", "--training.micro_batch", "2"))
    assert done.returncode != 0
    message = "3 ranks share 2 batch-norm groups of 2 a step: start at most 2 ranks"
    assert done.stderr.count(f"error: {message}") == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"the run has failed: {message}"), "behind the launcher's traceback"
    assert last.endswith(". Nothing is saved")


@pytest.mark.slow
def test_a_checkpoint_of_another_recipe_or_network_is_refused(shards: Path, tmp_path: Path) -> None:
    assert run_alone(*setting_list(shards, tmp_path / "run", 1, *SMALL, *BATCH)).returncode == 0
    refuse(
        "the checkpoint of step 1 is one of the recipe 'inpainting', this run's is 'autoencoder'",
        *setting_list(shards, tmp_path / "run", 2, "--recipe", "autoencoder", *BATCH),
    )
    wider = [*SMALL, "--method.width", "16"]
    refuse("does not fit the discriminator of these settings", *setting_list(shards, tmp_path / "run", 2, *wider, *BATCH))
    refuse("holds checkpoints up to step 1", *setting_list(shards, tmp_path / "run", 2, *SMALL, *BATCH, "--checkpoint.resume", "none"))
    refuse("seed", *setting_list(shards, tmp_path / "run", 2, *SMALL, *BATCH, "--seed", "3"))
    for path in (tmp_path / "run" / "checkpoints").rglob("*.safetensors"):
        path.write_bytes(b"")
    refuse("none of 1 checkpoint verifies", *setting_list(shards, tmp_path / "run", 2, *SMALL, *BATCH))


def test_two_runs_into_one_folder_are_refused(shards: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    first = start(1, *setting_list(shards, run, 100_000, *SMALL, *BATCH), log=log)
    try:
        wait_until(lambda: first.poll() is not None or read_lines(run / "history.jsonl"), log)
        refuse("another run is writing here", *setting_list(shards, run, 5, *SMALL, *BATCH))
    finally:
        first.terminate()
        first.wait(timeout=60)


@pytest.mark.slow
def test_processes_that_do_not_find_each_other_are_refused(shards: Path, tmp_path: Path) -> None:
    settings = setting_list(shards, tmp_path / "run", 1, *SMALL, *BATCH)
    refuse("WORLD_SIZE is 2 but MASTER_PORT is not set", *settings, WORLD_SIZE="2", RANK="0")
    script = (
        "import runpy, sys, torch.distributed as dist\n"
        "sys.argv = ['launch/pretrain.py', *sys.argv[1:]]\n"
        "dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)\n"
        "runpy.run_path('launch/pretrain.py', run_name='__main__')\n"
    )
    command = [sys.executable, "-c", script, *settings]
    environment = clean_environment(WORLD_SIZE="2", RANK="0", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "the launcher set WORLD_SIZE=2, but the processes that found each other are 1" in done.stderr


def test_gradients_that_are_not_finite_stop_the_run(shards: Path, tmp_path: Path) -> None:
    settings = setting_list(shards, tmp_path / "run", 30, *SMALL, *BATCH, "--training.max_nonfinite_steps", "2")
    refuse("3 steps in a row gave a gradient that is not finite", *settings, "--method.reconstruction_weight", "1e38")
    rows = read_lines(tmp_path / "run" / "history.jsonl")
    assert all(row["skipped"] for row in rows[-2:])
    end = read_lines(tmp_path / "run" / "events.jsonl")[-1]
    assert (end["event"], end["reason"]) == ("end", "NonFiniteError")
    targets = [path.name for path in (tmp_path / "run" / "targets").glob("*.json")]
    assert targets == ["rank0.json"], "so that Prometheus misses what ended with an error"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains_in_bf16(shards: Path, tmp_path: Path) -> None:
    done = launch(1, *setting_list(shards, tmp_path / "run", 4, *SMALL, *BATCH, "--training.precision", "bf16"), real=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "(cuda)" in done.stderr
    assert (tmp_path / "run" / "checkpoints").exists()


def test_bf16_on_processors_gives_nearly_the_losses_of_fp32(shards: Path, tmp_path: Path) -> None:
    last = {}
    for precision in ("fp32", "bf16"):
        settings = setting_list(shards, tmp_path / precision, 5, *SMALL, *BATCH, "--training.precision", precision)
        assert run_alone(*settings).returncode == 0
        last[precision] = [row["losses"]["generator"]["reconstruction"] for row in read_lines(tmp_path / precision / "history.jsonl")]
    assert last["bf16"] == pytest.approx(last["fp32"], rel=0.1)
    assert last["bf16"] != last["fp32"]


def test_what_only_rank_0_meets_ends_every_rank_with_one_message(shards: Path, tmp_path: Path) -> None:
    assert run_alone(*setting_list(shards, tmp_path / "run", 1, *SMALL, *BATCH)).returncode == 0
    done = launch(2, *setting_list(shards, tmp_path / "run", 2, *SMALL, *BATCH, "--checkpoint.resume", "none"))
    assert done.returncode != 0
    assert len(re.findall(r"^error.*holds checkpoints up to step 1", done.stderr, re.MULTILINE)) == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("the run has failed: ")
    assert last.endswith(f"Step 1 of {tmp_path / 'run'} is saved")
    assert not [row for row in read_lines(tmp_path / "run" / "events.jsonl") if row["event"] == "rank_died"], "rank 0 has explained it"
    assert "Connection closed by peer" not in done.stderr


def test_no_line_of_the_history_is_lost_when_a_run_is_stopped_between_two_logged_steps(shards: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    settings = setting_list(shards, run, 100_000, *SMALL, *BATCH, "--training.log_every", "100000", "--checkpoint.every", "3")
    launcher = start(1, *settings, log=log)
    wait_until(
        lambda: launcher.poll() is not None or [row for row in read_lines(run / "events.jsonl") if row["event"] == "checkpoint"], log
    )
    rank_processes(launcher)[0].terminate()
    assert launcher.wait(timeout=60) == 0, log.read_text()
    last = CheckpointStore(Store(str(run / "checkpoints"))).steps()[-1]
    assert [row["step"] for row in read_lines(run / "history.jsonl")] == list(range(1, last + 1))


def test_a_checkpoint_to_start_from_is_only_the_start(shards: Path, tmp_path: Path) -> None:
    assert run_alone(*setting_list(shards, tmp_path / "first", 2, *SMALL, *BATCH)).returncode == 0
    start_from = ["--checkpoint.resume", str(tmp_path / "first" / "checkpoints" / "step_000000002")]
    for steps, expected in ((4, "continues after step 2 of 4"), (6, "continues after step 4 of 6")):
        done = run_alone(*setting_list(shards, tmp_path / "second", steps, *SMALL, *BATCH, *start_from))
        assert done.returncode == 0, done.stderr
        assert expected in done.stderr
