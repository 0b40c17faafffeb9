"""Programs behave the same with the warm interpreter and with the real one, and ports are given once."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests import ports, warm
from tests.launching import run_program, wait_until

PROGRAM = """
import os, pathlib, signal, sys, time
print(sys.argv, os.getcwd(), os.environ.get("COLOUR"), "torch" in sys.modules, sys.stdin.read(), flush=True)
print("of trouble", file=sys.stderr)
if "wait" in sys.argv:
    signal.signal(signal.SIGUSR1, lambda *_: print("USR1", flush=True))
    pathlib.Path(sys.argv[-1]).touch()
    while True:
        time.sleep(0.05)
{last}
"""


def write(folder: Path, last: str = "") -> str:
    path = folder / "program.py"
    path.write_text(PROGRAM.format(last=last))
    return str(path)


def test_a_program_has_its_arguments_environment_folder_and_streams(tmp_path: Path) -> None:
    command = [warm.interpreter(), write(tmp_path), "one", "it's"]
    environment = {"COLOUR": "grün", "PATH": os.environ["PATH"]}
    done = subprocess.run(command, cwd=tmp_path, env=environment, input="said", capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == f"{[*command[1:]]} {tmp_path} grün True said\n"
    assert done.stderr == "of trouble\n"


@pytest.mark.parametrize(
    "last",
    ["", "sys.exit(3)", "sys.exit('why')", "raise KeyError(7)", "os._exit(9)", "os.kill(os.getpid(), signal.SIGKILL)", "os.abort()"],
)
def test_a_program_ends_as_with_the_real_interpreter(tmp_path: Path, last: str) -> None:
    path = write(tmp_path, last)
    ends = []
    for python in (warm.interpreter(), sys.executable):
        done = subprocess.run([python, path], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
        ends.append((done.returncode, done.stderr.splitlines()[-1]))
    assert ends[0] == ends[1]


def test_signals_reach_a_program_and_kill_takes_it_along(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    command = [warm.interpreter(), write(tmp_path), "wait", str(ready)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as client:
        wait_until(ready.exists)
        program = warm.behind(psutil.Process(client.pid))
        assert program.pid != client.pid
        assert client.stdout is not None
        client.stdout.readline()
        client.send_signal(signal.SIGUSR1)
        assert client.stdout.readline() == b"USR1\n"
        client.kill()
        program.wait(timeout=30)
    ready.unlink()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as client:
        wait_until(ready.exists)
        client.terminate()
        assert client.wait(timeout=30) == -signal.SIGTERM
        assert warm.behind(psutil.Process()) == psutil.Process()


def test_what_is_ignored_stays_so(tmp_path: Path) -> None:
    path = write(tmp_path, "print(signal.getsignal(signal.SIGUSR2), signal.getsignal(signal.SIGTERM))")
    shell = ["sh", "-c", "trap '' USR2; exec \"$@\"", "sh"]
    said = []
    for python in (warm.interpreter(), sys.executable):
        done = subprocess.run([*shell, python, path], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=True)
        said.append(done.stdout.splitlines()[-1])
    assert said[0] == said[1]


def test_modules_run_as_well() -> None:
    done = run_program("-m", "shards", "--help")
    assert done.returncode == 0, done.stderr
    assert "build" in done.stdout


def test_a_port_is_free_outside_of_the_range_of_the_kernel_and_given_once() -> None:
    first = {ports.free_port() for _ in range(20)}
    assert len(first) == 20
    assert max(first) < 20_000, "where jobs of SLURM look for theirs"
    two = ports.free_port(2)
    assert not first & {two, two + 1}
    with socket.create_server(("127.0.0.1", two)):
        given = [ports.free_port() for _ in range(1_000)]
    assert two not in given
    assert set(given) & first, "they come again when all have been given"
