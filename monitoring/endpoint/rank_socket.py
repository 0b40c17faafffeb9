"""Unix sockets on which ranks answer with their metrics, one a rank, in a folder that only this user can enter.

A client that connects is sent one JSON document and the end of the stream. An answer costs a rank two or three milliseconds of CPU time;
the endpoint's process makes text for Prometheus of it. The client makes sure that a rank of the same user answers.

    {"attempt": 2, "families": [[name, help, type, unit, [[sample name, labels, value], ...]], ...]}
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import selectors
import socket
import stat
import struct
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from prometheus_client.registry import Collector

_SEND_SECONDS = 2.0
_PAUSE_SECONDS = 0.1
_STALE_SECONDS = 3600.0  # a younger folder may belong to a rank that is starting just now
_LONGEST_PATH = 100  # bytes of a socket's path: Linux takes 107, others 103
_BACKLOG = 16
_CREDENTIALS = "iII"  # id, user and group of a process

_log = logging.getLogger(__name__)


class RankSocket:
    """Answers with the metrics of this rank until it is closed. A folder that can't be used is a warning, because the run goes on.

    Args:
        registry: metrics of this rank.
        path: path of the socket, as `socket_path` gives it. A socket that another process left there is replaced.
        attempt: number of the run's attempt, because an endpoint takes no answers of another attempt.
    """

    def __init__(self, registry: Collector, path: Path, attempt: int) -> None:
        self.path = path
        self._registry, self._attempt = registry, attempt
        self._listener: socket.socket | None = None
        try:
            listener, self._inode = _listen(path)
        except OSError as error:
            _log.warning(
                "the metrics of this rank are not served: %s: %s. Set TMPDIR to a folder of this node that only you write to",
                path,
                error.strerror or error,
            )
            return
        _sweep(path.parent.parent)
        listener.setblocking(False)  # a connection that is gone before it is accepted must not block the thread
        self._listener = listener
        self._wake, woken = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, args=(listener, woken), name="metrics", daemon=True)
        self._thread.start()

    def _serve(self, listener: socket.socket, woken: socket.socket) -> None:
        with listener, woken, selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            selector.register(woken, selectors.EVENT_READ)
            while all(key.fileobj is listener for key, _ in selector.select()):
                try:
                    client, _ = listener.accept()
                except OSError:  # the client is gone, or no file descriptor is left: the endpoint reports this rank as silent
                    time.sleep(_PAUSE_SECONDS)
                    continue
                with client:
                    client.settimeout(_SEND_SECONDS)
                    try:
                        client.sendall(self._answer())
                    except OSError:
                        pass  # the endpoint did not wait for it
                    except Exception:
                        _log.exception("the metrics of this rank can't be read")

    def _answer(self) -> bytes:
        families = [
            (family.name, family.documentation, family.type, family.unit, [(s.name, s.labels, s.value) for s in family.samples])
            for family in self._registry.collect()
        ]
        return json.dumps({"attempt": self._attempt, "families": families}).encode()

    def close(self) -> None:
        """Stops answering and removes the socket, unless another process has taken the rank over. A second call does nothing."""
        if self._listener is None:
            return
        self._wake.close()
        self._thread.join(2 * _SEND_SECONDS)
        self._listener = None
        with suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
            self.path.parent.rmdir()  # the last rank's

    def __enter__(self) -> RankSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _listen(path: Path) -> tuple[socket.socket, int]:
    """Makes a listening socket under its name, and gives it with its inode.

    The name appears when the socket already listens, so that every client that finds it can connect. `whole_file` can't do this, because a
    socket is bound, not written.

    Raises:
        OSError: no socket can be made there.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    for attempt in range(3):
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _make_private(path.parent.parent)
            _make_private(path.parent)
            partial.unlink(missing_ok=True)
            listener.bind(str(partial))
            listener.listen(_BACKLOG)
            inode = partial.stat().st_ino
            os.replace(partial, path)
        except OSError as error:
            listener.close()
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            if isinstance(error, FileNotFoundError) and attempt < 2:  # the last rank of an earlier attempt has just removed the folder
                continue
            raise
        return listener, inode
    raise AssertionError("the last try returns or raises")


def connect(path: Path) -> socket.socket:
    """Connects to the rank that answers on a socket; the connection does not block.

    Raises:
        OSError: no process answers there, its queue is full, or another user may be answering.
    """
    for folder in (path.parent.parent, path.parent):
        _check_private(folder)
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        client.setblocking(False)
        client.connect(str(path))
        if hasattr(socket, "SO_PEERCRED"):  # Linux knows the user of the listening process
            credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(_CREDENTIALS))
            _, user, _ = struct.unpack(_CREDENTIALS, credentials)
            if user != os.getuid():
                raise PermissionError(f"user {user} answers on {path}")
    except OSError:
        client.close()
        raise
    return client


def _sweep(folder: Path) -> None:
    """Removes the folders of killed runs: old ones in which no process listens."""
    with suppress(OSError):
        for run in folder.iterdir():
            if time.time() - run.stat().st_mtime < _STALE_SECONDS:
                continue
            for path in run.iterdir():
                if not _is_listening(path):
                    path.unlink(missing_ok=True)
            with suppress(OSError):  # a run that lives
                run.rmdir()


def _is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:  # its queue is full
            return True
    return True


def socket_path(run_folder: Path, node: str, rank: int) -> Path:
    """Path of a rank's socket, in one folder for the ranks of a run on a node: `TMPDIR/context-encoder-UID/DIGEST/rank<r>.sock`."""
    digest = hashlib.sha256(os.fsencode(run_folder.resolve()) + b"\0" + os.fsencode(node)).hexdigest()[:16]
    inside = Path(f"context-encoder-{os.getuid()}", digest, f"rank{rank}.sock")
    path = Path(tempfile.gettempdir()) / inside
    short = len(os.fsencode(path)) + len(f".{os.getpid()}") < _LONGEST_PATH
    return path if short else Path("/tmp") / inside  # noqa: S108 (only a folder that _make_private finds to be this user's is used)


def _make_private(folder: Path) -> None:
    """Makes a folder that only this user can enter.

    Raises:
        OSError: the folder exists and belongs to another user or is open to others.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    _check_private(folder)


def _check_private(folder: Path) -> None:
    """Refuses a folder that other users can enter.

    Raises:
        OSError: the folder is missing, belongs to another user or is open to others.
    """
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a folder that only this user can enter")
