"""How a run ends that does not finish: one last line on the console, and the first death in the record."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from pipeline.training.record.run_folder import read_lines
from tests.conftest import ROOT
from tests.launching import CPU, clean_environment, kill_all, python, ranks_of, run_program, setting_list, start, wait_until

SMALL = [
    *("--recipe", "inpainting", "--method.width", "8", "--method.bottleneck", "16", "--method.batch_norm_group", "2"),
    *("--training.global_batch", "8", "--training.micro_batch", "4"),
]
NEVER = 100_000


def test_the_signal_that_killed_a_rank_is_the_end_of_the_run_in_its_record_and_on_the_console(shards: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    launcher = start(2, *setting_list(shards, run, NEVER, *SMALL), log=log)
    try:
        wait_until(lambda: launcher.poll() is not None or len(read_lines(run / "history.jsonl")) > 2, log)
        ranks = ranks_of(launcher)
        (guard,) = (child for child in ranks[0].children() if "guard_process" in " ".join(child.cmdline()))
        wait_until(lambda: watched(guard) == 1 + len(ranks), log)
        ranks[1].kill()
        assert launcher.wait(timeout=60) != 0
    finally:
        if launcher.poll() is None:
            kill_all(launcher)
    wait_until(lambda: log.read_text().splitlines()[-1].startswith("the run has failed: rank 1 on "), log, seconds=20)
    end = read_lines(run / "events.jsonl")[-1]
    assert (end["event"], end["reason"]) == ("end", "RankLost")
    assert re.fullmatch("rank 1 on .* (was killed by|died of a signal such as) SIGKILL", end["message"]), end


def watched(guard: psutil.Process) -> int:
    """Returns how many processes a guard watches: the launcher and the ranks."""
    try:
        return sum("pidfd" in str(file.readlink()) for file in Path(f"/proc/{guard.pid}/fd").iterdir())
    except OSError:  # it closed a file just now
        return 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["--data.shards", "NOWHERE"], "holds no shards"),
        (["--training.micro_batch", "1"], "training.micro_batch: 1 is less than the batch-norm group of 2"),
        (["--training.stps", "3"], "--training.stps: no such setting. Did you mean --training.steps? No step was taken"),
    ],
    ids=["data set", "setting", "argument"],
)
def test_a_refusal_ends_in_one_line_that_names_the_file_of_the_launchers_text(
    settings: list[str], words: str, shards: Path, tmp_path: Path
) -> None:
    named = [word.replace("NOWHERE", str(tmp_path / "nowhere")) for word in settings]
    program = ["-m", "launch", "launch/pretrain.py", *setting_list(shards, tmp_path / "run", 1, *SMALL), *named]
    done = run_program(*program, TMPDIR=str(tmp_path))
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    last = re.fullmatch(r"the run has failed: (.*) \(the launcher's own text: (.*)\)", done.stderr.splitlines()[-1])
    assert last is not None, done.stderr
    assert words in last[1]
    assert "CalledProcessError" in Path(last[2]).read_text()


def test_refused_options_of_the_launcher_are_shown_and_leave_no_file(tmp_path: Path) -> None:
    done = run_program("-m", "launch", "--num_proceses", "2", "launch/pretrain.py", TMPDIR=str(tmp_path))
    assert done.returncode == 2
    assert "--num_proceses" in done.stderr
    assert not list(tmp_path.glob("launcher-*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_launcher_of_a_single_rank_goes_on_to_the_rank_and_leaves_no_file(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(
        "import pathlib, signal, sys\n"
        f"signal.signal({int(number)}, lambda *_: sys.exit(print('saved', flush=True)))\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "while True: signal.pause()\n"
    )
    log = tmp_path / "log"
    with open(log, "wb") as file:
        command = [python(), "-m", "launch", "--num_processes", "1", str(tmp_path / "rank.py")]
        launcher = subprocess.Popen(command, cwd=ROOT, env=clean_environment(TMPDIR=str(tmp_path)), stdout=file, stderr=file)
    try:
        wait_until(lambda: launcher.poll() is not None or (tmp_path / "ready").exists(), log)
        launcher.send_signal(number)
        assert launcher.wait(timeout=60) == 128 + number, log.read_text()
    finally:
        if launcher.poll() is None:
            kill_all(launcher)
    assert log.read_text() == "saved\n"
    assert not list(tmp_path.glob("launcher-*"))


@pytest.mark.slow
def test_under_nohup_two_ranks_go_on_when_the_terminal_is_closed_and_sigterm_still_saves(shards: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    command = [
        "nohup",
        python(),
        "-m",
        "launch",
        "--config_file",
        str(CPU),
        "launch/pretrain.py",
        *setting_list(shards, run, NEVER, *SMALL),
    ]
    with open(log, "ab") as file:
        launcher = subprocess.Popen(
            [*command, *setting_list(shards, run, NEVER, *SMALL), "--monitoring.port", "0"],
            cwd=ROOT,
            env=clean_environment(TMPDIR=str(tmp_path)),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        wait_until(lambda: launcher.poll() is not None or read_lines(run / "history.jsonl"), log)
        launcher.send_signal(signal.SIGHUP)
        done = len(read_lines(run / "history.jsonl"))
        wait_until(lambda: launcher.poll() is not None or len(read_lines(run / "history.jsonl")) > done + 5, log)
        assert launcher.poll() is None, log.read_text()
        launcher.terminate()
        assert launcher.wait(timeout=60) == 128 + signal.SIGTERM
    finally:
        if launcher.poll() is None:
            kill_all(launcher)
    last = re.compile(r"stopped after step \d+ \(SIGTERM\), saved: .* \(the launcher's own text: .*\)")
    wait_until(lambda: last.fullmatch(log.read_text().splitlines()[-1]), log, seconds=20)
    assert read_lines(run / "events.jsonl")[-1]["reason"] == "SIGTERM"
