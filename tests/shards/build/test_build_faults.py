"""The same command finishes an interrupted build, and the result is that of an undisturbed one."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pytest

from launch.local.object_store import SeaweedFS
from shards.build.build import BuildFailed
from shards.build.picture import PictureRules
from shards.build.plan import PlanSettings
from shards.errors import ShardError, SourceError
from shards.store import Store
from tests.shards.trees import SMALL, classed, contents, run, write_folder


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("tree"), classed())


def fail_at(monkeypatch: pytest.MonkeyPatch, shard: str) -> None:
    """Lets the disk be full when `shard` is written."""
    import builtins

    from shards.build import task

    def full(path: object, mode: str = "r") -> object:
        if shard in str(path) and mode == "xb":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return builtins.open(path, mode)  # type: ignore[call-overload]

    monkeypatch.setattr(task, "open", full, raising=False)


def test_a_full_disk_is_one_message_and_the_build_goes_on_later(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at(monkeypatch, "shard-000002")
    with pytest.raises(BuildFailed, match=r"(?s)2 of 4 shards.*shard-000002.*No space left on device.*same command"):
        run(tree, tmp_path / "out")
    monkeypatch.undo()
    run(tree, tmp_path / "out")
    run(tree, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_what_an_unfinished_build_left_is_used_only_where_it_is_whole(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, small = tmp_path / "out", PlanSettings(SMALL.picture, shard_size=4)
    fail_at(monkeypatch, "shard-000006")
    with pytest.raises(BuildFailed, match="6 of 10 shards"):
        run(tree, out, small)
    monkeypatch.undo()
    (out / "_build" / "000000.json").write_bytes(b"{")
    (out / "_build" / "000001.json").write_bytes((out / "_build" / "000002.json").read_bytes())
    (out / "shard-000003.tar").write_bytes(b"cut")
    (out / "shard-000004.tar.idx").unlink()
    untouched = (out / "shard-000005.tar").stat().st_ino
    with pytest.raises(ShardError, match=r"an unfinished build.*shard_size was 4, now 10"):
        run(tree, out)
    run(tree, out, small)
    run(tree, tmp_path / "fresh", small)
    assert contents(out) == contents(tmp_path / "fresh")
    assert (out / "shard-000005.tar").stat().st_ino == untouched


def test_a_build_killed_after_its_manifest_is_tidied_up(tree: Path, tmp_path: Path) -> None:
    run(tree, tmp_path / "out")
    before = contents(tmp_path / "out")
    write_folder(tmp_path / "out" / "_build", {"plan.json": b"{}", "000000.json": b"{}"})
    assert run(tree, tmp_path / "out").already
    assert contents(tmp_path / "out") == before


def test_a_picture_that_changes_between_listing_and_reading_is_an_error_not_a_rejection(tmp_path: Path) -> None:
    from shards.build.plan import Plan
    from shards.build.sources import open_source
    from shards.build.task import TaskLocations, run_task

    tree = write_folder(tmp_path / "in", classed(4))
    (tmp_path / "out").mkdir()
    task = Plan(open_source(str(tree)), SMALL).task(0)
    locations = TaskLocations(str(tree), {}, str(tmp_path / "out"), {}, str(tmp_path / "out"))
    victim = tree / task.entries[2].name
    for change in (lambda: victim.write_bytes(b"shorter"), lambda: victim.write_bytes(bytes(100_000)), victim.unlink):
        change()
        with pytest.raises(SourceError, match="changed since it was listed"):
            run_task(task, locations)
        assert contents(tmp_path / "out") == {}


def test_temporary_files_of_a_killed_build_are_swept_and_those_of_a_live_one_respected(tree: Path, tmp_path: Path) -> None:
    from shards.dataset.workplace import scratch_folder

    out = tmp_path / "out"
    left = f".partial-shard-000000.tar-{uuid.uuid4().hex}"
    write_folder(out, {left: b"left", ".partial-notes.txt": b"of another program"})
    with scratch_folder(Store(str(out))):
        assert not (out / left).exists()
        assert (out / ".partial-notes.txt").exists()
        (out / ".partial-mine").write_bytes(b"growing")
        with pytest.raises(ShardError, match="another build is writing there"):
            run(tree, out)
        assert (out / ".partial-mine").exists()
    run(tree, out)
    assert [name for name in contents(out) if ".partial" in name] == [".partial-mine", ".partial-notes.txt"]


@pytest.mark.server
def test_what_a_killed_build_into_a_store_left_on_this_disk_is_swept(
    tree: Path, tmp_path: Path, s3: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shards.dataset import workplace

    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    left = write_folder(tmp_path / "scratch" / "context-encoder-shards-left", {f".partial-shard-000000.tar-{uuid.uuid4().hex}": b"left"})
    with workplace.scratch_folder(Store("s3://scratch", s3.options)) as alive:
        assert not left.exists()
        (Path(alive) / ".partial-growing").write_bytes(b"1")
        run(tree, s3.make_bucket("scratch") + "/a", destination_options=s3.options)
        assert [path.name for path in Path(alive).iterdir()] == [".partial-growing"]
    assert list((tmp_path / "scratch").iterdir()) == []


def build_command(source: Path, destination: Path, workers: int) -> list[str]:
    options = ["--shard-size", "4", "--resize", "64", "--workers", str(workers)]
    return [sys.executable, "-m", "shards", "build", str(source), str(destination), *options]


@pytest.mark.slow
def test_a_build_killed_in_the_middle_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    import psutil

    tree = write_folder(tmp_path / "in", classed(200))
    out = tmp_path / "out"
    process = subprocess.Popen(build_command(tree, out, workers=2), start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(out.glob("_build/0*.json")) and time.monotonic() < deadline:
        time.sleep(0.002)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive, "worker processes outlived the build"
    assert not (out / "manifest.json").exists(), "the kill came too late to test anything"
    there = {path: path.stat().st_ino for path in out.glob("*.tar")}
    assert 0 < len(there) < 50
    settings = PlanSettings(PictureRules(resize=64), shard_size=4)
    assert not run(tree, out, settings).already
    run(tree, tmp_path / "fresh", settings)
    assert contents(out) == contents(tmp_path / "fresh")
    kept = sum(path.stat().st_ino == number for path, number in there.items())
    assert kept >= len(there) - 2, "finished shards were made again"


@pytest.mark.slow
def test_an_interrupt_ends_cleanly_and_says_how_to_go_on(tmp_path: Path) -> None:
    import signal

    tree = write_folder(tmp_path / "in", classed(2000))
    out = tmp_path / "out"
    # who runs the tests in the background ignores SIGINT, and so would the program
    process = subprocess.Popen(
        build_command(tree, out, workers=1),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    deadline = time.monotonic() + 60
    while not list(out.glob("_build/0*.json")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted. Run the same command to continue"
    assert "Traceback" not in errors
    assert not list(out.rglob(".partial*"))
