"""Starts the endpoint's process, starts it again should it die, and ends it.

The socket that Prometheus connects to is opened outside the process, so that an address that can't be used is an error before the training
begins, and the address stays the same when the process is replaced.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from monitoring.endpoint.identity import RankIdentity
from monitoring.endpoint.main import DELETE, to_line
from monitoring.settings import MonitoringConfig

LONGEST_PAUSE = 60.0
"""Longest pause between the end of the process and its next start, in seconds. The first pause is one second, and each is twice the one
before."""
CLOSE_SECONDS = 20.0
"""Time for the process to end, in seconds, the deletion from a Pushgateway included."""
_BLOCKED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTOU}
"""Signals to the whole job, which are meant for the ranks, and the one by which a terminal with `stty tostop` stops a process of the
background that writes to it."""

_log = logging.getLogger(__name__)


class EndpointProcess:
    """The endpoint's process, from here to `close`. A process that can't be started or dies is a warning, because the run goes on.

    Args:
        settings: settings of the monitoring.
        identity: identity of this rank.
        listener: listening socket that the process serves on; closed by `close`.
    """

    def __init__(self, settings: MonitoringConfig, identity: RankIdentity, listener: socket.socket) -> None:
        self._line, self._listener = to_line(settings, identity), listener
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._start()
        self._thread = threading.Thread(target=self._supervise, name="metrics-endpoint", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """Process id, None while there is no process."""
        return self._process.pid if self._process is not None else None

    def _start(self) -> None:
        project = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (project, os.environ.get("PYTHONPATH", ""))))
        number = self._listener.fileno()
        command = [sys.executable, "-P", "-c", "from monitoring.endpoint.main import main; main()", str(number)]
        try:
            # the process inherits the mask; it ends when its stdin closes
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[number],
                    env={**os.environ, "PYTHONPATH": path},
                    process_group=0,  # in the ranks' session, since Linux shares a core by session before it looks at priorities
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self._process = process
            if process.stdin is not None:
                process.stdin.write(self._line)
                process.stdin.flush()
        except OSError as error:
            _log.warning("the process that serves the metrics can't be started: %s", error.strerror or error)

    def _supervise(self) -> None:
        pause = 1.0
        while True:
            code = self._process.wait() if self._process is not None else None
            if self._closed.wait(pause):
                return
            pause = min(2 * pause, LONGEST_PAUSE)
            with self._lock:
                if self._closed.is_set():
                    return
                _log.warning("the process that serves the metrics has ended (%s) and is started again", _how(code))
                self._release()
                self._start()

    def close(self, *, delete: bool = True) -> None:
        """Ends the process and closes the listener. A second call does nothing.

        Args:
            delete: delete the pushed metrics from the Pushgateway.
        """
        if self._closed.is_set():
            return
        with self._lock:
            self._closed.set()
        self._release(DELETE if delete else b"")
        if self._process is not None:
            try:
                self._process.wait(CLOSE_SECONDS)
            except subprocess.TimeoutExpired:
                _log.warning("the process that serves the metrics did not end within %g s and is killed", CLOSE_SECONDS)
                self._process.kill()
        self._thread.join()
        self._listener.close()

    def _release(self, last_word: bytes = b"") -> None:
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.write(last_word)
            with suppress(OSError):
                self._process.stdin.close()


def _how(code: int | None) -> str:
    if code is None:
        return "it could not be started"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
