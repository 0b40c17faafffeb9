"""Faults while a checkpoint is saved: the one before stays whole, the run learns of it, and nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from launch.local.object_store import SeaweedFS
from pipeline.training.checkpoint.ownership import OWNER
from pipeline.training.checkpoint.store import COMMIT, Checkpoint, CheckpointStore, SaveOutcome, folder_name, verify
from shards.errors import StoreError
from shards.store import Store
from tests.conftest import ROOT
from tests.faults.proxy import Fault, Proxy, Rule

PLAYER = "player.safetensors"
ERROR = b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>Try again.</Message></Error>'
XML = {"Content-Type": "application/xml"}


def checkpoint(step: int, values: int = 1000) -> Checkpoint:
    return Checkpoint(step, {"recipe": "features"}, {"player": {"weight": torch.full((values,), float(step))}})


class Run:
    """The checkpoints of a run in a bucket, written through a proxy and looked at without it."""

    def __init__(self, server: SeaweedFS, proxy: Proxy, folder: Path) -> None:
        self.bucket = f"saves-{time.time_ns()}"
        server.make_bucket(self.bucket)
        self.store = Store(f"s3://{self.bucket}/run", server.options)
        options = {**server.options, "endpoint_url": proxy.endpoint, "config_kwargs": {"read_timeout": 2, "connect_timeout": 2}}
        self.options, self.folder = options, folder
        self.reports: list[SaveOutcome] = []
        self.checkpoints = self.attempt()

    def attempt(self) -> CheckpointStore:
        found = CheckpointStore(Store(self.store.url, self.options), keep_last=2, report=self.reports.append)
        found.claim(self.folder)
        return found

    def save(self, step: int, must_succeed: bool = True) -> None:
        """Saves, and waits for it."""
        self.checkpoints.save(checkpoint(step))
        self.checkpoints.wait(must_succeed)

    def newest(self) -> int:
        skipped: list[str] = []
        found = CheckpointStore(self.store).newest(skipped.append)
        assert skipped == []
        assert found is not None
        assert torch.all(found.tensors["player"]["weight"] == found.step)
        return found.step

    def assert_tidy(self) -> None:
        """Nothing is in the bucket but whole checkpoints and the owner."""
        files = {f"{folder_name(step)}/{name}" for step in self.checkpoints.steps() for name in (COMMIT, PLAYER)}
        assert {name for name, _ in self.store.list()} == files | {OWNER}
        assert self.store.fs.list_multipart_uploads(self.bucket) == []


@pytest.fixture
def run(s3: SeaweedFS, proxy: Proxy, tmp_path: Path) -> Run:
    found = Run(s3, proxy, tmp_path / "run")
    found.save(1)
    return found


PASSING = {
    "503": Rule(Fault.STATUS, status=503, body=ERROR % b"SlowDown", headers=XML),
    "500": Rule(Fault.STATUS, status=500, body=ERROR % b"InternalError", headers=XML),
    "reset": Rule(Fault.RESET, at=0),
    "no answer": Rule(Fault.STALL_HEAD),
    "garbage": Rule(Fault.GARBAGE),
}


@pytest.mark.server
@pytest.mark.parametrize("fault", PASSING)
@pytest.mark.parametrize("name", [PLAYER, COMMIT])
def test_a_fault_that_passes_costs_time_only(run: Run, proxy: Proxy, fault: str, name: str) -> None:
    rule = PASSING[fault]
    proxy.rules = [Rule(rule.fault, f"*/{name}", "PUT", count=1, at=rule.at, status=rule.status, body=rule.body, headers=rule.headers)]
    run.save(2)
    assert proxy.rules[0].hits == 1
    assert run.newest() == 2
    run.assert_tidy()


@pytest.mark.server
@pytest.mark.parametrize("name", [PLAYER, COMMIT])
@pytest.mark.parametrize(("status", "code"), [(403, b"AccessDenied"), (500, b"InternalError"), (507, b"InsufficientStorage")])
@pytest.mark.timeout(120)  # a hang runs into it
def test_a_fault_that_stays_fails_the_save_and_nothing_else(run: Run, proxy: Proxy, name: str, status: int, code: bytes) -> None:
    proxy.rules = [Rule(Fault.STATUS, f"*/{name}", "PUT", status=status, body=ERROR % code, headers=XML)]
    run.save(2, must_succeed=False)
    assert f"{folder_name(2)}/{name}" in str(run.reports[-1].error)
    assert run.newest() == 1
    proxy.rules = []
    run.save(3)
    assert run.newest() == 3
    run.assert_tidy()


@pytest.mark.server
def test_what_a_store_acknowledges_and_does_not_keep_is_no_checkpoint(run: Run, proxy: Proxy) -> None:
    proxy.rules = [Rule(Fault.STATUS, f"*/{PLAYER}", "PUT", status=200, headers={"ETag": '"0"'})]
    run.save(2, must_succeed=False)
    assert "the store took" in str(run.reports[-1].error)
    assert run.newest() == 1


@pytest.mark.server
def test_bytes_that_arrive_wrong_once_are_read_again(run: Run, proxy: Proxy) -> None:
    for name in (PLAYER, COMMIT):
        proxy.rules = [Rule(Fault.FLIP, f"*/{name}", "GET", count=1)]
        skipped: list[str] = []
        found = run.checkpoints.newest(skipped.append)
        assert found is not None
        assert (found.step, skipped, proxy.rules[0].hits) == (1, [], 1)


@pytest.mark.server
@pytest.mark.parametrize("name", [PLAYER, COMMIT])
@pytest.mark.parametrize("fault", [Fault.FLIP, Fault.SHORT])
def test_bytes_that_stay_wrong_are_damage_and_not_a_store_that_does_not_answer(run: Run, proxy: Proxy, name: str, fault: Fault) -> None:
    run.save(2)
    proxy.rules = [Rule(fault, f"*/{folder_name(2)}/{name}", "GET")]
    skipped: list[str] = []
    found = run.checkpoints.newest(skipped.append)
    assert found is not None
    assert found.step == 1
    assert f"{folder_name(2)}/{name}: damaged" in skipped[0]


@pytest.mark.server
@pytest.mark.parametrize("name", [PLAYER, COMMIT])
def test_what_comes_back_wrong_after_a_save_is_a_failed_save_and_older_ones_stay(run: Run, proxy: Proxy, name: str) -> None:
    run.save(2)
    proxy.rules = [Rule(Fault.FLIP, f"*/{folder_name(3)}/{name}", "GET")]
    run.save(3, must_succeed=False)
    assert proxy.rules[0].hits >= 2, "read twice: what a network spoils once is no damage"
    report = run.reports[-1]
    assert f"read back right after it was written: {run.checkpoints.store.describe(f'{folder_name(3)}/{name}')}: damaged" in str(
        report.error
    )
    assert not report.verified
    assert run.checkpoints.steps() == [1, 2, 3]
    proxy.rules = []
    run.save(4)
    assert run.reports[-1].verified
    assert run.checkpoints.steps() == [2, 3, 4], "what is damaged counts for none that is kept"


@pytest.mark.server
def test_a_save_that_a_store_does_not_give_back_stays_and_so_do_older_ones(run: Run, proxy: Proxy) -> None:
    run.save(2)
    proxy.rules = [Rule(Fault.STATUS, f"*/{PLAYER}", "GET", status=403, body=ERROR % b"AccessDenied", headers=XML)]
    run.save(3)
    report = run.reports[-1]
    assert report.error is None
    assert not report.verified
    assert "could not be read back, so older ones are kept" in str(report.warning)
    assert run.checkpoints.steps() == [1, 2, 3]
    proxy.rules = []
    run.save(4)
    assert (run.reports[-1].verified, run.reports[-1].warning) == (True, None)
    assert run.checkpoints.steps() == [3, 4]


@pytest.mark.server
def test_a_store_that_is_down_fails_saves_until_the_third_and_takes_them_when_it_is_back(tmp_path: Path) -> None:
    with SeaweedFS(tmp_path / "server") as server, Proxy(server.endpoint) as proxy:
        run = Run(server, proxy, tmp_path / "run")
        run.save(1)
        server.kill()
        run.save(2, must_succeed=False)
        assert "s3://" in str(run.reports[-1].error)
        server.start()
        run.save(3)
        assert run.newest() == 3
        run.assert_tidy()
        server.kill()
        run.save(4, must_succeed=False)
        run.save(5, must_succeed=False)
        with pytest.raises(StoreError, match=r"3 checkpoints in a row could not be written.*the same command continues"):
            run.save(6, must_succeed=False)
        with pytest.raises(StoreError):
            run.attempt()
        server.start()
        run.checkpoints = run.attempt()
        assert run.newest() == 3
        run.assert_tidy()


SAVER = """
import json, resource, sys, torch
from pathlib import Path
from pipeline.training.checkpoint.store import Checkpoint, CheckpointStore
from shards.store import Store
task = json.loads(sys.argv[1])
checkpoints = CheckpointStore(Store(task["url"], task["options"]), keep_last=5)
checkpoints.report = lambda report: print(json.dumps({"step": report.step, "error": report.error}), flush=True)
checkpoints.claim(Path(task["run"]))
if task["largest_file"]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (task["largest_file"], task["largest_file"]))
for step in task["steps"]:
    if task["wait"]:
        print("ready", flush=True)
        sys.stdin.readline()
    size = task["values"] if step > task["steps"][0] else 10
    checkpoints.save(Checkpoint(step, {}, {"player": {"weight": torch.full((size,), float(step))}}))
    checkpoints.wait()
"""


def saver(url: str, run: Path, limits: list[str] | None = None, **task: object) -> subprocess.Popen[str]:
    """A process that saves a small checkpoint, then larger ones."""
    defaults = {"url": url, "run": str(run), "options": {}, "largest_file": 0, "values": 10, "steps": [1, 2], "wait": False}
    command = [*(limits or []), sys.executable, "-c", SAVER, json.dumps(defaults | task)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.server
def test_an_upload_in_parts_that_was_killed_is_swept(s3: SeaweedFS, proxy: Proxy, tmp_path: Path) -> None:
    run = Run(s3, proxy, tmp_path / "run")
    killed = threading.Event()
    options = {**s3.options, "endpoint_url": proxy.endpoint}
    child = saver(run.store.url, tmp_path / "run", options=options, values=12_000_000)  # 48 MB in parts of 16 MiB

    def kill() -> None:
        child.send_signal(signal.SIGKILL)
        killed.set()

    proxy.rules = [Rule(Fault.NONE, f"*/{PLAYER}", "PUT", query="partNumber=2", action=kill)]
    child.communicate()
    assert killed.is_set()
    assert len(run.store.fs.list_multipart_uploads(run.bucket)) == 1
    proxy.rules = []
    others = ["run/somebody-elses", "run2/step_000000001/player.safetensors"]
    uploads = {key: run.store.fs.call_s3("create_multipart_upload", Bucket=run.bucket, Key=key)["UploadId"] for key in others}
    run.checkpoints = run.attempt()
    assert sorted(found["Key"] for found in run.store.fs.list_multipart_uploads(run.bucket)) == others
    for key, upload in uploads.items():
        run.store.fs.abort_mpu(run.bucket, key, upload)
    assert run.newest() == 1
    run.assert_tidy()


def test_a_disk_that_is_full_fails_saves_and_leaves_the_last_good_one(tmp_path: Path) -> None:
    child = saver(str(tmp_path / "checkpoints"), tmp_path / "run", largest_file=1_000_000, values=1_000_000, steps=[1, 2, 3, 4])
    out, error = child.communicate(timeout=120)
    reports = [json.loads(line) for line in out.splitlines()]
    assert [report["error"] is None for report in reports] == [True, False, False, False]
    assert "File too large" in reports[1]["error"]
    assert "3 checkpoints in a row could not be written" in error
    store = Store(str(tmp_path / "checkpoints"))
    assert CheckpointStore(store).steps() == [1]
    assert verify(store, 1)
    assert not list((tmp_path / "checkpoints").rglob(".partial-*"))
    CheckpointStore(store).claim(tmp_path / "run")
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {folder_name(1), OWNER}


def without_privileges() -> list[str]:
    """How a command is started whose permissions are those of anybody: root passes every mode by."""
    if os.geteuid():
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root without setpriv: file modes do not apply")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


@pytest.mark.slow
def test_permission_that_is_lost_fails_saves_and_never_makes_a_run_start_anew(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    child = saver(str(folder), tmp_path / "run", without_privileges(), wait=True)
    assert child.stdin is not None
    assert child.stdout is not None
    for _ in range(2):  # the first is saved while all is well
        line = child.stdout.readline()
        assert line == "ready\n", child.communicate()
        if folder.joinpath(folder_name(1)).exists():
            folder.chmod(0o500)
        child.stdin.write("\n")
        child.stdin.flush()
        report = json.loads(child.stdout.readline())
    assert report["step"] == 2
    assert "access refused" in report["error"]
    child.communicate(timeout=60)
    for mode in (0o000, 0o500):
        folder.chmod(mode)
        again = saver(str(folder), tmp_path / "run", without_privileges())
        out, error = again.communicate(timeout=60)
        assert again.returncode == 1
        assert out == ""
        assert "access refused" in error
    folder.chmod(0o700)
    (folder / folder_name(1)).chmod(0o000)
    again = saver(str(folder), tmp_path / "run", without_privileges())
    out, error = again.communicate(timeout=60)
    (folder / folder_name(1)).chmod(0o700)
    assert (again.returncode, out) == (1, "")
    assert "access refused" in error
    assert verify(Store(str(folder)), 1)
