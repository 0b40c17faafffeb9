"""Starts the process that serves a node's metrics, starts it again should it die, and ends it.

The socket that Prometheus connects to is opened here, so that what is wrong with it is an error before the training begins, and that it
stays the same when the process behind it is another one.
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

from monitoring.endpoint.main import DELETE, EndpointSettings

LONGEST_PAUSE = 60.0
"""Between the end of the process and its next start, in seconds; the first is one second, and each twice the one before."""
CLOSE_SECONDS = 20.0
"""What the process gets to end, the deletion from a Pushgateway included."""
_KEPT_AWAY = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}

_log = logging.getLogger(__name__)


class EndpointProcess:
    """The process, from here to `close`. That it can't be started or dies is a warning: the run goes on.

    Args:
        settings: what it serves.
        listener: that it serves on; closed with this.
    """

    def __init__(self, settings: EndpointSettings, listener: socket.socket) -> None:
        self._settings, self._listener = settings, listener
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._start()
        self._thread = threading.Thread(target=self._supervise, name="metrics-endpoint", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """Of the process, None while there is none."""
        return self._process.pid if self._process is not None else None

    def _start(self) -> None:
        project = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (project, os.environ.get("PYTHONPATH", ""))))
        command = [sys.executable, "-P", "-c", "from monitoring.endpoint.main import main; main()"]
        number = self._listener.fileno()
        try:
            # who signals the whole job means the ranks: the process gets these blocked, and ends when its input does
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _KEPT_AWAY)
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[number],
                    env={**os.environ, "PYTHONPATH": path},
                    start_new_session=True,
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self._process = process
            if process.stdin is not None:
                process.stdin.write(self._settings.to_line(number))
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
                _log.warning("the process that serves the metrics has ended (%s): it is started again", _how(code))
                self._release()
                self._start()

    def close(self, *, delete: bool = True) -> None:
        """Ends the process and closes the listener. A second call does nothing.

        Args:
            delete: what it has pushed, from the Pushgateway.
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
