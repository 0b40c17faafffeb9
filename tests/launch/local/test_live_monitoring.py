"""`make monitoring`: the program it calls, with a real Prometheus and a real run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.parse import urlencode

import psutil
import pytest

from tests.conftest import ROOT
from tests.launching import clean_environment, wait_until
from tests.ports import free_port


@pytest.mark.slow
@pytest.mark.usefixtures("prometheus")
def test_what_make_monitoring_starts_shows_a_live_run_and_ends_on_ctrl_c(tmp_path: Path) -> None:
    port = free_port()
    log = tmp_path / "log"
    # where the tests themselves run in the background a shell has SIGINT ignored for them
    command = [
        "env",
        "--default-signal=INT",
        sys.executable,
        "-m",
        "launch.local.live_monitoring",
        "--folder",
        str(tmp_path / "demo"),
        "--port",
        str(port),
    ]
    with log.open("wb") as file:
        process = subprocess.Popen([*command, "--seconds", "250"], cwd=ROOT, env=clean_environment(), stdout=file, stderr=file)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: process.poll() is not None or f"{url}/alerts" in log.read_text(), log)
        wait_until(lambda: process.poll() is not None or asked(url, "min(context_encoder_step) > 2"), log, 200)
        assert asked(url, 'sum(context_encoder_rank_up{job="context_encoder"})') == [2.0], log.read_text()[-3000:]
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=150) == 0, log.read_text()[-3000:]
        _, alive = psutil.wait_procs(children, timeout=30)
        assert alive == []
    finally:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            process.wait()


def asked(url: str, expression: str) -> list[float]:
    with urllib.request.urlopen(f"{url}/api/v1/query?{urlencode({'query': expression})}", timeout=30) as answer:  # noqa: S310
        return [float(row["value"][1]) for row in json.load(answer)["data"]["result"]]
