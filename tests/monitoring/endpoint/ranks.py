"""Ranks without training: processes that publish metrics as those of a run do, for tests that stop, hang and kill them."""

from __future__ import annotations

import http.client
import json
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import ROOT

_PROGRAM = """
import json, sys, time
from pathlib import Path
from monitoring import MonitoringConfig, Publication, RankIdentity, RunMetrics
known = json.loads(sys.argv[1])
rank, world = known["rank"], known["world"]
identity = RankIdentity(Path(known["folder"]), "run", "node", rank, world, rank, world, known["attempt"])
metrics = RunMetrics("run", rank, world, "node")
began = time.monotonic()
metrics.heartbeat(lambda: time.monotonic() - began)
metrics.step(step=known["step"], epoch=0, progress=0.5, seconds=0.1, images=8, data_wait_seconds=0.0)
settings = MonitoringConfig(**{"port": 0, **known["settings"]})
with Publication(metrics.registry, settings, identity, identity.folder / "targets") as publication:
    print(json.dumps({"url": publication.url, "endpoint": publication.process and publication.process.pid}), flush=True)
    if sys.stdin.read() == "fail":
        publication.alert_on_failure = True
        raise RuntimeError("as a run that ends with an error")
"""


class Rank:
    """A process with the metrics of one rank, of a run of `world` ranks on this machine.

    Args:
        folder: run folder.
        rank: rank of the process; 0 starts the node's endpoint.
        world: number of ranks of the run.
        attempt: number of the run's attempt.
        step: step that its metrics name.
        settings: settings of the monitoring.
    """

    def __init__(self, folder: Path, rank: int, world: int = 2, attempt: int = 1, step: int = 0, **settings: Any) -> None:
        known = {"folder": str(folder), "rank": rank, "world": world, "attempt": attempt, "step": step or 40 + rank, "settings": settings}
        self.log = folder.parent / f"{folder.name}.rank{rank}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as log:
            command = [sys.executable, "-c", _PROGRAM, json.dumps(known)]
            self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        said = json.loads(line)
        self.url: str = said["url"]
        self.endpoint = psutil.Process(said["endpoint"]) if said["endpoint"] else None

    def end(self) -> int:
        """Ends it the way a run ends; its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(60)

    def fail(self) -> int:
        """Ends it the way an error ends a run that has trained; its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.write("fail")
        return self.end()

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Rank:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Waits until a condition gives something, and gives it."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


def get(url: str, context: ssl.SSLContext | None = None, path: str = "", **headers: str) -> tuple[int, bytes]:
    """Status and body of one request; an endpoint that is not there yet raises OSError."""
    scheme, _, rest = url.partition("://")
    host, _, usual = rest.partition("/")
    connection: http.client.HTTPConnection
    connection = (
        http.client.HTTPSConnection(host, timeout=60, context=context)
        if scheme == "https"
        else http.client.HTTPConnection(host, timeout=60)
    )
    try:
        connection.request("GET", path or f"/{usual}", headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def scrape(url: str, context: ssl.SSLContext | None = None, **headers: str) -> dict[str, Metric]:
    """Name -> family, parsed as Prometheus does."""
    status, body = get(url, context, **headers)
    assert status == 200, (status, body)
    return {family.name: family for family in text_string_to_metric_families(body.decode())}


def by_rank(families: dict[str, Metric], name: str) -> dict[str, float]:
    """Label `rank` -> value."""
    return {sample.labels["rank"]: sample.value for sample in families[f"context_encoder_{name}"].samples}
