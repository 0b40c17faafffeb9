"""Stands for a Python program that a warm interpreter runs (tests/warm.py): the same arguments, environment, folder, streams and signals,
and the same end. Starts in a moment, since it imports nothing but what is here.

python -I -S tests/warm_client.py SOCKET ARGUMENTS-OF-PYTHON ...
"""

import contextlib
import json
import os
import signal
import socket
import sys

PASSED_ON = [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT]


def main() -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(sys.argv[1])
        ignored = [number for number in PASSED_ON if signal.getsignal(number) == signal.SIG_IGN]
        told = {"arguments": sys.argv[2:], "environment": dict(os.environ), "folder": os.getcwd()}  # noqa: PTH109
        task = json.dumps({**told, "ignored": ignored, "starter": os.getppid()}).encode()
        socket.send_fds(server, [len(task).to_bytes(8, "big")], [0, 1, 2])
        server.sendall(task)

        def pass_on(number: int, _: object) -> None:
            with contextlib.suppress(OSError):  # the program has ended
                server.sendall(bytes([number]))

        for number in PASSED_ON:
            signal.signal(number, pass_on)
        answer = server.recv(8, socket.MSG_WAITALL)
    if len(answer) < 8:
        os.write(2, b"the warm interpreter is gone\n")
        os._exit(70)
    code = int.from_bytes(answer, "big", signed=True)
    if code < 0:
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


main()
