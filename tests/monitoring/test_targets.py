"""The files that tell Prometheus where the ranks are, and a real Prometheus that finds them."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from monitoring import Exporter, RunMetrics, TargetsFile

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import sys, time
from pathlib import Path
from monitoring import TargetsFile
TargetsFile(Path(sys.argv[1]), "127.0.0.1:1", run="run", rank=int(sys.argv[2]), world_size=4, node="n")
print("ready", flush=True)
time.sleep(60)
"""


def start_rank(folder: Path, rank: int) -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder), str(rank)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_file_has_the_form_of_file_sd_and_goes_when_closed(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "targets"
    with TargetsFile(folder, "127.0.0.1:9400", run="run", rank=2, world_size=4, node="node") as file:
        assert file.path == folder / "rank2.json"
        (group,) = json.loads(file.path.read_text())
        assert group["targets"] == ["127.0.0.1:9400"]
        assert {key: text for key, text in group["labels"].items() if not key.startswith("__")} == {
            "run": "run",
            "rank": "2",
            "node": "node",
        }
        assert set(group) == {"targets", "labels"}, "Prometheus refuses any other key"
        assert names(folder) == ["rank2.json"], "nothing temporary is left"
    assert names(folder) == []
    file.close()


def test_files_of_killed_processes_are_swept_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    living, killed = start_rank(tmp_path, 1), start_rank(tmp_path, 2)
    try:
        killed.send_signal(signal.SIGKILL)
        # not waited for: it is a zombie, which is just as dead
        deadline = time.monotonic() + 10
        while "Z" not in Path(f"/proc/{killed.pid}/stat").read_text().rpartition(")")[2].split()[0] and time.monotonic() < deadline:
            time.sleep(0.01)
        with TargetsFile(tmp_path, "127.0.0.1:1", run="run", rank=0, world_size=4, node="n"):
            assert names(tmp_path) == ["rank0.json", "rank1.json"]
    finally:
        for child in (living, killed):
            child.kill()
            child.communicate()


def test_a_process_id_that_was_given_again_does_not_keep_a_file_alive(tmp_path: Path) -> None:
    with TargetsFile(tmp_path, "127.0.0.1:1", run="run", rank=1, world_size=4, node="n") as file:
        (group,) = json.loads(file.path.read_text())
        process = group["labels"]["__context_encoder_process__"]
        group["labels"]["__context_encoder_process__"] = f"{process.partition('/')[0]}/12"  # this process's id, another's start
        (tmp_path / "rank3.json").write_text(json.dumps([group]))
        TargetsFile(tmp_path, "127.0.0.1:1", run="run", rank=2, world_size=4, node="n")
        assert names(tmp_path) == ["rank1.json", "rank2.json"]


def test_files_of_other_machines_and_of_other_programs_are_left_alone(tmp_path: Path) -> None:
    foreign = [{"targets": ["other:1"], "labels": {"__context_encoder_host__": "other", "__context_encoder_process__": "999999999/1"}}]
    (tmp_path / "rank1.json").write_text(json.dumps(foreign))
    for name, content in {"rank2.json": "{", "rank3.json": "[]", "rankx.json": "[]", "notes.txt": "mine"}.items():
        (tmp_path / name).write_text(content)
    before = names(tmp_path)
    TargetsFile(tmp_path, "127.0.0.1:1", run="run", rank=0, world_size=4, node="n").close()
    assert names(tmp_path) == before


def test_ranks_that_the_run_no_longer_has_are_removed_wherever_they_ran(tmp_path: Path) -> None:
    foreign = [{"targets": ["other:1"], "labels": {"__context_encoder_host__": "other", "__context_encoder_process__": "1/1"}}]
    for rank in range(8):
        (tmp_path / f"rank{rank}.json").write_text(json.dumps(foreign))
    with TargetsFile(tmp_path, "127.0.0.1:1", run="run", rank=0, world_size=7, node="n"):
        assert names(tmp_path) == [f"rank{rank}.json" for rank in range(7)]


def test_a_rank_that_was_taken_over_keeps_the_new_file(tmp_path: Path) -> None:
    first = TargetsFile(tmp_path, "127.0.0.1:1", run="run", rank=0, world_size=1, node="n")
    with TargetsFile(tmp_path, "127.0.0.1:2", run="run", rank=0, world_size=1, node="n") as second:
        first.close()
        assert json.loads(second.path.read_text())[0]["targets"] == ["127.0.0.1:2"]


def test_a_folder_that_can_not_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    TargetsFile(tmp_path / "file" / "targets", "127.0.0.1:1", run="run", rank=0, world_size=1, node="n").close()
    assert "127.0.0.1:1" in caplog.text
    assert "rank0.json" in caplog.text


@pytest.mark.server
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed (Debian: prometheus)")
def test_prometheus_finds_every_rank_and_reads_its_metrics_with_the_token(tmp_path: Path) -> None:
    token, targets = tmp_path / "token", tmp_path / "targets"
    token.write_text("s3cret\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "prometheus.yml").write_text(
        json.dumps(  # JSON is YAML
            {
                "global": {"scrape_interval": "1s"},
                "scrape_configs": [
                    {
                        "job_name": "training",
                        "honor_labels": True,
                        "authorization": {"credentials_file": str(token)},
                        "file_sd_configs": [{"files": [f"{targets}/*.json"]}],
                    }
                ],
            }
        )
    )
    arguments = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/db", f"--web.listen-address=127.0.0.1:{port}"]
    log = (tmp_path / "log").open("wb")
    server = subprocess.Popen(["prometheus", *arguments], stdout=log, stderr=log)
    ranks = [RunMetrics("run", rank, 2, "node") for rank in range(2)]
    exporters = [Exporter(metrics.registry, port=0, token_file=token) for metrics in ranks]
    files = [
        TargetsFile(targets, exporter.target, run="run", rank=rank, world_size=2, node="node") for rank, exporter in enumerate(exporters)
    ]
    try:
        for rank, metrics in enumerate(ranks):
            metrics.step(step=40 + rank, epoch=0, progress=0.5, seconds=0.1, images=8, data_wait_seconds=0.0)
        found = query(port, "context_encoder_step", until=2)
        assert {(row["metric"]["rank"], row["value"][1]) for row in found} == {("0", "40"), ("1", "41")}
        for row in found:
            assert set(row["metric"]) == {"__name__", "instance", "job", "run", "rank", "node"}, "no label twice, none internal"
        up = query(port, "up == 1", until=2)
        assert {row["metric"]["rank"] for row in up} == {"0", "1"}
        assert len(query(port, "context_encoder_checkpoint_age_seconds", until=2)) == 2, "NaN is a value"
    except AssertionError:
        print((tmp_path / "log").read_text())
        raise
    finally:
        server.terminate()
        server.wait()
        log.close()
        for file, exporter in zip(files, exporters, strict=True):
            file.close()
            exporter.close()


def query(port: int, expression: str, until: int) -> list[dict[str, Any]]:
    """The rows of an instant query, once there are `until` of them."""
    rows: list[dict[str, Any]] = []
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?query={quote(expression)}", timeout=5) as answer:
                rows = json.load(answer)["data"]["result"]
        except OSError:
            rows = []  # not up yet
        if len(rows) == until:
            return rows
        time.sleep(0.2)
    raise AssertionError(f"{expression}: {rows}")
