"""A process that hangs ends with its stacks, in any stage; one that is only slow goes on."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from pipeline.config import Config, DataConfig, SourceConfig, TrainingConfig, WatchdogConfig, check
from pipeline.mapping import ConfigError
from pipeline.training.ranks import rendezvous
from pipeline.training.ranks.rendezvous import RanksMissing
from pipeline.training.record.run_folder import read_lines
from pipeline.training.supervision.watchdog import STALLED, append_event, patience
from tests.conftest import ROOT
from tests.launching import wait_until

# A rank whose loop is the body of a test; `beat` takes a whole step.
HEAD = """
import ctypes, os, sys, threading, time
from pathlib import Path
from pipeline.config import Config, WatchdogConfig
from pipeline.training.record.run_folder import RunFolder
from pipeline.training.supervision import stacks, watchdog
from pipeline.training.supervision.watchdog import Watchdog
stacks.answer()
settings = dict(startup_minutes=20 / 60, stall_minutes=1.5 / 60, checkpoint_minutes=1.5 / 60, grace_seconds=0.0)
settings |= eval(sys.argv[2])
config = Config(method=None, run=sys.argv[1], watchdog=WatchdogConfig(**settings))
class Counters(dict):
    def totals(self):
        return dict(self)
def beat(step):
    dog.at("data", step)
    dog.at("step", step)
    dog.at("data", step + 1)
with Watchdog(config) as dog:
"""
OPENED = "folder = RunFolder(Path(config.run), writes=True)\ndog.open_stacks()\nbeat(1)\nprint('ready', flush=True)\n"


def command(run: Path, body: str, **settings: Any) -> list[str]:
    indented = "".join(f"    {line}\n" for line in body.splitlines())
    return [sys.executable, "-c", f"{HEAD}{indented}print('survived', flush=True)", str(run), repr(settings)]


def rank(run: Path, body: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RANK": "3"}
    return subprocess.run(
        command(run, body, **settings), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False
    )


def stacks_of(run: Path) -> str:
    return (run / "stacks" / "rank_3_attempt_1.txt").read_text()


@pytest.mark.parametrize(
    ("stage", "waiting"),
    [
        ("data", "waiting for data for step 2"),
        ("step", "in step 2, computing or waiting for another rank"),
        ("checkpoint", "standing still for the checkpoint of step 2"),
        ("evaluation", "evaluating step 2 on held-back pictures"),
        ("end", "at the end of the run"),
    ],
)
def test_a_rank_that_hangs_says_where_and_ends_with_a_code_of_its_own(tmp_path: Path, stage: str, waiting: str) -> None:
    done = rank(tmp_path, f"{OPENED}def stuck_here():\n    ctypes.CDLL(None).sleep(90)\ndog.at('{stage}', 2)\nstuck_here()")
    assert done.returncode == STALLED, done.stderr
    assert "survived" not in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error (rank 3): hangs")]
    assert waiting in line
    assert str(tmp_path / "stacks" / "rank_3_attempt_1.txt") in line
    assert str(STALLED) in line
    written = stacks_of(tmp_path)
    assert re.search(rf"rank 3, process \d+ on .*: {waiting} for \d", written)
    assert "in stuck_here" in written, "the main thread, although it is in C"
    assert "_watch" in written, "and every other one"
    (event,) = [row for row in read_lines(tmp_path / "events.jsonl") if row["event"] == "stall"]
    assert (event["rank"], event["stage"], event["step"], event["waiting"]) == (3, stage, 2, waiting)
    assert event["seconds"] >= 1.5
    assert event["stacks"] == str(tmp_path / "stacks" / "rank_3_attempt_1.txt")


def test_a_thread_that_keeps_the_interpreters_lock_is_ended_from_c(tmp_path: Path) -> None:
    body = (
        f"{OPENED}watchdog._SPARE_SECONDS = 0.5\ntime.sleep(0.5)\ndef keeps_the_lock():\n    ctypes.PyDLL(None).sleep(90)\nkeeps_the_lock()"
    )
    done = rank(tmp_path, body)
    assert done.returncode == 1, done.stderr
    assert "in keeps_the_lock" in stacks_of(tmp_path)


def test_start_up_has_an_end_and_says_what_it_waited_for(tmp_path: Path) -> None:
    done = rank(
        tmp_path,
        "while True:\n    dog.note_startup('waiting for ranks 1, 3 of 4 to join at HOST:1')\n    time.sleep(0.1)",
        startup_minutes=1 / 60,
    )
    assert done.returncode == STALLED
    assert "start-up, waiting for ranks 1, 3 of 4 to join at HOST:1 for 1 s" in done.stderr
    assert "Thread" in stacks_of(tmp_path)


@pytest.mark.slow
def test_a_first_step_may_take_longer_than_the_others_and_has_an_end_too(tmp_path: Path) -> None:
    body = "dog.at('data', 1)\ntime.sleep(2.5)\ndog.at('step', 1)\ntime.sleep(2.5)\nbeat(2)\nprint('took it', flush=True)\n"
    done = rank(tmp_path, f"{body}dog.at('step', 3)\ntime.sleep(60)", stall_minutes=1 / 60)
    assert "took it" in done.stdout, done.stderr
    assert "in step 3" in done.stderr
    done = rank(tmp_path / "other", "dog.at('data', 1)\ndog.at('step', 1)\ntime.sleep(60)", startup_minutes=1 / 60)
    assert (done.returncode, "start-up, in the first step" in done.stderr) == (STALLED, True)


def test_what_is_slow_but_moves_on_is_left_alone(tmp_path: Path) -> None:
    steps = "for step in range(2, 7):\n    dog.at('data', step)\n    time.sleep(0.4)\n    dog.at('step', step)\n    time.sleep(0.4)\n"
    done = rank(tmp_path, OPENED + steps)
    assert (done.returncode, "survived" in done.stdout) == (0, True), done.stderr
    assert not (tmp_path / "stacks").exists(), "nothing was written, so nothing is left"


@pytest.mark.slow
def test_a_loader_that_still_reads_or_retries_is_waited_for_and_one_that_stopped_is_not(tmp_path: Path) -> None:
    slow = "counted = Counters(store_retries=0)\ndog.at('data', 2, activity=counted)\n"
    slow += "for retry in range(8):\n    counted['store_retries'] += 1\n    time.sleep(0.5)\nprint('waited', flush=True)\n"
    done = rank(tmp_path, f"{OPENED}{slow}for depth in range(200):\n    counted['queue_depth'] = depth\n    time.sleep(0.1)")
    assert "waited" in done.stdout, done.stderr
    assert (done.returncode, "waiting for data for step 2" in done.stderr) == (STALLED, True)


@pytest.mark.slow
def test_a_long_evaluation_is_waited_for(tmp_path: Path) -> None:
    evaluates = "dog.at('evaluation', 1)\ntime.sleep(3)\ndog.at('data', 2)\ndog.at('step', 2)\ntime.sleep(3)\nprint('waited', flush=True)"
    done = rank(tmp_path, f"{OPENED}{evaluates}\ndog.at('end')", checkpoint_minutes=20 / 60)
    assert (done.returncode, "waited" in done.stdout) == (0, True), done.stderr


@pytest.mark.slow
def test_a_long_save_is_waited_for_by_the_rank_that_saves_and_by_the_others(tmp_path: Path) -> None:
    saves = "dog.at('checkpoint', 1)\ntime.sleep(3)\ndog.at('data', 2)\n"
    waits = "dog.at('checkpoint', 1)\ndog.at('data', 2)\ndog.at('step', 2)\ntime.sleep(3)\nprint('waited', flush=True)\ndog.at('data', 3)\n"
    done = rank(tmp_path, OPENED + saves, checkpoint_minutes=20 / 60)
    assert done.returncode == 0, done.stderr
    done = rank(tmp_path, f"{OPENED}{waits}dog.at('step', 3)\ntime.sleep(60)", checkpoint_minutes=20 / 60)
    assert "waited" in done.stdout, done.stderr
    assert (done.returncode, "in step 3" in done.stderr) == (STALLED, True), "only the step behind a checkpoint waits so long"


@pytest.mark.parametrize(("seconds", "grace", "written"), [(2.5, 60.0, True), (60.0, 1.0, False)])
@pytest.mark.timeout(120)  # a hang runs into it
def test_a_checkpoint_under_way_gets_a_bounded_chance(tmp_path: Path, seconds: float, grace: float, written: bool) -> None:
    body = f"{OPENED}def save():\n    time.sleep({seconds})\n    (folder.path / 'saved').touch()\n"
    body += "dog.at('step', 2)\nthreading.Thread(target=save, name='checkpoint-1').start()\ntime.sleep(90)"
    done = rank(tmp_path, body, grace_seconds=grace, stall_minutes=0.5 / 60)
    assert done.returncode == STALLED, done.stderr
    assert (tmp_path / "saved").exists() == written


def test_the_threads_that_write_checkpoints_have_the_name_that_the_watchdog_knows() -> None:
    source = (ROOT / "pipeline" / "training" / "checkpoint" / "store.py").read_text()
    assert re.search(r"""Thread\(.*name=f?["']checkpoint-""", source)


def test_a_clock_that_is_set_changes_nothing(tmp_path: Path) -> None:
    """Twice in one step: one jump would pass for time in which the process stood still."""
    jumps = "real = time.time\n"
    for ahead in (1e6, 3e6, -5e6):
        jumps += f"time.time = lambda: real() + {ahead}\ntime.sleep(0.4)\n"
    done = rank(tmp_path, f"{OPENED}dog.at('step', 2)\n{jumps}beat(3)\nprint('unmoved', flush=True)\ndog.at('step', 4)\ntime.sleep(60)")
    assert "unmoved" in done.stdout, done.stderr
    assert (done.returncode, "in step 4" in done.stderr) == (STALLED, True), "and what hangs is still found"


@pytest.mark.slow
def test_a_process_that_stood_still_goes_on_where_it_was(tmp_path: Path) -> None:
    """Longer than it may hang, and longer than a busy machine may keep a thread waiting."""
    body = f"{OPENED}dog.at('step', 2)\nsys.stdin.readline()\nbeat(3)"
    with subprocess.Popen(
        command(tmp_path, body, stall_minutes=4 / 60),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(12)
        process.send_signal(signal.SIGCONT)
        time.sleep(1)
        output, errors = process.communicate("go on\n", timeout=60)
    assert (process.returncode, "survived" in output) == (0, True), errors


def test_a_signal_gets_the_stacks_of_a_live_rank_and_does_it_no_harm(tmp_path: Path) -> None:
    body = f"{OPENED}def works_here():\n    return sys.stdin.readline()\nworks_here()"
    process = subprocess.Popen(
        command(tmp_path, body, stall_minutes=1), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        path = tmp_path / "stacks" / "rank_0_attempt_1.txt"
        for count in (1, 2):
            process.send_signal(signal.SIGUSR2)
            wait_until(lambda count=count: path.read_text().count("Current thread") == count)
        output, errors = process.communicate("go on\n", timeout=60)
    assert "in works_here" in path.read_text()
    assert (process.returncode, "survived" in output) == (0, True), errors


def test_a_signal_before_the_run_folder_is_there_is_answered_on_stderr(tmp_path: Path) -> None:
    done = rank(tmp_path, "os.kill(os.getpid(), 12)\ntime.sleep(0.1)")
    assert (done.returncode, "most recent call first" in done.stderr) == (0, True)


def test_where_the_folder_takes_no_file_the_stacks_are_on_stderr(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    done = rank(tmp_path / "run", "beat(1)\ndog.at('step', 2)\ntime.sleep(90)")
    assert done.returncode == STALLED, done.stderr
    assert "stacks of its threads are in stderr" in done.stderr
    assert "most recent call first" in done.stderr


def test_a_watchdog_that_is_switched_off_ends_nothing(tmp_path: Path) -> None:
    done = rank(tmp_path, f"{OPENED}dog.at('step', 2)\ntime.sleep(2)", enabled=False, stall_minutes=0.2 / 60)
    assert done.returncode == 0, done.stderr


def make_config(**sections: Any) -> Config[Any]:
    return Config(method=None, **{"data": DataConfig(shards="/set"), **sections})


def test_patience_is_less_than_a_collectives_and_more_than_a_stores_retries() -> None:
    local = patience(make_config(training=TrainingConfig(timeout_minutes=10)))
    assert local.step == pytest.approx(540)
    assert local.collective > max(local.startup, local.step, local.checkpoint)
    data = DataConfig(shards="s3://bucket/set", retries=20, stall_seconds=100)
    remote = patience(make_config(data=data))
    assert remote.step >= 21 * 100
    mixed = DataConfig(sources={"one": SourceConfig("/set"), "two": SourceConfig("s3://bucket/set")}, retries=20, stall_seconds=100)
    assert patience(make_config(data=mixed)) == remote
    assert remote.collective > remote.step
    assert remote.checkpoint >= remote.step
    given = patience(make_config(data=data, watchdog=WatchdogConfig(stall_minutes=1)))
    assert given.step == 60
    off = patience(make_config(watchdog=WatchdogConfig(enabled=False), training=TrainingConfig(timeout_minutes=2)))
    assert off.collective == 120


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("startup_minutes", 0.0),
        ("stall_minutes", -1.0),
        ("stall_minutes", float("nan")),
        ("checkpoint_minutes", 0.0),
        ("grace_seconds", -1.0),
        ("starving_share", 0.0),
        ("starving_share", 1.5),
        ("starving_seconds", float("inf")),
        ("collapse_steps", -1),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(setting: str, value: float) -> None:
    config = make_config()
    check(config)
    with pytest.raises(ConfigError, match=rf"watchdog\.{setting}"):
        check(dataclasses.replace(config, watchdog=WatchdogConfig(**{setting: value})))  # type: ignore[arg-type]


def test_events_of_any_rank_are_whole_lines(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"event": "start"}\n{"event": "cut sh')
    threads = [threading.Thread(target=append_event, args=(tmp_path, "stall"), kwargs={"rank": rank}) for rank in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = read_lines(tmp_path / "events.jsonl")
    assert rows[0] == {"event": "start"}
    assert sorted(row["rank"] for row in rows[1:]) == list(range(8))


def test_ranks_that_do_not_come_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    store = dist.TCPStore("127.0.0.1", 0, 4, is_master=True, timeout=timedelta(seconds=20), wait_for_workers=False)  # type: ignore[attr-defined]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    rendezvous_of = [dist.PrefixStore(name, store) for name in ("first", "second")]  # type: ignore[attr-defined]
    other = threading.Thread(target=lambda: _swallow(rendezvous_of[0], 2))
    other.start()
    with pytest.raises(RanksMissing, match=rf"^ranks 1, 3 of 4 did not join at 127\.0\.0\.1:{store.port} in 0\.05 minutes"):
        rendezvous.meet(rendezvous_of[0], 0, 4, timedelta(seconds=3), told.append)
    other.join()
    assert told
    assert told[-1] == f"waiting for ranks 1, 3 of 4 to join at 127.0.0.1:{store.port}"
    everyone = [
        threading.Thread(target=rendezvous.meet, args=(rendezvous_of[1], rank, 4, timedelta(seconds=20), None)) for rank in range(4)
    ]
    for thread in everyone:
        thread.start()
    for thread in everyone:
        thread.join(30)
        assert not thread.is_alive()


def _swallow(store: Any, rank: int) -> None:
    with pytest.raises(RanksMissing):
        rendezvous.meet(store, rank, 4, timedelta(seconds=3), None)


def test_a_rendezvous_that_nobody_opens_is_named() -> None:
    told: list[str] = []
    with pytest.raises(RanksMissing, match=r"^127\.0\.0\.1:9, where the ranks meet, was not opened"):
        rendezvous.connect("127.0.0.1", 9, 2, False, timedelta(seconds=1), told.append)
    assert told == ["waiting for rank 0 or its launcher to open 127.0.0.1:9"]
