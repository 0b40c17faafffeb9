"""An interpreter that has imported everything already: a program that it starts is a fork, which runs in a tenth of a second.

Hundreds of programs start in the tests, and each would spend five seconds of a processor on importing torch. `interpreter()` is the path of
an executable that takes the place of sys.executable. The program that it runs has the arguments, environment, working folder, streams,
signals and exit code of any other, but is a child of this interpreter, in a session of its own: `behind` is its process. What a start does
itself (imports, and signals that come during them), what the parent of a program does to it by its end, and what others find by who
started whom, needs a start of the real interpreter.

python -m tests.warm FOLDER serves FOLDER/socket until stdin ends; FOLDER/PID has the process behind an executable's process.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import gc
import json
import os
import runpy
import selectors
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import psutil

ROOT = Path(__file__).resolve().parent.parent
_EXECUTABLE = "python"


@functools.cache
def _folder() -> Path:
    """Folder of this process's interpreter, which starts with the first call and ends with this process."""
    folder = Path(tempfile.mkdtemp(prefix="warm-"))  # the path of a socket may have 107 characters, and pytest's folders are long
    client = [sys.executable, "-I", "-S", str(ROOT / "tests" / "warm_client.py"), str(folder / "socket")]
    executable = folder / _EXECUTABLE
    executable.write_text(f'#!/bin/sh\nexec {shlex.join(client)} "$@"\n')
    executable.chmod(0o755)
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.warm", str(folder)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        )
    atexit.register(_end, server, folder)
    assert server.stdout is not None
    assert server.stdout.readline() == b"warm\n", (folder / "log").read_text()
    return folder


def _end(server: subprocess.Popen[bytes], folder: Path) -> None:
    server.communicate()
    shutil.rmtree(folder, ignore_errors=True)


def interpreter() -> str:
    """The executable to put in the place of sys.executable."""
    return str(_folder() / _EXECUTABLE)


def behind(process: psutil.Process) -> psutil.Process:
    """Process that runs the program which a client stands for; a process without a warm interpreter is its own."""
    if not _folder.cache_info().currsize:
        return process
    try:
        return psutil.Process(int((_folder() / str(process.pid)).read_text()))
    except (OSError, ValueError, psutil.NoSuchProcess):
        return process


def preload() -> None:
    """Imports what the program and its launcher need, also what torch imports late, and slowly."""
    import accelerate.commands.accelerate_cli  # noqa: F401
    import s3fs  # noqa: F401
    import torch._inductor
    import torch.distributed.fsdp
    import torch.distributed.run
    import torch.distributed.tensor  # noqa: F401

    import pipeline.recipes
    import pipeline.training.loop  # noqa: F401

    assert threading.active_count() == 1, "a fork takes no threads along"
    gc.collect()
    gc.freeze()


@dataclass(frozen=True)
class Program:
    """A fork.

    Attributes:
        process: number of the fork's process.
        connection: connection to the client.
        client: number of the client's process.
        starter: number of the process that started the client.
    """

    process: int
    connection: socket.socket
    client: int
    starter: int


class Server:
    """Forks for every connection.

    Args:
        folder: folder with the server's socket and, for each client, a file that names the process behind it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._programs: dict[int, Program] = {}
        self._ends = dict[int, int]()

    def serve(self) -> dict[str, Any] | None:
        """Until stdin ends; returns None then, and in each fork what it has to run."""
        with selectors.DefaultSelector() as selector, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self._folder / "socket"))
            listener.listen(100)
            selector.register(listener, selectors.EVENT_READ)
            selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
            print("warm", flush=True)
            while True:
                for key, _ in selector.select():
                    program = self._programs.get(key.data)
                    if key.fileobj is listener:
                        if task := self._fork(listener.accept()[0], selector):
                            return task
                    elif key.data is None:
                        for program in self._programs.values():
                            os.kill(program.process, signal.SIGKILL)
                        return None
                    elif program is None:
                        continue  # it ended a moment ago
                    elif key.fileobj is program.connection:
                        self._pass_on(program, selector)
                    else:
                        self._over(program, selector)

    def _fork(self, connection: socket.socket, selector: selectors.BaseSelector) -> dict[str, Any] | None:
        length, streams, _, _ = socket.recv_fds(connection, 8, 3)
        task: dict[str, Any] = json.loads(connection.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL))
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        client = struct.unpack("3i", credentials)[0]
        pid = os.fork()
        if pid == 0:
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            others = [program.connection.detach() for program in self._programs.values()]
            for descriptor in [*streams, connection.detach(), *others, *self._ends.values()]:
                os.close(descriptor)
            return {**task, "client": client}
        for stream in streams:
            os.close(stream)
        (self._folder / str(client)).write_text(str(pid))
        self._programs[pid] = Program(pid, connection, client, int(task["starter"]))
        self._ends[pid] = os.pidfd_open(pid)
        selector.register(connection, selectors.EVENT_READ, pid)
        selector.register(self._ends[pid], selectors.EVENT_READ, pid)
        return None

    def _pass_on(self, program: Program, selector: selectors.BaseSelector) -> None:
        """Signals; a client that was killed takes its program with it."""
        numbers = b""
        with suppress(ConnectionError):
            numbers = program.connection.recv(100)
        for number in numbers:
            os.kill(program.process, number)
        if not numbers:
            selector.unregister(program.connection)
            os.kill(program.process, signal.SIGKILL)

    def _over(self, program: Program, selector: selectors.BaseSelector) -> None:
        """Tells the client how its program ended, and what the program had started that it is to end, too."""
        _, status = os.waitpid(program.process, 0)
        del self._programs[program.process]
        (self._folder / str(program.client)).unlink(missing_ok=True)
        end = self._ends.pop(program.process)
        selector.unregister(end)
        os.close(end)
        with suppress(KeyError):
            selector.unregister(program.connection)
        with suppress(OSError):
            program.connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(8, "big", signed=True))
        program.connection.close()
        for other in self._programs.values():
            if other.starter == program.process:
                os.kill(other.process, signal.SIGTERM)


def enter_namespaces(client: int) -> None:
    """Takes on the host name and the mounts of a client: a node of tests/slurm_cluster.py has its own."""
    own, theirs = Path("/proc/self/ns"), Path(f"/proc/{client}/ns")
    others = [theirs / name for name in ("user", "mnt", "uts") if (theirs / name).readlink() != (own / name).readlink()]
    descriptors = [os.open(path, os.O_RDONLY) for path in others]  # the paths mean something else after the first step
    for descriptor in descriptors:
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, 0) != 0:
            raise OSError(ctypes.get_errno(), "no way into the client's namespaces")
        os.close(descriptor)


def run(task: dict[str, Any], executable: str) -> None:
    """Does what `python ARGUMENTS` does."""
    os.setsid()
    enter_namespaces(task["client"])
    for number in task["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    os.chdir(task["folder"])
    os.environ.clear()
    os.environ.update(task["environment"])
    tempfile.tempdir = None  # not the one of this interpreter's environment
    os.getppid = lambda: int(task["starter"])  # a rank guards the launcher that started its client
    arguments = list(task["arguments"])
    if arguments[0] == "-u":
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
        del arguments[0]
    if Path(arguments[0]).name == "accelerate" or arguments[:2] == ["-m", "launch"]:
        sys.executable = executable  # a launcher starts others with the interpreter that it was started with
    if arguments[0] == "-m":
        sys.argv, sys.path[0] = arguments[1:], task["folder"]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).resolve().parent)
        runpy.run_path(arguments[0], run_name="__main__")


def end(task: dict[str, Any], executable: str) -> NoReturn:
    """Runs it, and ends as Python does, but for taking its modules apart: a fork would have to copy the memory of each for that."""
    code = 0
    try:
        run(task, executable)
    except SystemExit as asked:
        code = asked.code if isinstance(asked.code, int) else int(asked.code is not None)
        if isinstance(asked.code, str):
            print(asked.code, file=sys.stderr)
    except KeyboardInterrupt:
        raise  # which ends by the signal
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 0xFF)


def main() -> None:
    """Serves, and is each of the programs."""
    folder = Path(sys.argv[1])
    preload()
    if (task := Server(folder).serve()) is not None:
        end(task, str(folder / _EXECUTABLE))


if __name__ == "__main__":
    main()
