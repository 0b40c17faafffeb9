"""The files that tell Prometheus where the endpoints are, and a real Prometheus that finds them."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from monitoring import TargetsFile
from monitoring.endpoint import targets
from tests.certificates import Certificate, make_certificate
from tests.conftest import ROOT
from tests.monitoring.endpoint.ranks import Rank

CHILD = """
import sys, time
from pathlib import Path
from monitoring import TargetsFile
rank = int(sys.argv[2])
TargetsFile(Path(sys.argv[1]), "127.0.0.1:1", {"run": "run", "node": "n"}, ranks=range(rank, rank + 1), world_size=4)
print("ready", flush=True)
time.sleep(60)
"""


LABELS = {"run": "run", "node": "n"}


def write(folder: Path, first: int, world_size: int, count: int = 1, target: str = "127.0.0.1:1", **more: str) -> TargetsFile:
    return TargetsFile(folder, target, LABELS, ranks=range(first, first + count), world_size=world_size, **more)


def start_rank(folder: Path, rank: int) -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder), str(rank)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_file_has_the_form_of_file_sd_and_goes_when_closed(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "targets"
    labels = {"run": "run", "rank": "2", "node": "node"}
    with TargetsFile(folder, "127.0.0.1:9400", labels, ranks=range(2, 3), world_size=4) as file:
        assert file.path == folder / "rank2.json"
        (group,) = json.loads(file.path.read_text())
        assert group["targets"] == ["127.0.0.1:9400"]
        assert {key: text for key, text in group["labels"].items() if not key.startswith("__")} == labels
        assert "__scheme__" not in group["labels"]
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
        with write(tmp_path, 0, 4):
            assert names(tmp_path) == ["rank0.json", "rank1.json"]
    finally:
        for child in (living, killed):
            child.kill()
            child.communicate()


def test_a_process_id_that_was_given_again_does_not_keep_a_file_alive(tmp_path: Path) -> None:
    with write(tmp_path, 1, 4) as file:
        (group,) = json.loads(file.path.read_text())
        process = group["labels"]["__context_encoder_process__"]
        group["labels"]["__context_encoder_process__"] = f"{process.partition('/')[0]}/12"  # this process's id, another's start
        (tmp_path / "rank3.json").write_text(json.dumps([group]))
        write(tmp_path, 0, 4)
        assert names(tmp_path) == ["rank0.json", "rank1.json"]


def test_files_of_other_machines_and_of_other_programs_are_left_alone(tmp_path: Path) -> None:
    foreign = [{"targets": ["other:1"], "labels": {"__context_encoder_host__": "other", "__context_encoder_process__": "999999999/1"}}]
    (tmp_path / "rank1.json").write_text(json.dumps(foreign))
    for name, content in {"rank2.json": "{", "rank3.json": "[]", "rankx.json": "[]", "notes.txt": "mine"}.items():
        (tmp_path / name).write_text(content)
    before = names(tmp_path)
    write(tmp_path, 0, 4).close()
    assert names(tmp_path) == before


def test_ranks_that_the_run_no_longer_has_are_removed_wherever_they_ran(tmp_path: Path) -> None:
    foreign = [{"targets": ["other:1"], "labels": {"__context_encoder_host__": "other", "__context_encoder_process__": "1/1"}}]
    for rank in range(8):
        (tmp_path / f"rank{rank}.json").write_text(json.dumps(foreign))
    with write(tmp_path, 0, 7):
        assert names(tmp_path) == [f"rank{rank}.json" for rank in range(7)]


def test_whatever_nodes_and_ranks_an_earlier_attempt_had_only_what_serves_now_remains(tmp_path: Path) -> None:
    """The files of the earlier attempt are those of processes on other machines, which can't be asked."""
    foreign = [{"targets": ["other:1"], "labels": {"__context_encoder_host__": "other", "__context_encoder_process__": "1/1"}}]
    for before, now in (((1, 8), (2, 4)), ((4, 2), (2, 4)), ((2, 4), (1, 8)), ((8, 1), (3, 2)), ((2, 4), (8, 1))):
        for node in range(before[0]):
            (tmp_path / f"rank{node * before[1]}.json").write_text(json.dumps(foreign))
        files = [write(tmp_path, node * now[1], now[0] * now[1], now[1]) for node in range(now[0])]
        assert names(tmp_path) == sorted(f"rank{node * now[1]}.json" for node in range(now[0])), (before, now)
        for file in files:
            file.close()
        assert names(tmp_path) == []


@pytest.mark.parametrize(("nodes", "ranks"), [(1, 16), (16, 1), (4, 4)])
def test_a_start_reads_each_file_once_at_most_and_lists_the_folder_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: int, ranks: int
) -> None:
    """A thousand ranks start at the same time, and the folder is on a shared file system."""
    world_size = nodes * ranks
    foreign = [{"targets": ["other:1"], "labels": {"__context_encoder_host__": "other", "__context_encoder_process__": "1/1"}}]
    for rank in range(world_size + 3):
        (tmp_path / f"rank{rank}.json").write_text(json.dumps(foreign))
    listed, read = list[Path](), list[Path]()
    iterdir, read_bytes = Path.iterdir, Path.read_bytes

    def noted_iterdir(path: Path) -> Iterator[Path]:
        listed.append(path)
        return iterdir(path)

    def noted_read_bytes(path: Path) -> bytes:
        read.append(path)
        return read_bytes(path)

    monkeypatch.setattr(Path, "iterdir", noted_iterdir)
    monkeypatch.setattr(Path, "read_bytes", noted_read_bytes)
    for first in reversed(range(0, world_size, ranks)):
        write(tmp_path, first, world_size, ranks)
    read = [path for path in read if path.parent == tmp_path]
    assert listed == [tmp_path]
    assert len(read) == len(set(read)) <= world_size
    monkeypatch.undo()
    assert names(tmp_path) == sorted(f"rank{first}.json" for first in range(0, world_size, ranks))


def test_a_file_that_a_rank_writes_while_it_is_swept_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with write(tmp_path, 1, 2) as file:
        (group,) = json.loads(file.path.read_text())
        group["labels"]["__context_encoder_process__"] = "999999999/1"
        file.path.write_text(json.dumps([group]))
    is_dead, written = targets._is_dead, list[TargetsFile]()

    def then_comes_back(path: Path) -> bool:
        dead = is_dead(path)
        if dead and not written:
            written.append(write(tmp_path, 1, 2, target="127.0.0.1:2"))
        return dead

    monkeypatch.setattr(targets, "_is_dead", then_comes_back)
    with write(tmp_path, 0, 2):
        assert written, "there was something to sweep"
        assert names(tmp_path) == ["rank0.json", "rank1.json"]
        assert json.loads((tmp_path / "rank1.json").read_text())[0]["targets"] == ["127.0.0.1:2"]


def test_where_tls_is_spoken_the_target_says_so(tmp_path: Path) -> None:
    with write(tmp_path, 0, 1, scheme="https") as file:
        assert json.loads(file.path.read_text())[0]["labels"]["__scheme__"] == "https"


def test_a_rank_that_was_taken_over_keeps_the_new_file(tmp_path: Path) -> None:
    first = write(tmp_path, 0, 1)
    with write(tmp_path, 0, 1, target="127.0.0.1:2") as second:
        first.close()
        assert json.loads(second.path.read_text())[0]["targets"] == ["127.0.0.1:2"]


def test_a_folder_that_can_not_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    write(tmp_path / "file" / "targets", 0, 1).close()
    assert "127.0.0.1:1" in caplog.text
    assert "rank0.json" in caplog.text


@pytest.mark.server
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed (Debian: prometheus)")
@pytest.mark.parametrize("per", ["node", "rank"])
def test_prometheus_finds_every_rank_and_reads_its_metrics_with_the_token(tmp_path: Path, per: str) -> None:
    token, folder, made = tmp_path / "token", tmp_path / "run", make_certificate(tmp_path)
    token.write_text("s3cret\n")
    settings = {"per": per, "token_file": str(token), "certificate_file": str(made.certificate), "key_file": str(made.key)}
    with Rank(folder, 0, **settings), Rank(folder, 1, **settings) as killed, prometheus(tmp_path, folder / "targets", token, made) as port:
        found = query(port, "context_encoder_step", until=2)
        assert {(row["metric"]["rank"], row["value"][1]) for row in found} == {("0", "40"), ("1", "41")}
        for row in found:
            assert set(row["metric"]) == {"__name__", "instance", "job", "run", "rank", "node"}, "no label twice, none internal"
        up = query(port, "up == 1", until=1 if per == "node" else 2)
        labels = {"__name__", "instance", "job", "run", "node"} | ({"rank"} if per == "rank" else set())
        assert all(set(row["metric"]) == labels for row in up)
        assert len(query(port, "context_encoder_checkpoint_age_seconds", until=2)) == 2, "NaN is a value"
        killed.kill()
        if per == "node":
            (row,) = query(port, "context_encoder_rank_up == 0", until=1)
            assert row["metric"]["rank"] == "1"
            assert len(query(port, "context_encoder_step", until=1)) == 1, "what a dead rank said last is not said again"
        else:
            (row,) = query(port, "up == 0", until=1)
            assert row["metric"]["rank"] == "1"


@contextmanager
def prometheus(tmp_path: Path, targets: Path, token: Path, certificate: Certificate) -> Iterator[int]:
    """A real one that watches a folder; its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    job = {
        "job_name": "context_encoder",
        "honor_labels": True,
        "authorization": {"credentials_file": str(token)},
        "tls_config": {"ca_file": str(certificate.certificate)},
        "file_sd_configs": [{"files": [f"{targets}/*.json"]}],
    }
    configuration = {"global": {"scrape_interval": "1s"}, "scrape_configs": [job]}
    (tmp_path / "prometheus.yml").write_text(json.dumps(configuration))  # JSON is YAML
    arguments = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/db", f"--web.listen-address=127.0.0.1:{port}"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(["prometheus", *arguments], stdout=log, stderr=log)
    try:
        yield port
    except AssertionError:
        print((tmp_path / "log").read_text())
        raise
    finally:
        server.terminate()
        server.wait()


def query(port: int, expression: str, until: int) -> list[dict[str, Any]]:
    """The rows of an instant query, once there are `until` of them."""
    rows: list[dict[str, Any]] = []
    deadline = time.monotonic() + 60
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
