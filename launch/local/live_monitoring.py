"""A live run with a real Prometheus beside it: this repository's scrape configuration, recording rules and alert rules at work.

`make monitoring` runs it as `python -m launch.local.live_monitoring`. The run is that of `make demo`, with a folder of its own, and goes on
until Ctrl-C. All servers listen on the loopback interface only. A second call continues from the last checkpoint and keeps the database of
Prometheus.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from launch.local.prometheus import Prometheus, PrometheusError

ROOT = Path(__file__).resolve().parents[2]
ENDLESS = 10_000_000
END_SECONDS = 120.0  # enough for the current step, the checkpoint and the summary


def main() -> int:
    """Starts Prometheus and the run; returns 1 where either fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT / ".demo" / "monitoring",
        help="folder of everything that is written (default: .demo/monitoring)",
    )
    parser.add_argument("--port", type=int, default=9090, help="port of Prometheus; a free one where it is taken (default: 9090)")
    parser.add_argument("--seconds", type=float, default=0.0, help="end after this time (default: 0, until Ctrl-C)")
    parser.add_argument("--interval", default="5s", help="time between two scrapes (default: 5s; prometheus.yml itself has 15s)")
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
    """Trains until Ctrl-C, the end of the time, or the end of the run.

    Args:
        folder: folder of everything that is written.
        seconds: time to train; 0 for no end.

    Returns:
        The exit code of the run; 0 where this function ended it.
    """
    command = [sys.executable, "-m", "launch.local.demo", "--folder", str(folder), "--steps", str(ENDLESS)]
    # in a session of its own, so that Ctrl-C reaches it once, from here, and everything that it started ends before this program
    run = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    for number in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal does not reach the other session by itself
        signal.signal(number, signal.default_int_handler)
    end = time.monotonic() + seconds if seconds else float("inf")
    try:
        while run.poll() is None and time.monotonic() < end:
            time.sleep(0.2)
    except KeyboardInterrupt:
        pass
    if run.poll() is not None:
        return run.returncode
    os.killpg(run.pid, signal.SIGINT)
    with suppress(OSError):  # the terminal is gone
        print("ending: the run saves a checkpoint", flush=True)
    try:
        run.wait(END_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):  # the second Ctrl-C
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        print("error: the run did not end in time and was killed; the next call continues from its last checkpoint", file=sys.stderr)
        return 1
    return 0


def urls(url: str, targets: Path) -> str:
    """The lines that say which pages to open.

    Args:
        url: URL of Prometheus.
        targets: folder of the run's target files.
    """
    graph = f"{url}/graph?g0.expr=context_encoder%3Aimages%3Arate5m&g0.tab=0&g0.range_input=15m"
    return f"""Prometheus   {url} (loopback only)
alerts       {url}/alerts
rules        {url}/rules
targets      {url}/targets: the ranks appear when the run has started, as in {targets}
images/s     {graph}
Grafana      monitoring/docker-compose.yml, where there is Docker; docs/monitoring.md
end          Ctrl-C"""


if __name__ == "__main__":
    sys.exit(main())
