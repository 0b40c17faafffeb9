"""Settings of the monitoring: the part `monitoring` of a run's configuration.

Needs no metrics, no network and no pipeline, so that the configuration, the training and the endpoint's process share one dataclass.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Interval

from shards.errors import ExplainedError


class EndpointError(ExplainedError):
    """A setting of monitoring.* that can't be used. The message names the setting."""


@dataclass(frozen=True)
class MonitoringConfig:
    """Metrics for Prometheus. See docs/monitoring.md."""

    enabled: bool = True
    """Serve the metrics, and push them where a Pushgateway is given."""
    report: bool = True
    """Write RUN/report.html when the run is finished; at any other time `python launch/report.py RUN` does."""
    run_name: str = ""
    """Label `run` of every series; empty is the last part of --run. Two runs of one name are one run to every rule and panel."""
    per: Literal["node", "rank"] = "node"
    """node: one endpoint for all ranks of a node; rank: one each."""
    address: str = "127.0.0.1"
    """Address to bind. Anything but loopback opens the metrics to the network."""
    port: Annotated[int, Interval(ge=0, le=65535)] = 9400
    """Port of the node's endpoint, or of the node's first rank and the others follow; 0 takes any free one. The addresses are in
    RUN/targets/."""
    token_file: str = ""
    """File whose content scrapers must send as a bearer token."""
    certificate_file: str = ""
    """Certificate in PEM, with those between it and its authority: the endpoint then speaks TLS only."""
    key_file: str = ""
    """Private key of certificate_file in PEM, without a password."""
    peak_teraflops: Annotated[float, Ge(0)] = 0.0
    """Peak speed of a rank's device at the run's precision, in 10^12 operations a second, for the model-FLOP utilisation; 0: by the name
    of the GPU, unknown elsewhere."""
    pushgateway: str = ""
    """URL of a Pushgateway, for jobs that Prometheus can't reach: http://HOST:9091. Pushed metrics are deleted when the run ends."""
    pushgateway_seconds: Annotated[float, Interval(gt=0, le=1e6)] = 30.0
    """Time between two pushes."""
    pushgateway_user: str = ""
    """Name for the Pushgateway, with the password in pushgateway_secret_file."""
    pushgateway_secret_file: str = ""
    """File with the password of pushgateway_user, or without a user with a bearer token. Read for every push."""


def check(settings: MonitoringConfig) -> None:
    """Refuses settings that no run could use and that the bounds of a single field can't describe.

    Raises:
        EndpointError: the message names the setting.
    """
    if bool(settings.certificate_file) != bool(settings.key_file):
        given, missing = ("certificate_file", "key_file") if settings.certificate_file else ("key_file", "certificate_file")
        raise EndpointError(f"monitoring.{missing}: TLS needs both files, and only monitoring.{given} is given")
    url = settings.pushgateway
    if url and _holds_secret(url):
        raise EndpointError(
            "monitoring.pushgateway: a password or a query in the URL would be kept with the run and logged. Give the URL alone, "
            "the name as monitoring.pushgateway_user and the password in a file, monitoring.pushgateway_secret_file"
        )
    if url and not re.fullmatch(r"https?://[^\s/]+(/\S*)?", url):
        raise EndpointError(f"monitoring.pushgateway: {url!r} is not the URL of a Pushgateway: give http://HOST:9091 or https://HOST/path")
    if settings.pushgateway_user and not settings.pushgateway_secret_file:
        raise EndpointError("monitoring.pushgateway_secret_file: give the file with the password of monitoring.pushgateway_user")


def _holds_secret(url: str) -> bool:
    """Tells whether a URL has a user, a password or a query."""
    host, _, rest = url.partition("://")[2].partition("/")
    return "@" in host or "?" in host + rest
