"""Where the process that serves a node's metrics finds those of each rank: a Unix socket a rank in a folder that only this user can enter.

Whoever connects is sent one JSON document and the end of the stream. A rank spends two or three milliseconds of processor time on
an answer and nothing while nobody asks; text for Prometheus is made of it elsewhere. Whoever asks makes sure that it is a rank of the same
user who answers.

    {"attempt": 2, "seconds": 0.003, "families": [[name, help, type, unit, [[sample name, labels, value], ...]], ...]}

`seconds` is the processor time of this rank since its answer before, most of it for that one and this one: whoever asks limits it.
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
_STALE_SECONDS = 3600.0  # what is younger may belong to a rank that is starting just now
_LONGEST_PATH = 100  # of a socket, in bytes: Linux takes 107, others 103
_BACKLOG = 16
_CREDENTIALS = "iII"  # of a process: its number, its user, its group

_log = logging.getLogger(__name__)


class RankSocket:
    """Answers with the metrics of this rank until it is closed. A folder that can't be used is a warning: the run goes on without.

    Args:
        registry: of this rank.
        path: of the socket, as `socket_path` gives it. One that another process left is replaced.
        attempt: of the run: an endpoint takes no answers of another one.
    """

    def __init__(self, registry: Collector, path: Path, attempt: int) -> None:
        self.path = path
        self._registry, self._attempt = registry, attempt
        self._spent = 0.0
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
                except OSError:  # gone, or no more open files: the endpoint says that this rank does not answer
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
        before, self._spent = self._spent, time.thread_time()
        return json.dumps({"attempt": self._attempt, "seconds": self._spent - before, "families": families}).encode()

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
    """A listening socket under its name, and its inode.

    Raises:
        OSError: it can't be made there.
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
            os.replace(partial, path)  # whoever finds it can connect
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
    """A connection to the rank that answers there, which does not block.

    Raises:
        OSError: nobody answers there, too many wait already, or it may be another user who answers.
    """
    for folder in (path.parent.parent, path.parent):
        _check_private(folder)
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        client.setblocking(False)
        client.connect(str(path))
        if hasattr(socket, "SO_PEERCRED"):  # Linux, which says who listens
            told = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(_CREDENTIALS))
            _, user, _ = struct.unpack(_CREDENTIALS, told)
            if user != os.getuid():
                raise PermissionError(f"user {user} answers on {path}")
    except OSError:
        client.close()
        raise
    return client


def _sweep(folder: Path) -> None:
    """Removes what killed runs have left: old folders whose sockets nobody listens to."""
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
        except OSError:  # too many wait before it
            return True
    return True


def socket_path(run_folder: Path, node: str, rank: int) -> Path:
    """The same on every rank of a run on a node, another for any other run: `TMPDIR/context-encoder-UID/DIGEST/rank<r>.sock`."""
    digest = hashlib.sha256(os.fsencode(run_folder.resolve()) + b"\0" + os.fsencode(node)).hexdigest()[:16]
    inside = Path(f"context-encoder-{os.getuid()}", digest, f"rank{rank}.sock")
    path = Path(tempfile.gettempdir()) / inside
    short = len(os.fsencode(path)) + len(f".{os.getpid()}") < _LONGEST_PATH
    return path if short else Path("/tmp") / inside  # noqa: S108 (only a folder that _make_private finds to be this user's is used)


def _make_private(folder: Path) -> None:
    """Makes a folder that only this user can enter.

    Raises:
        OSError: it is there, and another user's or open to others.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    _check_private(folder)


def _check_private(folder: Path) -> None:
    """A folder must be one that only this user can enter.

    Raises:
        OSError: it is not, or there is none.
    """
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a folder that only this user can enter")
