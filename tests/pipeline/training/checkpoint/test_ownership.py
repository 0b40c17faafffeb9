"""Two runs never write into one place: another run is refused, and an attempt that was replaced stops by itself."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import torch

from launch.checkpoints import main
from launch.local.object_store import SeaweedFS
from pipeline.training.checkpoint.ownership import OWNER, Ownership, OwnershipLost, release
from pipeline.training.checkpoint.store import Checkpoint, CheckpointStore, SaveOutcome, verify
from pipeline.training.record.run_folder import RunFolder, RunFolderError
from shards.errors import StoreError
from shards.store import Store


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.server)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "disk":
        return Store(str(tmp_path / "checkpoints"))
    server: SeaweedFS = request.getfixturevalue("s3")
    return Store(f"{server.make_bucket(f'owners-{time.time_ns()}')}/run", server.options)


def claimed(store: Store, run: Path, **settings: int) -> CheckpointStore:
    checkpoints = CheckpointStore(Store(store.url, store.options), **settings)  # type: ignore[arg-type]
    checkpoints.claim(run)
    return checkpoints


def save(checkpoints: CheckpointStore, step: int) -> None:
    checkpoints.save(Checkpoint(step, {}, {"player": {"weight": torch.full((10,), float(step))}}))
    checkpoints.wait(must_succeed=True)


def test_the_same_run_always_takes_over_and_another_is_refused(store: Store, tmp_path: Path) -> None:
    save(claimed(store, tmp_path / "a"), 1)
    save(claimed(store, tmp_path / "a"), 2)
    with pytest.raises(RunFolderError, match=rf"the run in {tmp_path}/a on .*release {store.describe()}"):
        claimed(store, tmp_path / "b")
    save(claimed(store, tmp_path / "a"), 3)
    assert CheckpointStore(store).steps() == [1, 2, 3]


def test_a_run_that_was_moved_keeps_its_checkpoints(store: Store, tmp_path: Path) -> None:
    save(claimed(store, tmp_path / "a"), 1)
    shutil.move(tmp_path / "a", tmp_path / "b")
    save(claimed(store, tmp_path / "b"), 2)
    with pytest.raises(RunFolderError, match=r"the run in .*/b on"):
        claimed(store, tmp_path / "a")


def test_a_run_whose_folder_was_lost_with_its_machine_finds_its_checkpoints(store: Store, tmp_path: Path) -> None:
    save(claimed(store, tmp_path / "a"), 1)
    shutil.rmtree(tmp_path / "a")
    save(claimed(store, tmp_path / "a"), 2)
    save(claimed(store, tmp_path / "a"), 3)


def test_checkpoints_are_handed_over(store: Store, tmp_path: Path) -> None:
    old = claimed(store, tmp_path / "a")
    save(old, 1)
    assert release(store)
    assert not release(store)
    save(claimed(store, tmp_path / "b"), 2)
    with pytest.raises(OwnershipLost, match=r"the run in .*/b on .* has taken over"):
        save(old, 3)
    with pytest.raises(RunFolderError, match=r"the run in .*/b on"):
        claimed(store, tmp_path / "a")


def test_the_command_releases_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(str(tmp_path / "checkpoints"))
    claimed(store, tmp_path / "a")
    for said in ("the next run that starts here has these checkpoints", "no run has these checkpoints"):
        monkeypatch.setattr("sys.argv", ["launch/checkpoints.py", "release", store.url])
        assert main() == 0
        assert said in capsys.readouterr().out
    claimed(store, tmp_path / "b")


def test_an_attempt_that_was_replaced_writes_nothing_more_and_stops_at_once(store: Store, tmp_path: Path) -> None:
    reports: list[SaveOutcome] = []
    old = claimed(store, tmp_path / "a", keep_last=1)
    old.report = reports.append
    save(old, 1)
    new = claimed(store, tmp_path / "a", keep_last=5)
    save(new, 2)
    before = store.list()
    old.save(Checkpoint(9, {}, {"player": {"weight": torch.zeros(10)}}))
    with pytest.raises(OwnershipLost, match="taken over"):
        old.wait()
    assert "taken over" in str(reports[-1].error)
    assert store.list() == before
    assert verify(store, 2)


def test_an_attempt_that_is_replaced_in_the_middle_of_a_save_does_not_commit_it(store: Store, tmp_path: Path) -> None:
    old = claimed(store, tmp_path / "a")
    old.before_commit = lambda: claimed(store, tmp_path / "a").close()
    with pytest.raises(OwnershipLost):
        save(old, 1)
    assert CheckpointStore(store).steps() == []


def test_an_attempt_that_is_replaced_behind_its_commit_deletes_nothing(store: Store, tmp_path: Path) -> None:
    """Its successor takes over and saves while the old one still has its retention to do."""
    old, newer = claimed(store, tmp_path / "a", keep_last=1), []
    save(old, 1)
    prune = old.retention.prune

    def replaced_first() -> None:
        newer.append(claimed(store, tmp_path / "a", keep_last=9))
        for step in (2, 3):
            save(newer[0], step)
        store.write("step_000000004/player.safetensors", b"what the successor is writing right now")
        prune()

    old.retention.prune = replaced_first  # type: ignore[method-assign]
    old.save(Checkpoint(2, {}, {"player": {"weight": torch.zeros(10)}}))
    with pytest.raises(OwnershipLost, match="taken over"):
        old.wait()
    assert store.size("step_000000004/player.safetensors")
    assert verify(store, 3)
    old.retention.prune = prune  # type: ignore[method-assign]
    before = store.list()
    assert old._retire(9) is None
    assert store.list() == before


def test_two_that_claim_at_the_same_moment_do_not_both_get_it(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = Ownership._keep_name
    raced: list[CheckpointStore] = []

    def race(self: Ownership, name: str) -> None:
        keep(self, name)
        monkeypatch.setattr(Ownership, "_keep_name", keep)
        raced.append(claimed(store, tmp_path / "a"))

    monkeypatch.setattr(Ownership, "_keep_name", race)
    with pytest.raises(OwnershipLost, match="taken over"):
        claimed(store, tmp_path / "a")
    save(raced[0], 1)


def test_a_checkpoint_that_retention_only_half_deleted_does_not_exist(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = claimed(store, tmp_path / "a", keep_last=1)
    save(checkpoints, 1)
    delete = checkpoints.store.delete

    def until_the_folder(name: str) -> None:
        if name == "step_000000001":
            raise StoreError("killed in the middle")
        delete(name)

    monkeypatch.setattr(checkpoints.store, "delete", until_the_folder)
    save(checkpoints, 2)
    assert checkpoints.steps() == [2]


def test_what_an_upload_brings_after_its_attempt_was_killed_goes_with_the_next_save(store: Store, tmp_path: Path) -> None:
    checkpoints = claimed(store, tmp_path / "a")
    store.write("step_000000001/player.safetensors", b"late")
    save(checkpoints, 2)
    assert {name.partition("/")[0] for name, _ in store.list()} == {OWNER, "step_000000002"}


def test_a_save_without_its_record_stops_the_run(store: Store, tmp_path: Path) -> None:
    checkpoints = claimed(store, tmp_path / "a")
    store.delete(OWNER)
    with pytest.raises(OwnershipLost, match="is gone"):
        save(checkpoints, 1)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"name": 1}', b"\xff\xfe"])
def test_a_record_that_can_not_be_read_is_refused_until_it_is_released(tmp_path: Path, data: bytes) -> None:
    store = Store(str(tmp_path / "checkpoints"))
    store.write(OWNER, data)
    with pytest.raises(RunFolderError, match=r"owner\.json: can't be read.*release"):
        claimed(store, tmp_path / "a")
    assert release(store)
    claimed(store, tmp_path / "a")


def test_a_run_does_not_start_anew_where_its_checkpoints_are_gone(tmp_path: Path) -> None:
    run = tmp_path / "a"
    folder = RunFolder(run, writes=True)
    folder.event("checkpoint", step=40)
    folder.event("checkpoint", step=50)
    folder.close()
    empty = Store(str(tmp_path / "not mounted"))
    with pytest.raises(RunFolderError, match=r"holds no checkpoint, but the run in .* has saved step 50"):
        claimed(empty, run)
    assert empty.list() == []


@pytest.mark.server
def test_a_store_that_is_not_there_refuses_the_start(s3: SeaweedFS, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="s3://no-such-bucket"):
        claimed(Store("s3://no-such-bucket/run", s3.options), tmp_path / "a")
    with pytest.raises(StoreError, match="Could not connect"):
        claimed(Store("s3://bucket/run", {**s3.options, "endpoint_url": "http://127.0.0.1:9"}), tmp_path / "a")
    with pytest.raises(StoreError, match="access refused"):
        claimed(Store(f"{s3.make_bucket(f'read-only-{time.time_ns()}')}/run", s3.reader_options), tmp_path / "a")


def test_the_record_says_whose_checkpoints_these_are(store: Store, tmp_path: Path) -> None:
    claimed(store, tmp_path / "a")
    record = json.loads(store.read(OWNER))
    assert record["run"] == str(tmp_path / "a")
    assert record["name"] == (tmp_path / "a" / ".run-name").read_text().strip()
