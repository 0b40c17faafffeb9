#!/usr/bin/env bash
# A run that torchrun starts under nohup ends when the terminal is closed, because the launcher puts its own handler over the ignored SIGHUP.
#
# Guess before: nohup makes SIGHUP ignored, ignored signals stay ignored through exec, and a launcher leaves them so; only handlers of
# one's own program are lost.
# Seen with torch 2.13.0, Python 3.11, one process on a CPU, SIGHUP sent to the process that nohup started:
#
#     nohup python child.py: lives on
#     nohup torchrun child.py: has ended with code 1; the child got SIGHUP
#     the same, signals without SIGHUP: lives on
#
# torch.distributed.elastic handles SIGTERM, SIGINT, SIGHUP and SIGQUIT without asking what they were set to, and passes them on. The child
# can't know that nohup was there, because the handler stands before it is started, and exec sets a handled signal to its default. torchrun's
# option --signals-to-handle, or the environment variable PET_SIGNALS_TO_HANDLE, leaves SIGHUP out.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 'numpy<3' setuptools
cat > "$folder/child.py" <<'PYTHON'
import pathlib
import signal
import sys
import time


def terminated(number: int, frame: object) -> None:
    pathlib.Path(sys.argv[1] + ".signal").write_text(signal.Signals(number).name)
    sys.exit(1)


signal.signal(signal.SIGTERM, terminated)
if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as a program does that honours nohup
    signal.signal(signal.SIGHUP, terminated)
pathlib.Path(sys.argv[1] + ".started").touch()
time.sleep(600)
PYTHON
cat > "$folder/look.py" <<'PYTHON'
import os
import pathlib
import signal
import subprocess
import sys
import time

folder, programs = pathlib.Path(sys.argv[1]), pathlib.Path(sys.executable).parent


def after_hangup(name: str, *command: str, **environment: str) -> str:
    mark = folder / name
    started = subprocess.Popen(
        ["nohup", *command, str(folder / "child.py"), str(mark)],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not mark.with_name(name + ".started").exists():
        assert started.poll() is None, "it did not start"
        time.sleep(0.1)
    started.send_signal(signal.SIGHUP)
    try:
        code = started.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        return "lives on"
    got = mark.with_name(name + ".signal")
    return f"has ended with code {code}; the child got {got.read_text() if got.exists() else 'nothing'}"


launcher = [str(programs / "torchrun"), "--standalone", "--nproc-per-node", "1"]
seen = {
    "nohup python child.py": after_hangup("alone", sys.executable),
    "nohup torchrun child.py": after_hangup("launched", *launcher),
    "the same, signals without SIGHUP": after_hangup("told", *launcher, PET_SIGNALS_TO_HANDLE="SIGTERM,SIGINT,SIGQUIT"),
}
for what, happened in seen.items():
    print(f"{what}: {happened}")
assert list(seen.values()) == ["lives on", "has ended with code 1; the child got SIGHUP", "lives on"], "the behaviour has changed"
PYTHON
"$folder/venv/bin/python" "$folder/look.py" "$folder"
