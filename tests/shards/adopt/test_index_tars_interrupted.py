"""Killed at any moment, the same command indexes the missing tars, and the result is the same to the byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launch.local.object_store import SeaweedFS
from shards.check.verify import verify
from shards.dataset import manifest
from shards.store import Store
from tests.shards.adopt.foreign import ours, picture, run, theirs, write_shards
from tests.shards.trees import contents, tar_of

# counts every range that is read and every object that is written or deleted, and kills itself in front of one of them
PROGRAM = """
import os, signal, sys
from shards.__main__ import main
from shards.store import Store

log, fatal = sys.argv[1], int(sys.argv[2])
steps = 0

def watched(kind, plain):
    def step(store, name, *rest):
        global steps
        steps += 1
        if steps == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        with open(log, "a") as file:
            file.write(f"{kind} {name}\\n")
        return plain(store, name, *rest)
    return step

for kind in ("read_range", "write", "remove"):
    setattr(Store, kind, watched(kind, getattr(Store, kind)))
sys.exit(main(["index", *sys.argv[3:], "--workers", "1"]))
"""


def index(log: Path, fatal: int, *arguments: str) -> tuple[int, list[str]]:
    """Runs the command in a process of its own; its exit code and what it did."""
    log.unlink(missing_ok=True)
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(log), str(fatal), *arguments], capture_output=True, check=False)
    return done.returncode, log.read_text().splitlines() if log.exists() else []


# in front of: the first write; the first tar; its record; the third tar; the first index in its place; the manifest; the end
@pytest.mark.parametrize("fatal", [1, 2, 4, 8, 14, 18, 19])
def test_killed_at_any_step_it_goes_on_with_what_is_missing(tmp_path: Path, fatal: int) -> None:
    paths = write_shards(tmp_path / "tars", 4)
    killed, before = index(tmp_path / "log", fatal, str(tmp_path / "tars"), "--to", str(tmp_path / "out"))
    assert (killed, len(before)) == (-signal.SIGKILL, fatal - 1)
    records = [name for name, _ in Store(str(tmp_path / "out")).list("_build") if name.endswith(".json") and name != "_build/index.json"]
    finished = (tmp_path / "out" / "manifest.json").exists()
    assert finished == (fatal == 19)
    code, steps = index(tmp_path / "log", 0, str(tmp_path / "tars"), "--to", str(tmp_path / "out"))
    read = [step for step in steps if step.startswith("read_range")]
    assert (code, len(read)) == (0, 4 - len(records))
    run(tmp_path / "tars", tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
    assert ours(tmp_path / "out") == theirs(paths)


def test_the_list_of_rejected_samples_is_there_before_the_manifest_that_counts_it(tmp_path: Path) -> None:
    write_shards(tmp_path / "tars", 3)
    (tmp_path / "tars" / "x.tar").write_bytes(tar_of({"bad.json": b"", "ok.jpg": picture(1)}))
    assert index(tmp_path / "log", 18, str(tmp_path / "tars"), "--to", str(tmp_path / "out"))[0] == -signal.SIGKILL
    assert (tmp_path / "out" / "rejected.jsonl").exists()
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert index(tmp_path / "log", 0, str(tmp_path / "tars"), "--to", str(tmp_path / "out"))[0] == 0
    run(tmp_path / "tars", tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


# in front of: the second tar; the third index in its place; the manifest
@pytest.mark.parametrize("fatal", [5, 16, 18])
def test_a_stopped_run_with_other_rules_never_makes_a_sound_set_unsound(tmp_path: Path, fatal: int) -> None:
    write_shards(tmp_path / "tars", 4)
    sound = run(tmp_path / "tars").manifest
    assert index(tmp_path / "log", fatal, str(tmp_path / "tars"), "--labels", "none")[0] == -signal.SIGKILL
    left = [problem.name for problem in verify(str(tmp_path / "tars"), quiet=True).problems]
    in_place = sum(not name.startswith("_build/") for name in left)  # indexes of the other rules, put there several at once
    assert in_place in {5: {0}, 16: {0, 1, 2}, 18: {4}}[fatal]
    run(tmp_path / "tars")
    assert verify(str(tmp_path / "tars"), quiet=True).problems == ()
    assert manifest.load(str(tmp_path / "tars")).fingerprint == sound.fingerprint
    assert not (tmp_path / "tars" / "_build").exists()


def test_a_half_written_index_is_swept_away(tmp_path: Path) -> None:
    write_shards(tmp_path / "a", 1)
    write_shards(tmp_path / "b", 1)
    program = PROGRAM.replace("for kind in", "plain = os.fsync\nos.fsync = lambda handle: os.kill(os.getpid(), 9)\nfor kind in", 1)
    command = [sys.executable, "-c", program, str(tmp_path / "log"), "0", str(tmp_path)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGKILL
    left = list(tmp_path.rglob(".partial-*"))
    assert left
    assert index(tmp_path / "log", 0, str(tmp_path))[0] == 0
    assert not list(tmp_path.rglob(".partial-*"))


def test_a_polite_stop_keeps_what_is_finished_and_says_how_to_go_on(tmp_path: Path) -> None:
    write_shards(tmp_path / "tars", 40)
    slow = PROGRAM.replace("        return plain(", "        import time; time.sleep(0.05)\n        return plain(")
    command = [sys.executable, "-c", slow, str(tmp_path / "log"), "0", str(tmp_path / "tars")]
    running = subprocess.Popen(command, stderr=subprocess.PIPE)

    def stop_after_some() -> None:
        while len(list((tmp_path / "tars").glob("_build/*.idx"))) < 5:
            time.sleep(0.01)
        running.send_signal(signal.SIGTERM)

    threading.Thread(target=stop_after_some).start()
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert errors.decode().splitlines()[-1] == "interrupted. Run the same command to continue"
    records = len(list((tmp_path / "tars" / "_build").glob("*.json"))) - 1
    assert 4 <= records < 40
    code, steps = index(tmp_path / "log", 0, str(tmp_path / "tars"))
    assert (code, sum(step.startswith("read_range") for step in steps)) == (0, 40 - records)


@pytest.mark.server
def test_killed_over_a_store_it_goes_on_and_leaves_no_trace(tmp_path: Path, s3: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_shards(tmp_path / "tars", 4)
    url, files = s3.make_bucket("killed-index"), s3.filesystem()
    for path in paths:
        files.put_file(str(path), f"killed-index/train/{path.name}")
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    killed, _ = index(tmp_path / "log", 9, f"{url}/train")
    records = [path for path in files.find("killed-index/train/_build") if path.endswith(".json") and not path.endswith("index.json")]
    assert (killed, len(records)) == (-signal.SIGKILL, 2)
    code, steps = index(tmp_path / "log", 0, f"{url}/train")
    read = [step.partition(" ")[2] for step in steps if step.startswith("read_range")]
    assert (code, read) == (0, ["shard-000002.tar", "shard-000003.tar"])
    files.invalidate_cache()
    assert len(files.find("killed-index/train")) == 4 + 4 + 1
    assert ours(f"{url}/train", s3.options) == theirs(paths)
    table = json.loads(files.cat_file("killed-index/train/manifest.json"))
    assert [row[5] for row in table["shards"]] == [files.info(f"killed-index/train/{path.name}")["ETag"].strip('"') for path in paths]
    assert manifest.load(f"{url}/train", s3.options).shards_url == f"{url}/train"
    for secret in (s3.secret, s3.key):
        assert secret not in json.dumps(table)
    assert os.environ["AWS_ENDPOINT_URL"] == s3.endpoint
