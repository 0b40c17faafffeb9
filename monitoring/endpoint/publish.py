"""Publishes the metrics of a rank: one call opens everything that this rank has part in.

Every rank answers on a socket of its own. Where one endpoint serves a node, the node's first rank starts the endpoint and names it in
`RUN/targets/`; where each rank has an endpoint of its own, each rank does.
"""

from __future__ import annotations

import logging
import socket
import sys
from pathlib import Path

from prometheus_client import CollectorRegistry

from monitoring.endpoint.access import is_loopback, listen, read_secret, server_context, target_of
from monitoring.endpoint.identity import RankIdentity
from monitoring.endpoint.process import EndpointProcess
from monitoring.endpoint.rank_socket import RankSocket
from monitoring.endpoint.targets import TargetsFile
from monitoring.settings import MonitoringConfig

_log = logging.getLogger(__name__)


class Publication:
    """The published metrics of a rank, from here to `close`.

    Args:
        registry: metrics of this rank.
        settings: settings of the monitoring.
        identity: identity of this rank.
        targets: folder of the target files.

    Attributes:
        url: address of the endpoint that this rank opened; empty where another rank of the node opened it.
        summary: line for the console about this endpoint and those of other nodes; empty where `url` is.
        process: process of the endpoint; None where `url` is empty.
        alert_on_failure: if an error ends the run, keep its target file and pushed metrics, so that the alert TargetDown fires. True from
            the start for attempt 2 and later; set when training begins for attempt 1, because a first attempt that is refused before
            shows its error to the person who started it.

    Raises:
        EndpointError: a setting can't be used on this machine. A shortage of the moment (a port, a folder) is a warning instead.
    """

    def __init__(self, registry: CollectorRegistry, settings: MonitoringConfig, identity: RankIdentity, targets: Path) -> None:
        self.url = self.summary = ""
        self.process: EndpointProcess | None = None
        self.alert_on_failure = identity.attempt > 1
        self._targets: TargetsFile | None = None
        if identity.rank == identity.served(settings.per).start:
            self._open_endpoint(settings, identity, targets)
        self._socket = RankSocket(registry, identity.socket(identity.rank), identity.attempt)

    def _open_endpoint(self, settings: MonitoringConfig, identity: RankIdentity, targets: Path) -> None:
        read_secret(settings.token_file, "monitoring.token_file")
        context = server_context(settings.certificate_file, settings.key_file)
        if settings.pushgateway:
            read_secret(settings.pushgateway_secret_file, "monitoring.pushgateway_secret_file")
        port = settings.port and settings.port + (identity.local_rank if identity.is_alone(settings.per) else 0)
        listener = listen(settings.address, port, guarded=bool(settings.token_file))
        target, scheme = target_of(listener, settings.address), "https" if context is not None else "http"
        self.process = EndpointProcess(settings, identity, listener)
        self._targets = TargetsFile(
            targets,
            target,
            identity.labels(settings.per),
            ranks=identity.served(settings.per),
            world_size=identity.world_size,
            scheme=scheme,
        )
        self.url = f"{scheme}://{target}/metrics"
        self.summary = self._summarise(settings, identity, targets, listener)

    def _summarise(self, settings: MonitoringConfig, identity: RankIdentity, targets: Path, listener: socket.socket) -> str:
        """The line for the console, and a warning where Prometheus can't reach all nodes."""
        if identity.world_size <= identity.local_size or not is_loopback(listener):
            return f"metrics: {self.url}, of all nodes: {targets}/"
        if settings.pushgateway:
            return f"metrics of this node: {self.url}, of all nodes: pushed to {settings.pushgateway}"
        if identity.rank == 0:
            _log.warning(
                "monitoring.address: only the node itself reaches %s, and this run has several nodes: a Prometheus can't scrape them, "
                "and takes its own machine for every target in %s. Set monitoring.address to 0.0.0.0 and monitoring.token_file to a file "
                "that all nodes have, or set monitoring.pushgateway",
                settings.address,
                targets,
            )
        return f"metrics of this node alone: {self.url}"

    def close(self) -> None:
        """Takes everything back, unless an error is ending the run and `alert_on_failure` is set: then the target file and the pushed
        metrics stay, because by them Prometheus sees that the run is gone. The next attempt sweeps them. A second call does nothing."""
        in_order = sys.exc_info()[1] is None or not self.alert_on_failure
        if self._targets is not None and in_order:
            self._targets.close()
        self._targets = None
        if self.process is not None:
            self.process.close(delete=in_order)
        self._socket.close()

    def __enter__(self) -> Publication:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
