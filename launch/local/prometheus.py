"""A real Prometheus on this machine with the configuration and the rules of monitoring/prometheus, for live monitoring and tests.

It listens on the loopback interface only and ends with its `with` block.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from shards.errors import ExplainedError

FOLDER = Path(__file__).resolve().parents[2] / "monitoring" / "prometheus"
"""Folder of the configuration and the rules."""
_READY_SECONDS = 60.0
_END_SECONDS = 20.0


class PrometheusError(ExplainedError):
    """Prometheus is not installed, did not start, or refused a query; the message has its own error."""


def configuration(targets: Sequence[Path], rules: Sequence[Path], interval: str = "") -> dict[str, Any]:
    """The content of monitoring/prometheus/prometheus.yml for one machine: other target files and rules, and no Alertmanager.

    Args:
        targets: folders of target files (RUN/targets); they need not exist yet.
        rules: rule files.
        interval: time between two scrapes, evaluations and reads of the target files, as Prometheus writes durations; empty for the file's.
    """
    content: dict[str, Any] = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))
    del content["alerting"]
    content["rule_files"] = [str(path.resolve()) for path in rules]
    (discovery,) = content["scrape_configs"][0]["file_sd_configs"]
    discovery["files"] = [f"{folder.resolve()}/*.json" for folder in targets]
    if interval:
        discovery["refresh_interval"] = interval
        content["global"] |= {"scrape_interval": interval, "evaluation_interval": interval}
    return content


class Prometheus:
    """A server that lives as long as the `with` block.

    Args:
        folder: folder of its configuration, database and log; made where it is missing.
        targets: folders of target files.
        rules: rule files; those of monitoring/prometheus where none are given.
        port: port to listen on; a free one where it is 0 or taken.
        interval: time between two scrapes; empty for 15 seconds.

    Attributes:
        url: http://127.0.0.1:PORT.
        log: log file of the server.

    Raises:
        PrometheusError: on entering the `with` block, Prometheus is not installed or does not become ready.
    """

    def __init__(self, folder: Path, targets: Sequence[Path], *, rules: Sequence[Path] = (), port: int = 0, interval: str = "") -> None:
        self.folder, self.log = folder, folder / "prometheus.log"
        self._configuration = configuration(targets, rules or sorted((FOLDER / "rules").glob("*.yml")), interval)
        self.port = _free_port(port)
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Prometheus:
        program = shutil.which("prometheus")
        if program is None:
            raise PrometheusError("prometheus is not installed. On Debian and Ubuntu: apt-get install --no-install-recommends prometheus")
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(self._configuration, sort_keys=False), encoding="utf-8")
        command = [
            *(program, f"--config.file={file}", f"--storage.tsdb.path={self.folder / 'database'}"),
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]
        with self.log.open("ab") as log:
            # in a session of its own, because Ctrl-C is for the run, whose last samples it still scrapes
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        try:
            self._wait(self._process)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the server. A second call does nothing."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Returns the rows of an instant query, each with `metric` (labels) and `value` (time, text).

        Args:
            expression: PromQL.

        Raises:
            PrometheusError: Prometheus refused the expression, or does not answer.
        """
        answer = self._ask(f"/api/v1/query?query={urllib.parse.quote(expression)}")
        data = answer["data"]
        return list(data["result"]) if data["resultType"] == "vector" else [{"metric": {}, "value": data["result"]}]

    def alerts(self) -> list[dict[str, Any]]:
        """Returns the alerts that are pending or firing, each with `labels`, `annotations` and `state`."""
        return list(self._ask("/api/v1/alerts")["data"]["alerts"])

    def rules(self) -> list[dict[str, Any]]:
        """Returns every rule with its `name`, `query`, `health` and `lastError`."""
        return [rule for group in self._ask("/api/v1/rules")["data"]["groups"] for rule in group["rules"]]

    def _ask(self, path: str) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as answer:  # noqa: S310 - a loopback http URL made here
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            text = error.read().decode("utf-8", "replace")
            raise PrometheusError(f"Prometheus at {self.url} refused {urllib.parse.unquote(path)}: {text}") from error
        except OSError as error:
            raise PrometheusError(f"Prometheus at {self.url} does not answer: {error}. Its log: {self.log}") from error

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.url}/-/ready", timeout=5).close()  # noqa: S310
                return
            except OSError:
                time.sleep(0.05)
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line for line in lines if "level=error" in line] or lines
        last = "\n".join(errors[-5:])
        raise PrometheusError(f"Prometheus did not become ready at {self.url}. From {self.log}:\n{last}")


def _free_port(wanted: int) -> int:
    for port in (wanted, 0):
        try:
            with socket.create_server(("127.0.0.1", port)) as free:
                return int(free.getsockname()[1])
        except OSError:
            continue
    raise PrometheusError("no port is free on 127.0.0.1")
