"""A live run with a real Prometheus beside it: this repository's scrape configuration, recording rules and alert rules at work.

Called by `make monitoring`. The run is that of `make demo`, with a folder of its own, and goes on until Ctrl-C. Everything listens on the
loopback interface only. A second call goes on from the last checkpoint and keeps what Prometheus has stored.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from launch.local.prometheus import Prometheus, PrometheusError

ROOT = Path(__file__).resolve().parents[2]
ENDLESS = 10_000_000
END_SECONDS = 120.0  # for the step that is being taken, the checkpoint and the summary


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=ROOT / ".demo" / "monitoring", help="where everything goes (default: .demo/monitoring)"
    )
    parser.add_argument("--port", type=int, default=9090, help="of Prometheus; another one where it is taken (default: 9090)")
    parser.add_argument("--seconds", type=float, default=0.0, help="end by itself after this time (default: 0, until Ctrl-C)")
    parser.add_argument("--interval", default="5s", help="between two scrapes (default: 5s; prometheus.yml itself has 15s)")
    arguments = parser.parse_args()
    folder: Path = arguments.folder.resolve()
    targets = folder / "run-shipped" / "targets"
    try:
        with Prometheus(folder / "prometheus", [targets], port=arguments.port, interval=arguments.interval) as server:
            print(urls(server.url, targets), flush=True)
            return watch(folder, arguments.seconds)
    except PrometheusError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def watch(folder: Path, seconds: float) -> int:
    """Trains until Ctrl-C, the time is over, or the run ends; returns what the run does, 0 where it was asked to end."""
    command = [sys.executable, "launch/local/demo.py", "--folder", str(folder), "--steps", str(ENDLESS)]
    # in a group of its own: what Ctrl-C says is passed on once, and everything below ends before this does
    run = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    end = time.monotonic() + seconds if seconds else float("inf")
    try:
        while run.poll() is None and time.monotonic() < end:
            time.sleep(0.2)
    except KeyboardInterrupt:
        pass
    if run.poll() is not None:
        return run.returncode
    print("ending: the run saves a checkpoint", flush=True)
    os.killpg(run.pid, signal.SIGINT)
    try:
        run.wait(END_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):  # asked twice
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        print("error: the run did not end in time and was killed; the next call goes on from its last checkpoint", file=sys.stderr)
        return 1
    return 0


def urls(url: str, targets: Path) -> str:
    """What to open."""
    graph = f"{url}/graph?g0.expr=context_encoder%3Aimages%3Arate5m&g0.tab=0&g0.range_input=15m"
    return f"""Prometheus   {url} (loopback only)
alerts       {url}/alerts
rules        {url}/rules
targets      {url}/targets: the ranks appear when the run has started, as they do in {targets}
images/s     {graph}
Grafana      monitoring/docker-compose.yml, where there is Docker; docs/monitoring.md
end          Ctrl-C"""


if __name__ == "__main__":
    sys.exit(main())
