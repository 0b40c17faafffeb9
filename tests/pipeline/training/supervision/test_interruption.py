"""Real signals to real processes request a stop, and nothing is half done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.training.supervision.interruption import LAUNCHERS, PARENT_DIED, Interruption

ROOT = Path(__file__).resolve().parents[4]
STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU)
WATCHED = (*STOPPING, signal.SIGRTMIN + 5)

# A rank: steps of 10 ms until it is asked to stop, then it "saves" and logs the reason. To a file: a pipe dies with the parent.
RANK = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the test run itself was started by
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from pipeline.training.supervision.interruption import Interruption
def log(text):
    with open(sys.argv[1], "a") as file:
        file.write(text + "\\n")
if "late" in sys.argv:
    log(f"started {os.getpid()}")
    while not os.path.exists(sys.argv[1] + ".go"):
        time.sleep(0.01)
interruption = Interruption(follow_parent=None if "auto" in sys.argv else True)
with interruption:
    log(f"ready {os.getpid()}")
    try:
        for step in range(1500):
            time.sleep(0.01)
            if interruption.requested and "stubborn" not in sys.argv:
                break
    except KeyboardInterrupt:
        log(f"at once {interruption.requested}")
        raise SystemExit(130)
    log(f"saved {interruption.requested}")
"""


class Log:
    """The file that a rank writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def wait_for(self, word: str, seconds: float = 15.0) -> str:
        """The rest of the line that begins with a word."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for line in self.path.read_text().splitlines() if self.path.exists() else ():
                if line.startswith(word):
                    return line.removeprefix(word).strip()
            time.sleep(0.01)
        raise AssertionError(f"no line {word!r} in {self.path.read_text() if self.path.exists() else 'an absent log'!r}")


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log")


@pytest.fixture
def rank(log: Log) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*options: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", RANK, str(log.path), *options], cwd=ROOT))
        log.wait_for("ready")
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def through_launcher(log: Log, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """A launcher that starts the rank and waits for it, as `accelerate launch` does for one process."""
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    started: list[subprocess.Popen[bytes]] = []

    def start(*options: str, body: str = "start().wait()", environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        head = "import subprocess, sys, threading, time\ndef start():\n    return subprocess.Popen([sys.executable, *sys.argv[1:]])\n"
        plain = {name: text for name, text in os.environ.items() if name not in LAUNCHERS}
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", head + body, str(script), str(log.path), *options],
                cwd=ROOT,
                env={**plain, "PYTHONPATH": str(ROOT), **(environment or {})},
            )
        )
        return started[-1]

    yield start
    for launcher in started:
        launcher.kill()
        launcher.wait()
    for line in log.path.read_text().splitlines() if log.path.exists() else ():
        if line.startswith(("ready", "started")):
            with suppress(ProcessLookupError):
                os.kill(int(line.split()[1]), signal.SIGKILL)


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in WATCHED]


@pytest.mark.parametrize("number", STOPPING)
def test_each_signal_asks_to_stop_after_the_step(rank: Callable[..., subprocess.Popen[bytes]], log: Log, number: signal.Signals) -> None:
    process = rank()
    process.send_signal(number)
    assert log.wait_for("saved") == number.name
    assert process.wait(10) == 0


def test_a_second_sigint_stops_at_once(rank: Callable[..., subprocess.Popen[bytes]], log: Log) -> None:
    process = rank("stubborn")
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    log.wait_for("at once")
    assert process.wait(10) == 130


def test_any_number_of_sigterms_ask_once_and_the_first_signal_is_the_reason(rank: Callable[..., subprocess.Popen[bytes]], log: Log) -> None:
    process = rank("stubborn")
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
        time.sleep(0.05)
    assert process.poll() is None, "one SIGINT after the others is the first SIGINT"
    process.send_signal(signal.SIGINT)
    assert log.wait_for("at once") == "SIGUSR1"


def test_a_rank_saves_and_ends_when_its_launcher_is_killed(through_launcher: Callable[..., subprocess.Popen[bytes]], log: Log) -> None:
    launcher = through_launcher()
    log.wait_for("ready")
    launcher.send_signal(signal.SIGKILL)
    assert log.wait_for("saved") == PARENT_DIED


def test_a_rank_saves_and_ends_when_its_launcher_dies_of_a_sigterm(
    through_launcher: Callable[..., subprocess.Popen[bytes]], log: Log
) -> None:
    launcher = through_launcher("auto", environment={"ACCELERATE_MIXED_PRECISION": "no"})
    log.wait_for("ready")
    launcher.terminate()
    assert log.wait_for("saved") == PARENT_DIED


def test_a_parent_that_died_before_the_kernel_watched_it_is_noticed(
    through_launcher: Callable[..., subprocess.Popen[bytes]], log: Log
) -> None:
    launcher = through_launcher("late")
    log.wait_for("started")
    launcher.kill()
    launcher.wait()
    log.path.with_suffix(".go").touch()
    assert log.wait_for("saved") == PARENT_DIED


def test_a_run_without_a_launcher_survives_its_shell(through_launcher: Callable[..., subprocess.Popen[bytes]], log: Log) -> None:
    shell = through_launcher("auto")
    process = int(log.wait_for("ready"))
    shell.kill()
    shell.wait()
    time.sleep(0.3)
    assert "saved" not in log.path.read_text()
    os.kill(process, signal.SIGTERM)
    assert log.wait_for("saved") == "SIGTERM"


def test_the_end_of_the_thread_that_started_a_rank_is_not_the_end_of_its_parent(
    through_launcher: Callable[..., subprocess.Popen[bytes]], log: Log
) -> None:
    launcher = through_launcher(body="thread = threading.Thread(target=start)\nthread.start()\nthread.join()\ntime.sleep(60)")
    log.wait_for("ready")
    time.sleep(0.5)
    assert "saved" not in log.path.read_text()
    launcher.kill()
    assert log.wait_for("saved") == PARENT_DIED, "the process itself is still watched"


def test_what_was_there_before_is_put_back() -> None:
    before = handlers()
    with Interruption(follow_parent=True) as interruption:
        during = handlers()
        interruption.install()
        assert handlers() == during, "a second install changes nothing"
        signal.raise_signal(signal.SIGUSR1)
        assert interruption.requested == "SIGUSR1"
    assert handlers() == before
    interruption.close()
    assert handlers() == before
    assert interruption.requested == "SIGUSR1", "what was asked stays asked"
    assert death_signal() == 0


def test_one_inside_another_hands_back_to_the_outer() -> None:
    before = handlers()
    with Interruption(follow_parent=True) as outer:
        with Interruption(follow_parent=True) as inner:
            signal.raise_signal(signal.SIGTERM)
            assert (outer.requested, inner.requested) == (None, "SIGTERM")
        signal.raise_signal(signal.SIGUSR1)
        assert outer.requested == "SIGUSR1"
        assert death_signal() == signal.SIGRTMIN + 5
    assert handlers() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_the_starter_ignores_stays_ignored(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Interruption(follow_parent=False) as interruption:
            signal.raise_signal(number)
            assert interruption.requested is None
            assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_forked_child_can_still_be_terminated() -> None:
    with Interruption(follow_parent=False) as interruption:
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        time.sleep(0.05)
        os.kill(child, signal.SIGTERM)
        deadline = time.monotonic() + 10
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert ended[0] == child, "the child took the signal for a wish"
        assert os.WTERMSIG(ended[1]) == signal.SIGTERM
        assert interruption.requested is None


def test_another_thread_is_told_that_it_can_not() -> None:
    before, messages = handlers(), list[str]()

    def attempt() -> None:
        for call in (Interruption().install, Interruption().close):
            try:
                call()
            except RuntimeError as error:
                messages.append(str(error))

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    assert len(messages) == 2
    assert all("main thread" in message for message in messages)
    assert handlers() == before


def test_nothing_but_the_standard_library_is_imported() -> None:
    """The contracts of lint-imports see what a module imports, but not what the `__init__` files of its packages do."""
    code = "import sys; from pipeline.training.supervision import guard, interruption, stacks; "
    code += "print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    assert set(loaded) - set(sys.stdlib_module_names) <= {"pipeline", "__main__"}


def death_signal() -> int:
    """PR_GET_PDEATHSIG of this process."""
    import ctypes

    found = ctypes.c_int(-1)
    assert ctypes.CDLL(None).prctl(2, ctypes.byref(found)) == 0
    return found.value


LATE = """
import os, signal, sys
from pipeline.training.supervision.interruption import Interruption

class Last:
    def __del__(self, kill=os.kill, process=os.getpid(), number=getattr(signal, sys.argv[1])):
        kill(process, number)  # by now Python has put back the handlers that end a process

last = Last()
Interruption(follow_parent=False).install()
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_that_comes_when_the_process_is_at_its_end_changes_nothing(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", LATE, name], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
