"""The process that serves the metrics of a node: it asks the ranks, answers Prometheus and feeds a Pushgateway.

It is no part of the training: whoever floods it with requests takes no interpreter lock and no memory from a rank, and a rank that hangs
can't keep it from saying so. It gives way to the ranks where they want the same core. It lives as long as the pipe from the rank that
started it, or the rank itself, and needs neither a signal nor a file to end. Only where the pipe's last word says so is what it had pushed
deleted: a run that was killed is to be missed.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import select
import socket
import sys
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from monitoring.endpoint.allowance import allowance_of
from monitoring.endpoint.node_collector import NodeCollector
from monitoring.endpoint.pushgateway import Pushgateway
from monitoring.endpoint.server import Exporter, ExporterError

DELETE = b"delete\n"
"""Last word of whoever started it."""
_NICE = 10
_PARENT_SECONDS = 1.0
_FILES = 1024


@dataclass(frozen=True)
class EndpointSettings:
    """What the process is told. No secret is among it: files are named, and read by the process itself.

    Attributes:
        run: name of the run.
        node: name of this machine.
        attempt: of the run.
        sockets: rank -> path of its socket.
        address: that is bound, as the settings have it.
        token_file: as `Exporter` takes it.
        certificate_file: likewise.
        key_file: likewise.
        pushgateway: URL, empty for none.
        group: labels of the pushes.
        pushgateway_seconds: as `Pushgateway` takes it.
        pushgateway_user: likewise.
        pushgateway_secret_file: likewise.
        sweeps: likewise.
    """

    run: str
    node: str
    attempt: int
    sockets: dict[int, str]
    address: str
    token_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    pushgateway: str = ""
    group: dict[str, str] | None = None
    pushgateway_seconds: float = 30.0
    pushgateway_user: str = ""
    pushgateway_secret_file: str = ""
    sweeps: bool = False

    def to_line(self, listener: int) -> bytes:
        """One line of JSON; `listener`: the number of the file that the process inherits."""
        return json.dumps({"listener": listener, **asdict(self)}).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> tuple[EndpointSettings, int]:
        """The settings and the listener's number."""
        values: dict[str, Any] = json.loads(line)
        listener = int(values.pop("listener"))
        values["sockets"] = {int(rank): str(path) for rank, path in values["sockets"].items()}
        return cls(**values), listener


def serve(settings: EndpointSettings, listener: socket.socket, pipe: int) -> None:
    """Serves until a pipe is closed, or its last word comes.

    Args:
        settings: what to serve.
        listener: that listens already.
        pipe: number of its reading end.

    Raises:
        ExporterError: a file of the settings can't be used.
    """
    parent = os.getppid()
    sockets = {rank: Path(path) for rank, path in settings.sockets.items()}
    allowance = allowance_of(len(sockets))
    collector = NodeCollector(sockets, run=settings.run, node=settings.node, attempt=settings.attempt, spend=allowance.spend)
    files = settings.token_file, settings.certificate_file, settings.key_file
    serving = Exporter(collector.exposition, settings.address, 0, *files, listener=listener, allowance=allowance)
    with closing(collector), serving as exporter:
        pusher = _pusher(settings, collector) if settings.pushgateway else None
        # the pipe of a rank that was killed may live on in a process that the rank forked
        while os.getppid() == parent and exporter.is_serving and not select.select([pipe], [], [], _PARENT_SECONDS)[0]:
            pass
        if not exporter.is_serving:
            raise ExporterError("the metrics are not served any more, see above")  # this process is started again
        if pusher is not None:
            orderly = bool(select.select([pipe], [], [], 0)[0]) and os.read(pipe, len(DELETE)) == DELETE
            pusher.close(delete=orderly)


def _pusher(settings: EndpointSettings, collector: NodeCollector) -> Pushgateway:
    return Pushgateway(
        settings.pushgateway,
        collector,
        settings.group or {},
        seconds=settings.pushgateway_seconds,
        user=settings.pushgateway_user,
        secret_file=settings.pushgateway_secret_file,
        sweeps=settings.sweeps,
    )


def main() -> None:
    """Reads the settings from standard input, and serves until that is closed."""
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as pipe:  # what comes after the line is for `serve`
        settings, listener = EndpointSettings.from_line(pipe.readline())
    logging.basicConfig(format=f"metrics of {settings.node}: %(message)s")
    _give_way()
    _open_more_files()
    try:
        serve(settings, socket.socket(fileno=listener), sys.stdin.fileno())
    except ExporterError as error:
        raise SystemExit(f"metrics of {settings.node}: {error}") from None


def _open_more_files() -> None:
    """As many as the exporter's clients need, where this process may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _FILES:
        return
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _give_way() -> None:
    """The ranks come first where all cores are busy."""
    os.nice(_NICE)
    with suppress(OSError):  # where Linux shares a core by session first, a process's own priority says nothing to other sessions
        Path("/proc/self/autogroup").write_text(str(_NICE))
