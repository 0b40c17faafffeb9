"""How the metrics of a rank get out of its process: one call opens everything that this rank has part in.

Every rank answers on a socket of its own. Where one endpoint serves a node, the node's first rank starts it and names it in
`RUN/targets/`; where each rank has its own, each does.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from prometheus_client import CollectorRegistry

from monitoring.endpoint.access import read_secret, server_context
from monitoring.endpoint.listener import listen, target_of
from monitoring.endpoint.main import EndpointSettings
from monitoring.endpoint.process import EndpointProcess
from monitoring.endpoint.rank_socket import RankSocket, socket_path
from monitoring.endpoint.targets import TargetsFile
from monitoring.metrics.definitions import label_value

_log = logging.getLogger(__name__)


class Settings(Protocol):
    """The part of a configuration that is about this; `MonitoringConfig` explains each."""

    @property
    def per(self) -> Literal["node", "rank"]: ...
    @property
    def address(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def token_file(self) -> str: ...
    @property
    def certificate_file(self) -> str: ...
    @property
    def key_file(self) -> str: ...
    @property
    def pushgateway(self) -> str: ...
    @property
    def pushgateway_seconds(self) -> float: ...
    @property
    def pushgateway_user(self) -> str: ...
    @property
    def pushgateway_secret_file(self) -> str: ...


@dataclass(frozen=True)
class Place:
    """Which rank of which run this is.

    Attributes:
        folder: of the run.
        run: its name, as the series carry it.
        node: name of this machine, likewise.
        rank: of this process.
        world_size: ranks of the run.
        local_rank: of this process among those of this node, whose ranks are consecutive.
        local_size: ranks on this node.
        attempt: of the run, from 1; the same on all ranks.
    """

    folder: Path
    run: str
    node: str
    rank: int
    world_size: int
    local_rank: int
    local_size: int
    attempt: int


class Export:
    """What this rank has opened.

    Attributes:
        url: where the metrics of this rank's node (or of this rank) are served; empty where another rank sees to it.
        summary: the same in words for the console, with where those of the other nodes are; likewise.
        process: that serves them, likewise.
        missed: whether Prometheus is to miss the run where an error ends it. From the beginning that is so of a later attempt alone: where
            a first one is refused whoever has started it is told.
    """

    def __init__(self, registry: CollectorRegistry, settings: Settings, place: Place, targets: Path) -> None:
        self.url = self.summary = ""
        self.process: EndpointProcess | None = None
        self.missed = place.attempt > 1
        self._targets: TargetsFile | None = None
        single = settings.per == "rank" or place.local_rank >= place.local_size  # a launcher that does not say how many there are
        ranks = range(place.rank, place.rank + 1) if single else _of_node(place)
        if place.rank == ranks.start:
            self._serve(settings, place, ranks, targets, single)
        self._socket = RankSocket(registry, socket_path(place.folder, place.node, place.rank), place.attempt)

    def _serve(self, settings: Settings, place: Place, ranks: range, targets: Path, single: bool) -> None:
        files = settings.token_file, settings.certificate_file, settings.key_file
        read_secret(files[0], "monitoring.token_file")
        context = server_context(*files[1:])
        if settings.pushgateway:
            read_secret(settings.pushgateway_secret_file, "monitoring.pushgateway_secret_file")
        port = settings.port and settings.port + (place.local_rank if single else 0)
        listener = listen(settings.address, port, guarded=bool(settings.token_file))
        target = target_of(listener, settings.address)
        labels = {"run": label_value(place.run), "node": label_value(place.node), **({"rank": str(place.rank)} if single else {})}
        told = EndpointSettings(
            run=labels["run"],
            node=labels["node"],
            attempt=place.attempt,
            sockets={rank: str(socket_path(place.folder, place.node, rank)) for rank in ranks},
            address=settings.address,
            token_file=files[0],
            certificate_file=files[1],
            key_file=files[2],
            pushgateway=settings.pushgateway,
            group=labels,
            pushgateway_seconds=settings.pushgateway_seconds,
            pushgateway_user=settings.pushgateway_user,
            pushgateway_secret_file=settings.pushgateway_secret_file,
            sweeps=place.rank == 0,
        )
        self.process = EndpointProcess(told, listener)
        scheme = "https" if context is not None else "http"
        self._targets = TargetsFile(targets, target, labels, ranks=ranks, world_size=place.world_size, scheme=scheme)
        self.url = f"{scheme}://{target}/metrics"
        self.summary = f"metrics: {self.url}, of all nodes: {targets}/"
        if place.world_size > place.local_size and _is_loopback(listener):
            if settings.pushgateway:
                self.summary = f"metrics of this node: {self.url}, of all nodes: pushed to {settings.pushgateway}"
                return
            self.summary = f"metrics of this node alone: {self.url}"
            if place.rank == 0:
                _log.warning(
                    "monitoring.address: %s is reached from each node itself alone, and this run has several: a Prometheus can't scrape "
                    "them, and takes its own machine for all that %s names. Set it to 0.0.0.0 and monitoring.token_file to a file that "
                    "all nodes have, or set monitoring.pushgateway",
                    settings.address,
                    targets,
                )

    def close(self) -> None:
        """Takes everything back. While an error ends a run that is to be missed the target file stays, and so does what was pushed: it is
        by them that Prometheus sees that the run is gone, until it is started again and sweeps them. A second call does nothing."""
        in_order = sys.exc_info()[1] is None or not self.missed
        if self._targets is not None and in_order:
            self._targets.close()
        self._targets = None
        if self.process is not None:
            self.process.close(delete=in_order)
        self._socket.close()

    def __enter__(self) -> Export:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_export(registry: CollectorRegistry, settings: Settings, place: Place, targets: Path) -> Export:
    """Opens what this rank exports its metrics by.

    Args:
        registry: of this rank.
        settings: of the run.
        place: of this rank.
        targets: folder of the target files.

    Raises:
        ExporterError: a setting can't be used on this machine. What this machine lacks at the moment is a warning instead.
    """
    return Export(registry, settings, place, targets)


def _is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(str(listener.getsockname()[0]).partition("%")[0]).is_loopback


def _of_node(place: Place) -> range:
    first = place.rank - place.local_rank
    return range(first, first + place.local_size)
