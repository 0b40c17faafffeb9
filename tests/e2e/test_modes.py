"""A run changes its mode and its ranks on the way, is resumed to the last bit in each mode, and starts with every file of
launch/accelerate."""

from __future__ import annotations

import math
import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline.training.checkpoint.store import read
from pipeline.training.record.ledger import account
from pipeline.training.record.run_folder import read_lines
from shards.store import Store
from tests.conftest import ROOT
from tests.launching import ACCELERATE, clean_environment, launch, losses, python, run_alone, run_program, setting_list, train_in_turn
from tests.ports import free_port

SMALL = ["--recipe", "inpainting", "--method.width", "8", "--method.bottleneck", "16", "--method.batch_norm_group", "2"]
SETTINGS = [*SMALL, "--training.global_batch", "10", "--training.micro_batch", "4", "--data.shuffle_block", "16"]


def command(shards: Path, run: Path, steps: int, mode: str, *more: str) -> list[str]:
    return [*setting_list(shards, run, steps, *SETTINGS), "--training.mode", mode, *more]


def assert_equal_runs(one: Path, other: Path, steps: int, norms: bool = True) -> None:
    """Every bit; `norms` too, which each mode adds up in its own order."""
    rows = [losses(one), losses(other)]
    for row in [] if norms else [*rows[0].values(), *rows[1].values()]:
        del row["gradient_norms"]
    assert rows[0] == rows[1]
    first, second = (read(Store(str(run / "checkpoints")), steps) for run in (one, other))
    for file, tensors in second.tensors.items():
        assert first.tensors[file].keys() == tensors.keys()
        assert [name for name, tensor in tensors.items() if not tensor.equal(first.tensors[file][name])] == [], file


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_resume_is_exact_in_every_mode_and_from_mode_to_mode(shards: Path, tmp_path: Path) -> None:
    """At two ranks, with pictures drawn on the way, accumulation and momenta, at rates that move the weights. From mode to mode it is
    without accumulation, which each of them adds up in its own order. The discriminator is conditional, so that it takes a named input."""
    conditional = ["--method.conditional_discriminator", "True"]
    whole, drawing = ["--training.micro_batch", "10", *conditional], ["--training.pictures_every", "2", *conditional]
    runs = [command(shards, tmp_path / "straight", 6, "ddp", *whole)]
    runs += [
        command(shards, tmp_path / "wandering", steps, mode, *whole) for steps, mode in enumerate(["zero1", "zero3", "ddp", "zero2"], 1)
    ]
    runs += [command(shards, tmp_path / "wandering", 6, "zero3", *whole)]
    for mode in ("zero2", "zero3"):
        runs += [command(shards, tmp_path / f"{mode} straight", 6, mode, *drawing)]
        runs += [command(shards, tmp_path / f"{mode} resumed", steps, mode, *drawing) for steps in (3, 6)]
    train_in_turn(tmp_path, 2, runs)
    assert_equal_runs(tmp_path / "wandering", tmp_path / "straight", 6, norms=False)
    for mode in ("zero2", "zero3"):
        assert_equal_runs(tmp_path / f"{mode} resumed", tmp_path / f"{mode} straight", 6)
        assert len(list((tmp_path / f"{mode} resumed" / "pictures").glob("*.png"))) == 3
    assert read(Store(str(tmp_path / "wandering" / "checkpoints")), 6).facts["mode"] == "zero3"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_goes_on_with_other_ranks_in_other_modes(shards: Path, tmp_path: Path) -> None:
    """2 ranks with DDP, 1 and 3 with ZeRO, 4 with DDP: the batches and the losses of a run that nothing happened to."""
    rates = [
        part
        for name in ("optimiser", "discriminator_optimiser")
        for part in (f"--method.{name}.learning_rate", "1e-6", f"--method.{name}.epsilon", "1e-4")
    ]
    run, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    for ranks, mode, steps in ((2, "ddp", 3), (1, "zero2", 5), (3, "zero3", 8), (4, "ddp", 10)):
        done = launch(ranks, *command(shards, run, steps, mode, *rates))
        assert done.returncode == 0, done.stderr[-3000:]
    assert launch(1, *command(shards, undisturbed, 10, "ddp", *rates)).returncode == 0
    found, expected = losses(run), losses(undisturbed)
    assert list(expected) == list(range(1, 11))
    assert {step: row["samples"] for step, row in found.items()} == {step: row["samples"] for step, row in expected.items()}
    for step, row in expected.items():
        for player, parts in row["losses"].items():
            assert found[step]["losses"][player] == pytest.approx(parts, rel=1e-4, abs=1e-6), (step, player)
    assert account(run).problems == []
    starts = [row["world_size"] for row in read_lines(run / "events.jsonl") if row["event"] == "start"]
    assert starts == [2, 1, 3, 4]
    said = run_program("launch/ledger.py", str(run))
    assert said.returncode == 0, said.stdout + said.stderr


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["zero2", "zero3"])
def test_the_zero_files_choose_the_mode(shards: Path, tmp_path: Path, mode: str) -> None:
    launcher = [python(), ACCELERATE, "launch", "--config_file", f"launch/accelerate/{mode}.yaml", "--num_processes", "2"]
    settings = setting_list(shards, tmp_path / "run", 2, *SETTINGS, "--monitoring.enabled", "False")
    run = subprocess.run(
        [*launcher, "launch/pretrain.py", *settings],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "world size 2 (cpu)" in run.stderr
    assert read(Store(str(tmp_path / "run" / "checkpoints")), 2).facts["mode"] == mode
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["training"]["mode"] == mode


@pytest.mark.slow
def test_the_nodes_file_joins_two_machines(shards: Path, tmp_path: Path) -> None:
    """Two launchers, as two machines would have them, on the loopback interface."""
    port = str(free_port())
    launcher = [python(), ACCELERATE, "launch", "--config_file", "launch/accelerate/nodes.yaml"]
    launcher += ["--num_machines", "2", "--num_processes", "2"]
    settings = setting_list(shards, tmp_path / "run", 2, *SETTINGS, "--monitoring.enabled", "False")
    machines = []
    for rank in ("0", "1"):
        place = ["--machine_rank", rank, "--main_process_ip", "127.0.0.1", "--main_process_port", port]
        with open(tmp_path / f"machine {rank}", "wb") as log:
            started = [*launcher, *place, "launch/pretrain.py", *settings]
            machines.append(subprocess.Popen(started, cwd=ROOT, env=clean_environment(), stdout=log, stderr=log))
    try:
        codes = [machine.wait(timeout=280) for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    log = (tmp_path / "machine 0").read_text()
    assert codes == [0, 0], log
    assert "world size 2 (cpu)" in log
    assert "finished: 2 steps with 2 ranks" in log


def test_switches_of_the_launcher_that_disagree_end_with_one_line(shards: Path, tmp_path: Path) -> None:
    settings = setting_list(shards, tmp_path / "run", 1, *SETTINGS)
    told = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3", "ACCELERATE_GRADIENT_CLIPPING": "1.0"}
    done = run_alone(*settings, **told)
    assert done.returncode == 1
    assert "error: training.max_gradient_norm: the launcher has gradient_clipping 1.0, the configuration 0.0" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_batch_norm_over_all_ranks_trains_with_shares_and_micro_batches_that_differ(shards: Path, tmp_path: Path) -> None:
    """3 ranks share 7 samples as 2, 2 and 3, in micro-batches of one: two ranks have an empty one, and must come to every sum."""
    over_ranks = ["--method.batch_norm_group", "0", "--training.global_batch", "7", "--training.micro_batch", "1"]
    done = launch(3, *command(shards, tmp_path / "run", 4, "ddp", *over_ranks, "--training.timeout_minutes", "2"))
    assert done.returncode == 0, done.stderr[-3000:]
    for row in losses(tmp_path / "run").values():
        assert all(math.isfinite(value) for parts in row["losses"].values() for value in parts.values())
