"""A checkpoint exists whole or not at all; what a damaged one does to a resume is in test_damaged_checkpoints.py."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
import safetensors.torch
import torch

from launch.local.object_store import SeaweedFS
from pipeline.training.checkpoint.snapshot import SnapshotMemory
from pipeline.training.checkpoint.store import (
    COMMIT,
    Checkpoint,
    CheckpointInvalid,
    CheckpointStore,
    SaveOutcome,
    describe,
    folder_name,
    read,
    step_of,
    verify,
    write,
)
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
    checkpoints.retention.sweep()
    if store.local is not None:
        assert [path.name for path in store.local.iterdir()] == [folder_name(10)]
    assert {name.partition("/")[0] for name, _ in store.list()} == {folder_name(10)}


def test_retention_keeps_the_last_and_every_nth(store: Store) -> None:
    reports: list[SaveOutcome] = []
    checkpoints = CheckpointStore(store, keep_last=2, keep_every=20, report=reports.append)
    for step in range(5, 50, 5):
        checkpoints.save(checkpoint(step))
    checkpoints.wait()
    assert checkpoints.steps() == [20, 40, 45]
    assert [report.step for report in reports] == list(range(5, 50, 5))
    assert all(report.error is None and report.bytes > 2000 for report in reports)


@pytest.mark.parametrize("read_back", [True, False])
def test_a_disk_that_spoils_what_it_was_given_is_noticed_before_older_ones_are_deleted(tmp_path: Path, read_back: bool) -> None:
    class Spoiling(Store):
        """Changes one byte of a file that was written whole, as a failing disk does."""

        def write(self, name: str, data: bytes) -> None:
            super().write(name, data)
            if name == f"{folder_name(2)}/{COMMIT}":
                with (tmp_path / folder_name(2) / "player.safetensors").open("r+b") as file:
                    file.seek(-5, os.SEEK_END)
                    file.write(b"?")

    reports: list[SaveOutcome] = []
    checkpoints = CheckpointStore(Spoiling(str(tmp_path)), keep_last=1, read_back=read_back, report=reports.append)
    for step in (1, 2):
        checkpoints.save(checkpoint(step))
    checkpoints.wait()
    assert [report.verified for report in reports] == [read_back, False]
    assert bool(reports[1].error) == read_back
    assert checkpoints.steps() == ([1, 2] if read_back else [2])
    checkpoints.save(checkpoint(3))
    checkpoints.wait()
    assert checkpoints.steps() == ([2, 3] if read_back else [3])


@pytest.mark.parametrize("times", [1, 2])
def test_what_an_s3_client_finds_damaged_is_read_again_and_then_damage(tmp_path: Path, times: int) -> None:
    class FlexibleChecksumError(Exception):
        """As botocore has it."""

    class Checking(Store):
        left = times

        def read_range(self, name: str, start: int, end: int) -> bytes:
            if name.endswith("player.safetensors") and self.left:
                self.left -= 1
                raise StoreError(name) from FlexibleChecksumError("Expected checksum 1 did not match calculated checksum: 2")
            return super().read_range(name, start, end)

    write(Store(str(tmp_path)), checkpoint(1))
    if times == 1:
        assert verify(Checking(str(tmp_path)), 1) > 2000
    else:
        with pytest.raises(CheckpointInvalid, match=r"player\.safetensors: damaged"):
            verify(Checking(str(tmp_path)), 1)


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
    reports: list[SaveOutcome] = []
    checkpoints = CheckpointStore(Store(str(folder)), report=reports.append)
    for step in (1, 2, 3):
        checkpoints.save(checkpoint(step))
    with pytest.raises(StoreError, match="3 checkpoints in a row"):
        checkpoints.save(checkpoint(4))
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
        "from pipeline.training.checkpoint.store import Checkpoint, CheckpointStore\n"
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


def test_snapshots_use_the_same_memory_again() -> None:
    memory = SnapshotMemory()
    one = memory.snapshot(checkpoint(1).tensors)
    assert one.wait() == 0.0
    places = {name: tensor.data_ptr() for part in one.tensors.values() for name, tensor in part.items()}
    other = memory.snapshot(checkpoint(2).tensors)
    assert {name: tensor.data_ptr() for part in other.tensors.values() for name, tensor in part.items()} == places
    assert_equal(Checkpoint(2, {}, other.tensors), Checkpoint(2, {}, checkpoint(2).tensors))
    smaller = {"player": {"transposed": torch.arange(6, dtype=torch.float64).reshape(2, 3).t()}}
    assert memory.snapshot(smaller).tensors["player"]["transposed"].tolist() == [[0, 3], [1, 4], [2, 5]]
    larger = {"player": {"weight": torch.arange(100_000, dtype=torch.int32)}}
    assert memory.snapshot(larger).tensors["player"]["weight"].equal(larger["player"]["weight"])


class Gated(Store):
    """Takes the commit file when the gate is open."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.gate = threading.Event()

    def write(self, name: str, data: bytes) -> None:
        assert self.gate.wait(60)
        super().write(name, data)


def test_what_a_save_blocks_includes_the_wait_for_the_save_before(tmp_path: Path) -> None:
    reports: list[SaveOutcome] = []
    store = Gated(str(tmp_path))
    checkpoints = CheckpointStore(store, report=reports.append)
    checkpoints.save(checkpoint(1))
    opened = []

    def open_gate() -> None:
        opened.append(time.monotonic())
        store.gate.set()

    threading.Timer(0.3, open_gate).start()
    called = time.monotonic()
    checkpoints.save(checkpoint(2), began=called - 100.0)
    checkpoints.wait()
    assert reports[0].waited_seconds < reports[1].waited_seconds
    assert reports[1].waited_seconds >= opened[0] - called - 0.01
    assert reports[1].blocked_seconds >= 100.0 + reports[1].waited_seconds - 0.01


def test_a_save_blocks_for_a_part_of_what_a_synchronous_one_takes(tmp_path: Path) -> None:
    reports: list[SaveOutcome] = []
    checkpoints = CheckpointStore(Store(str(tmp_path / "behind")), keep_last=1, report=reports.append)
    tensors = {"player": {str(number): torch.randn(4_000_000) for number in range(4)}}
    synchronous = []
    for step in range(5):
        checkpoints.save(Checkpoint(step, {}, tensors))
        checkpoints.wait(must_succeed=True)
        began = time.monotonic()
        write(Store(str(tmp_path / "waited")), Checkpoint(step, {}, tensors))
        synchronous.append(time.monotonic() - began)
    blocked = [report.blocked_seconds for report in reports[1:]]
    assert statistics.median(blocked) < 0.5 * statistics.median(synchronous)  # a twelfth on the machines that it was measured on


def test_what_a_store_silently_loses_is_no_checkpoint(tmp_path: Path) -> None:
    class Forgetful(Store):
        @contextmanager
        def writing(self, name: str, block: int | None = None) -> Iterator[IO[bytes]]:
            with super().writing(name, block) as file:
                yield file
                file.truncate(100)

    write(Store(str(tmp_path)), checkpoint(1))
    checkpoints = CheckpointStore(Forgetful(str(tmp_path)))
    checkpoints.save(checkpoint(2))
    with pytest.raises(StoreError, match=r"player\.safetensors: the store took [\d,]+ bytes and has 100"):
        checkpoints.wait(must_succeed=True)
    assert checkpoints.steps() == [1]


def test_a_checkpoint_that_can_not_be_retired_is_a_warning(tmp_path: Path) -> None:
    class Keeping(Store):
        def delete(self, name: str) -> None:
            if name.startswith(folder_name(1)):
                raise StoreError(f"{name}: may not be deleted")
            super().delete(name)

    write(Store(str(tmp_path)), checkpoint(1))
    reports: list[SaveOutcome] = []
    checkpoints = CheckpointStore(Keeping(str(tmp_path)), keep_last=1, report=reports.append)
    checkpoints.save(checkpoint(2))
    checkpoints.wait(must_succeed=True)
    assert reports[0].error is None
    assert "older checkpoints could not be deleted: step_000000001" in str(reports[0].warning)
    assert checkpoints.steps() == [1, 2]


def test_a_record_that_can_not_be_written_reaches_the_run(tmp_path: Path) -> None:
    def refuse(_: SaveOutcome) -> None:
        raise OSError("no room for the record")

    checkpoints = CheckpointStore(Store(str(tmp_path)), report=refuse)
    checkpoints.save(checkpoint(1))
    with pytest.raises(OSError, match="no room for the record"):
        checkpoints.wait()
    checkpoints.wait()


def test_the_record_is_on_the_disk_before_a_checkpoint_exists(tmp_path: Path) -> None:
    checkpoints = CheckpointStore(Store(str(tmp_path)))
    seen: list[list[int]] = []
    checkpoints.before_commit = lambda: seen.append(checkpoints.steps())
    checkpoints.save(checkpoint(1))
    checkpoints.wait(must_succeed=True)
    assert seen == [[]]

    def refuse() -> None:
        raise OSError("the history is not on the disk")

    checkpoints.before_commit = refuse
    checkpoints.save(checkpoint(2))
    with pytest.raises(StoreError, match="the history is not on the disk"):
        checkpoints.wait(must_succeed=True)
    assert checkpoints.steps() == [1]
