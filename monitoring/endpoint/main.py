"""The endpoint's process: asks the ranks of a node for their metrics, answers Prometheus and feeds a Pushgateway.

It runs outside the training processes, so that a flood of requests costs a rank neither its GIL nor memory, and a rank that hangs can't
keep the endpoint from saying so. It runs in the session of the ranks with the lowest priority: where all cores are busy, the kernel leaves
it 1.4 % of a core that it shares with one thread of a rank, however many clients there are. It ends when its standard input closes or its
parent dies, and needs neither a signal nor a file for that. Pushed metrics are deleted only if the last word on standard input says so,
because a run that was killed must raise an alert.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import sys
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

from monitoring.endpoint.identity import RankIdentity
from monitoring.endpoint.node_collector import NodeCollector
from monitoring.endpoint.pushgateway import Pushgateway
from monitoring.endpoint.server import MetricsServer
from monitoring.settings import EndpointError, MonitoringConfig

DELETE = b"delete\n"
"""Last word of the parent process: the run has ended in good order."""
_NICE = 19
"""Lowest priority with a weight. SCHED_IDLE would take less from a rank, but a scrape of a node whose cores are all busy did not end within
ten seconds with it."""
_PARENT_SECONDS = 1.0


def to_line(settings: MonitoringConfig, identity: RankIdentity) -> bytes:
    """The first line that the process reads, as JSON. No secret is in it, because the settings name files and the process reads them."""
    place = asdict(replace(identity, folder=identity.folder.resolve()))
    return json.dumps({"settings": asdict(settings), "identity": place | {"folder": str(place["folder"])}}).encode() + b"\n"


def from_line(line: bytes) -> tuple[MonitoringConfig, RankIdentity]:
    """The settings and the identity of the rank that started the process."""
    content = json.loads(line)
    identity = content["identity"]
    return MonitoringConfig(**content["settings"]), RankIdentity(**identity | {"folder": Path(identity["folder"])})


def serve(settings: MonitoringConfig, identity: RankIdentity, listener: socket.socket, pipe: int) -> None:
    """Serves until a pipe is closed or its last word comes.

    Args:
        settings: settings of the monitoring.
        identity: identity of the rank that started the process.
        listener: listening socket.
        pipe: file descriptor of the reading end of the pipe.

    Raises:
        EndpointError: a file of the settings can't be used, or the server has ended.
    """
    parent, labels = os.getppid(), identity.labels(settings.per)
    sockets = {rank: identity.socket(rank) for rank in identity.served(settings.per)}
    collector = NodeCollector(sockets, run=labels["run"], node=labels["node"], attempt=identity.attempt)
    with closing(collector), MetricsServer(collector.collected_by, settings, listener) as server:
        pusher = Pushgateway(settings, collector, labels, sweeps=identity.rank == 0) if settings.pushgateway else None
        # the parent is checked as well, because the pipe of a rank that was killed may live on in a process that the rank forked
        while os.getppid() == parent and server.is_serving and not select.select([pipe], [], [], _PARENT_SECONDS)[0]:
            pass
        if not server.is_serving:
            raise EndpointError("the metrics are no longer served, see above")  # the rank starts this process again
        if pusher is not None:
            in_order = bool(select.select([pipe], [], [], 0)[0]) and os.read(pipe, len(DELETE)) == DELETE
            pusher.close(delete=in_order)


def main() -> None:
    """Reads the settings from standard input, and serves on the file descriptor in the first argument until standard input is closed."""
    os.nice(_NICE)
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as pipe:  # unbuffered, because `serve` reads the rest
        settings, identity = from_line(pipe.readline())
    logging.basicConfig(format=f"metrics of {identity.node}: %(message)s")
    try:
        serve(settings, identity, socket.socket(fileno=int(sys.argv[1])), sys.stdin.fileno())
    except EndpointError as error:
        raise SystemExit(f"metrics of {identity.node}: {error}") from None
