"""The guard of a node's ranks: the first death is written down, and one last line stands behind the launcher's traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from monitoring.run_files import EVENTS, death, read_lines
from pipeline.training.supervision.exit_status import exit_status
from pipeline.training.supervision.guard import LAUNCHER_LOG
from pipeline.training.supervision.guard_process import Guarding, Told

ROOT = Path(__file__).resolve().parents[4]

# A launcher of two ranks, which prints a traceback of its own when one has failed. It waits for rank 1 last, because an older Linux shows
# how a process ended only until its parent has waited for it.
LAUNCHER = """
import os, subprocess, sys
ranks = []
for rank in range(2):
    environment = {**os.environ, "TORCHELASTIC_RUN_ID": "test", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    ranks.append(subprocess.Popen([sys.executable, "-c", sys.argv[1], *sys.argv[2:]], env=environment))
codes = [rank.wait() for rank in ranks]
if any(codes) or "signalled" in sys.argv:
    raise RuntimeError("twenty lines of the launcher")
"""
# A rank with the parts of a run that the guard sees: its folder, its events, its words.
RANK = """
import os, sys, time
from pathlib import Path
from pipeline.training.supervision import guard
run, ending, how = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
def wait_until(condition):
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
if os.environ["RANK"] == "1":
    wait_until((run / "go").exists)
    exec(how)
    sys.exit()
guard.start()
guard.note_run(run, 1)
def watched():
    files = Path(f"/proc/{guard._started[0].pid}/fd")
    try:
        return sum("pidfd" in os.readlink(file) for file in files.iterdir())
    except OSError:  # it closed one just now
        return 0
wait_until(lambda: watched() == 3)  # launcher and two ranks
(run / "go").touch()
wait_until(lambda: watched() == 2)
guard.note_end(ending, "words of rank 0")
if ending == "noticed":
    wait_until(lambda: "rank_died" in (run / "events.jsonl").read_text())
sys.exit(ending in ("noticed", "failed"))
"""
SAVED = '{"event": "start", "attempt": 1}\n{"event": "checkpoint", "step": 40}\n'


def launched(run: Path, ending: str, how: str, *more: str) -> tuple[list[str], list[dict[str, object]]]:
    """Runs launcher, ranks and guard to the end; returns the lines of stderr, and the events that were added."""
    (run / EVENTS).write_text(SAVED)
    command = [sys.executable, "-c", LAUNCHER, RANK, str(run), ending, how, *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    return done.stderr.splitlines(), read_lines(run / EVENTS)[2:]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_the_signal_of_the_rank_that_died_first_is_an_event_and_the_last_line(number: signal.Signals, tmp_path: Path) -> None:
    lines, events = launched(tmp_path, "noticed", f"os.kill(os.getpid(), {int(number)})")
    assert [(row["event"], row["rank"], row["signal"], row["attempt"]) for row in events] == [("rank_died", 1, number.name, 1)]
    assert lines[-2].endswith("twenty lines of the launcher")
    assert f"rank 1 on {os.uname().nodename} was killed by {number.name}" in lines[-1]
    assert f"Step 40 of {tmp_path} is saved. The same command continues the run" in lines[-1]


@pytest.mark.parametrize("code", [1, 79])
def test_the_exit_code_of_the_rank_that_ended_first_is_an_event_and_the_last_line(code: int, tmp_path: Path) -> None:
    lines, events = launched(tmp_path, "noticed", f"os._exit({code})")
    assert [(row["event"], row["rank"], row["exit_code"]) for row in events] == [("rank_died", 1, code)]
    assert f"rank 1 on {os.uname().nodename} ended with exit code {code}" in lines[-1]


@pytest.mark.parametrize("saved", [True, False], ids=["saved", "nothing saved"])
@pytest.mark.parametrize("seen", [True, False], ids=["death recorded", "death unknown"])
def test_the_guards_of_two_nodes_name_the_rank_that_died_first_and_never_one_that_noticed(seen: bool, saved: bool, tmp_path: Path) -> None:
    (tmp_path / EVENTS).write_text(SAVED.splitlines(keepends=True)[0] + '{"event": "rank_died", "attempt": 1, "rank": 7}\n')
    if saved:
        (tmp_path / EVENTS).write_text(SAVED)
    words = "another rank has ended, its own message says why"
    there, here = (Guarding(1, told=Told(tmp_path, 2, "noticed", words, at=1.0)) for _ in range(2))
    there.dead = {"rank": 0, "node": "n0", "signal": "SIGKILL"}
    here.dead = {"rank": 3, "node": "n1", "exit_code": 1}
    if seen:
        there._record(final=True)
        here._record(final=True)
    what = "rank 0 on n0 was killed by SIGKILL (the kernel does that for lack of memory: see dmesg)" if seen else words
    rest = f"Step 40 of {tmp_path} is saved. The same command continues the run"
    rest = rest if saved else "Nothing is saved. The same command begins the run again"
    assert [guarding._last_line(2.0) for guarding in (there, here)] == [f"the run has failed: {what}. {rest}"] * 2


@pytest.mark.parametrize(("code", "died", "recorded"), [(1, 0.9, True), (1, 1.1, True), (1, 4.1, False), (79, 4.1, True)])
def test_a_rank_that_ended_because_it_noticed_the_loss_of_a_node_is_no_cause(
    code: int, died: float, recorded: bool, tmp_path: Path
) -> None:
    guarding = Guarding(1, dead={"rank": 3, "node": "n1", "exit_code": code}, died=died)
    guarding.told.add({"run": str(tmp_path), "attempt": 1})
    guarding.told.add({"ending": "noticed", "line": "", "at": 1.0})
    guarding.told.add({"ending": "noticed", "line": "another rank has ended", "at": 4.0})
    guarding._record(final=True)
    assert len(read_lines(tmp_path / EVENTS)) == recorded
    assert ("rank 3 on n1" if recorded else "the run has failed: another rank has ended.") in guarding._last_line(5.0)


def test_an_error_that_the_first_rank_explains_is_no_death_of_another_although_that_ended_earlier(tmp_path: Path) -> None:
    lines, events = launched(tmp_path, "failed", "os._exit(1)")
    assert (lines[-1], events) == (f"the run has failed: words of rank 0. Step 40 of {tmp_path} is saved", [])


@pytest.mark.parametrize(("more", "last"), [((), []), (("signalled",), ["words of rank 0"])])
def test_the_words_of_a_stopped_run_are_repeated_only_where_the_launcher_printed_after_them(
    more: tuple[str, ...], last: list[str], tmp_path: Path
) -> None:
    lines, events = launched(tmp_path, "stopped", "pass", *more)
    assert (lines[-1:], events) == (last, [])


@pytest.mark.parametrize("kept", [True, False])
def test_the_words_of_a_stopped_run_are_not_repeated_where_the_launcher_kept_no_text(
    kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "launcher.log"
    monkeypatch.setenv(LAUNCHER_LOG, str(log))
    if kept:
        log.touch()
    line = Guarding(1, told=Told(tmp_path, 1, "stopped", "stopped after step 3", at=1.0))._last_line(2.0)
    assert line == (f"stopped after step 3 (the launcher's own text: {log})" if kept else "")


@pytest.mark.parametrize(
    ("parent", "guards"),
    [
        (["sh", "-c", 'PYTHON -c "$RANK_CODE"; true'], 0),
        ([sys.executable, "-c", "import os, subprocess, sys; subprocess.run([sys.executable, '-c', os.environ['RANK_CODE']])"], 0),
        (
            [sys.executable, "-c", "import os, subprocess, sys; subprocess.run([sys.executable, '-c', os.environ['RANK_CODE']])", "launch"],
            1,
        ),
    ],
    ids=["shell", "other program", "launcher"],
)
def test_a_program_with_the_variables_of_a_launcher_that_is_none_has_no_guard(parent: list[str], guards: int, tmp_path: Path) -> None:
    rank = "from pipeline.training.supervision import guard; guard.start(); print(len(guard._started))"
    environment = {name: value for name, value in os.environ.items() if name not in ("TORCHELASTIC_RUN_ID", LAUNCHER_LOG)}
    environment |= {"PYTHONPATH": str(ROOT), "ACCELERATE_MIXED_PRECISION": "no", "RANK_CODE": rank}
    command = [word.replace("PYTHON", sys.executable) for word in parent]
    assert subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout == f"{guards}\n"


def test_the_guard_of_a_finished_rank_lets_go_of_the_console_although_the_launcher_goes_on(tmp_path: Path) -> None:
    rank = "from pipeline.training.supervision import guard; guard.start(); guard.note_end('finished')"
    launcher = "import os, subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]]); os.dup2(0, 1); sys.stdin.read()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TORCHELASTIC_RUN_ID": "test"}
    command = [sys.executable, "-c", launcher, rank]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        assert started.stdout.read() == b"", "the end of the pipe comes"
        lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
        assert any("guard_process" in " ".join(line) and str(started.pid) in line for line in lines), "the guard goes on without them"
        assert started.poll() is None


@pytest.mark.parametrize("status", [0, 3, -signal.SIGKILL])
def test_the_exit_status_of_another_process_is_read_before_its_parent_takes_it(status: int) -> None:
    child = os.fork()
    if child == 0:
        if status < 0:
            os.kill(os.getpid(), -status)
        os._exit(status)
    pidfd = os.pidfd_open(child)
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
    assert exit_status(pidfd, child) == status
    os.waitpid(child, 0)
    assert exit_status(pidfd, child) in (status, None), "Linux 6.15 and later still know it"
    os.close(pidfd)


def test_a_death_without_a_known_status_is_told_without_one() -> None:
    assert death({"rank": 3, "node": "n1"}) == "rank 3 on n1 died of a signal such as SIGKILL"
