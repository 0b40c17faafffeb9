"""A checkpoint exists whole or not at all, and any damaged byte is noticed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from pipeline.training.checkpoint import (
    COMMIT,
    Checkpoint,
    CheckpointInvalid,
    CheckpointStore,
    SaveReport,
    describe,
    folder_name,
    read,
    step_of,
    verify,
    write,
)
from shards.embedded_store import SeaweedFS
from shards.errors import StoreError
from shards.store import Store


def checkpoint(step: int) -> Checkpoint:
    torch.manual_seed(step)
    weights = {"conv.weight": torch.randn(4, 3, 5, 5), "norm.num_batches_tracked": torch.tensor(step), "empty": torch.empty(0, 3)}
    state = {"conv.weight/exp_avg": torch.randn(4, 3, 5, 5).to(torch.bfloat16), "conv.weight/step": torch.tensor(float(step))}
    return Checkpoint(
        step, {"recipe": "features", "position": {"epoch": 1, "consumed": 64}}, {"player": weights, "player.optimiser": state}
    )


def assert_equal(found: Checkpoint, expected: Checkpoint) -> None:
    assert found.step == expected.step
    assert {key: found.facts[key] for key in expected.facts} == expected.facts
    assert found.tensors.keys() == expected.tensors.keys()
    for file, tensors in expected.tensors.items():
        assert found.tensors[file].keys() == tensors.keys()
        for name, tensor in tensors.items():
            other = found.tensors[file][name]
            assert other.dtype == tensor.dtype
            assert torch.equal(other, tensor)


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.server)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "disk":
        return Store(str(tmp_path / "check points"))
    server: SeaweedFS = request.getfixturevalue("s3")
    bucket = f"checkpoints-{time.time_ns()}"
    server.make_bucket(bucket)
    return Store(f"s3://{bucket}/run", server.options)


def test_what_is_saved_is_what_is_read(store: Store) -> None:
    write(store, checkpoint(7))
    assert_equal(read(store, 7), checkpoint(7))
    assert verify(store, 7) > 2000


def test_the_files_are_plain_safetensors(tmp_path: Path) -> None:
    write(Store(str(tmp_path)), checkpoint(7))
    found = safetensors.torch.load_file(tmp_path / folder_name(7) / "player.safetensors")
    assert torch.equal(found["conv.weight"], checkpoint(7).tensors["player"]["conv.weight"])


def test_any_damaged_byte_of_any_file_is_noticed(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write(store, checkpoint(3))
    for path in sorted((tmp_path / folder_name(3)).iterdir()):
        whole = path.read_bytes()
        for place in range(0, len(whole), 1 if path.name == COMMIT else 37):
            damaged = bytearray(whole)
            damaged[place] ^= 0x01
            path.write_bytes(damaged)
            with pytest.raises(CheckpointInvalid, match=folder_name(3)):
                verify(store, 3)
        path.write_bytes(whole[:-1])
        with pytest.raises(CheckpointInvalid, match=folder_name(3)):
            read(store, 3)
        path.write_bytes(whole)
    verify(store, 3)


def test_the_newest_that_verifies_is_found_and_damaged_ones_are_reported_and_left(store: Store) -> None:
    checkpoints = CheckpointStore(store)
    for step in (10, 20, 30):
        write(store, checkpoint(step))
    name = f"{folder_name(30)}/player.safetensors"
    store.write(name, store.read(name)[:-3] + b"abc")
    store.delete(f"{folder_name(20)}/player.optimiser.safetensors")
    skipped: list[str] = []
    found = checkpoints.newest(skipped.append)
    assert found is not None
    assert_equal(found, checkpoint(10))
    assert len(skipped) == 2
    assert "step_000000030/player.safetensors: damaged" in skipped[0]
    assert "step_000000020/player.optimiser.safetensors: is missing" in skipped[1]
    assert checkpoints.steps() == [10, 20, 30]


def test_without_its_commit_file_a_checkpoint_does_not_exist(store: Store) -> None:
    checkpoints = CheckpointStore(store)
    write(store, checkpoint(10))
    write(store, checkpoint(20))
    store.delete(f"{folder_name(20)}/{COMMIT}")
    assert checkpoints.steps() == [10]
    store.write(f"{folder_name(30)}/.partial-killed", b"half a file")
    checkpoints.sweep()
    if store.local is not None:
        assert [path.name for path in store.local.iterdir()] == [folder_name(10)]
    assert {name.partition("/")[0] for name, _ in store.list()} == {folder_name(10)}


def test_retention_keeps_the_last_and_every_nth(store: Store) -> None:
    reports: list[SaveReport] = []
    checkpoints = CheckpointStore(store, keep_last=2, keep_every=20, report=reports.append)
    for step in range(5, 50, 5):
        checkpoints.save(checkpoint(step))
    checkpoints.wait()
    assert checkpoints.steps() == [20, 40, 45]
    assert [report.step for report in reports] == list(range(5, 50, 5))
    assert all(report.error is None and report.bytes > 2000 for report in reports)


def test_a_save_holds_what_was_there_when_it_was_called(store: Store) -> None:
    checkpoints = CheckpointStore(store)
    saved = checkpoint(5)
    checkpoints.save(saved)
    for tensor in saved.tensors["player"].values():
        tensor.zero_()
    checkpoints.wait()
    assert_equal(read(store, 5), checkpoint(5))


def test_saves_that_fail_are_reported_and_the_third_in_a_row_stops_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.write_text("a file where the folder should be")
    reports: list[SaveReport] = []
    checkpoints = CheckpointStore(Store(str(folder)), report=reports.append)
    for step in (1, 2, 3):
        checkpoints.save(checkpoint(step))
    with pytest.raises(StoreError, match="3 checkpoints in a row"):
        checkpoints.wait()
    assert all(report.error for report in reports)
    again = CheckpointStore(Store(str(folder)))
    again.save(checkpoint(1))
    with pytest.raises(StoreError, match="could not be written"):
        again.wait(must_succeed=True)


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_save_leaves_the_last_checkpoint_usable(tmp_path: Path) -> None:
    script = (
        "import sys, torch\n"
        "from pipeline.training.checkpoint import Checkpoint, CheckpointStore\n"
        "from shards.store import Store\n"
        "checkpoints = CheckpointStore(Store(sys.argv[1]), keep_last=2)\n"
        "for step in range(1, 10_000):\n"
        "    tensors = {'player': {'weight': torch.full((2_000_000,), float(step))}, 'other': {'weight': torch.full((10,), float(step))}}\n"
        "    checkpoints.save(Checkpoint(step, {}, tensors))\n"
        "    print(step, flush=True)\n"
    )
    newest = 0
    for delay in (0.0, 0.013, 0.031, 0.057, 0.083):
        child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        for _ in range(4):
            child.stdout.readline()
        time.sleep(delay)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        skipped: list[str] = []
        found = CheckpointStore(Store(str(tmp_path))).newest(skipped.append)
        assert found is not None
        assert skipped == []
        for file in ("player", "other"):
            assert torch.all(found.tensors[file]["weight"] == found.step)
        newest = max(newest, found.step)
    assert newest >= 2


def test_other_formats_and_names_are_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(CheckpointInvalid, match="no such checkpoint"):
        describe(store, 1)
    with pytest.raises(CheckpointInvalid, match="called like step_000001000"):
        step_of("latest", "runs/x/latest")
    assert step_of("step_000000012", "") == 12
    store.write(f"{folder_name(1)}/{COMMIT}", json.dumps({"format": "else"}).encode())
    with pytest.raises(CheckpointInvalid, match="damaged"):
        describe(store, 1)


def test_going_back_behind_a_damaged_checkpoint_loses_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for step in (100, 137):
        write(store, checkpoint(step))
    (tmp_path / folder_name(137) / "player.safetensors").write_bytes(b"damaged")
    checkpoints = CheckpointStore(store, keep_last=1)
    found = checkpoints.newest(lambda _: None)
    assert found is not None
    assert found.step == 100
    checkpoints.save(checkpoint(120))
    checkpoints.wait()
    assert checkpoints.steps() == [120, 137]
    again = CheckpointStore(store).newest(lambda _: None)
    assert again is not None
    assert again.step == 120
    checkpoints.save(checkpoint(137))
    checkpoints.wait()
    assert checkpoints.steps() == [137]
    assert verify(store, 137) > 2000


@pytest.mark.server
def test_a_store_that_does_not_answer_is_no_reason_to_go_back(s3: SeaweedFS, tmp_path: Path) -> None:
    bucket = f"silent-{time.time_ns()}"
    s3.make_bucket(bucket)
    store = Store(f"s3://{bucket}/run", s3.options)
    for step in (1, 2):
        write(store, checkpoint(step))

    class Silent(Store):
        def read(self, name: str) -> bytes:
            if name.endswith("player.safetensors"):
                return Store(self.url, {**s3.options, "endpoint_url": "http://127.0.0.1:9"}).read(name)
            return super().read(name)

    with pytest.raises(StoreError, match=r"player\.safetensors"):
        CheckpointStore(Silent(store.url, s3.options)).newest(lambda _: None)


def test_while_a_checkpoint_is_written_anew_it_does_not_exist(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write(store, checkpoint(5))
    (tmp_path / folder_name(5) / "player.optimiser.safetensors").unlink()
    (tmp_path / folder_name(5) / "player.optimiser.safetensors").mkdir()  # so that the second file can't be written
    with pytest.raises(StoreError):
        write(store, checkpoint(5))
    assert CheckpointStore(store).steps() == []
