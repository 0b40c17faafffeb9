"""The endpoint behind TLS: the clients that get in, the files that are refused before it starts, and handshakes that stall."""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from monitoring import EndpointError, MetricsServer, MonitoringConfig, RunMetrics
from monitoring.endpoint import server as module
from monitoring.endpoint.access import listen, server_context
from tests.certificates import Certificate, make_certificate
from tests.monitoring.endpoint.ranks import Rank, by_rank, get, scrape, wait_until


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


def serving(certificate: Certificate) -> MetricsServer:
    registry = RunMetrics("run", 0, 1, "node").registry
    settings = MonitoringConfig(port=0, certificate_file=str(certificate.certificate), key_file=str(certificate.key))
    return MetricsServer(registry, settings)


@pytest.fixture
def server(certificate: Certificate) -> Iterator[MetricsServer]:
    with serving(certificate) as served:
        yield served


def connect(server: MetricsServer, sent: bytes = b"") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    client.sendall(sent)
    return client


def test_metrics_are_served_to_clients_that_trust_the_certificate(server: MetricsServer, certificate: Certificate) -> None:
    assert b"context_encoder_rank_up" in get(f"https://127.0.0.1:{server.port}/metrics", certificate.trusting())[1]
    with pytest.raises(ssl.SSLCertVerificationError):
        get(f"https://127.0.0.1:{server.port}/metrics", ssl.create_default_context())


@pytest.mark.filterwarnings("ignore:.*TLSv1.*deprecated:DeprecationWarning")
def test_nothing_older_than_tls_1_2_is_spoken(server: MetricsServer, certificate: Certificate) -> None:
    served = server_context(certificate.certificate, certificate.key)
    assert served is not None
    assert served.minimum_version == ssl.TLSVersion.TLSv1_2
    context = certificate.trusting()
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with pytest.raises(OSError, match=r"(?i)protocol|version|alert|reset"), connect(server) as client:
        context.wrap_socket(client, server_hostname="localhost")
    context = certificate.trusting()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with connect(server) as client, context.wrap_socket(client, server_hostname="localhost") as secured:
        assert secured.version() == "TLSv1.2"


def test_without_tls_nothing_is_said(server: MetricsServer) -> None:
    for sent in (b"GET /metrics HTTP/1.0\r\n\r\n", b"garbage" * 1000, b"\x16\x03\x01\x00\x05hello", b""):
        with connect(server, sent) as client:
            try:
                client.shutdown(socket.SHUT_WR)
                answer = client.recv(65536)
            except OSError:
                continue  # cut off
            assert b"context_encoder" not in answer


def stalled_handshakes(server: MetricsServer) -> list[socket.socket]:
    return [connect(server, sent) for sent in (b"", b"\x16\x03\x01") for _ in range(10)]


def test_handshakes_that_stall_block_nobody(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEAD_SECONDS", 300.0)
    monkeypatch.setattr(module, "REQUEST_SECONDS", 300.0)
    with serving(certificate) as server:
        stalled = stalled_handshakes(server)
        assert get(f"https://127.0.0.1:{server.port}/metrics", certificate.trusting())[0] == 200
        for client in stalled:
            client.close()


def test_handshakes_that_stall_are_cut_off_and_leave_nothing(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEAD_SECONDS", 1.0)
    with serving(certificate) as server:
        threads, files = threading.active_count(), psutil.Process().num_fds()
        for client in stalled_handshakes(server):
            assert client.recv(100) == b"", "cut off"
            client.close()
        wait_until(lambda: threading.active_count() <= threads and psutil.Process().num_fds() <= files)


def test_a_handshake_that_drips_is_cut_off(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEAD_SECONDS", 0.6)
    with serving(certificate) as server, connect(server, b"\x16\x03\x01\x10\x00") as client:
        client.settimeout(0.05)

        def is_cut() -> bool:
            try:
                client.sendall(b"y")
                return client.recv(1) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        wait_until(is_cut, 30)  # it would take minutes for the whole of what it announced


def test_files_that_can_not_be_used_are_errors_that_name_the_setting(certificate: Certificate, tmp_path: Path) -> None:
    other, locked = make_certificate(tmp_path, "other"), make_certificate(tmp_path, "locked", password="secret")
    nonsense, missing = tmp_path / "nonsense", tmp_path / "missing"
    nonsense.write_text("no PEM")
    for files, setting, path in (
        ((certificate.certificate, ""), "monitoring.key_file", ""),
        (("", certificate.key), "monitoring.certificate_file", ""),
        ((missing, certificate.key), "monitoring.certificate_file", missing),
        ((certificate.certificate, missing), "monitoring.key_file", missing),
        ((certificate.certificate, other.key), "monitoring.key_file", other.key),
        ((nonsense, certificate.key), "monitoring.certificate_file", nonsense),
        ((certificate.certificate, nonsense), "monitoring.key_file", nonsense),
        ((locked.certificate, locked.key), "monitoring.key_file", locked.key),
    ):
        settings = MonitoringConfig(port=0, certificate_file=str(files[0]), key_file=str(files[1]))
        with pytest.raises(EndpointError, match=re.escape(setting)) as raised:
            MetricsServer(RunMetrics("run", 0, 1, "node").registry, settings)
        assert str(path) in str(raised.value)
        assert "secret" not in str(raised.value)


def test_a_node_is_served_with_tls_and_a_token(certificate: Certificate, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret")
    settings = {"certificate_file": str(certificate.certificate), "key_file": str(certificate.key), "token_file": str(token)}
    with Rank(tmp_path / "run", 0, **settings) as first, Rank(tmp_path / "run", 1, **settings):
        assert first.url.startswith("https://")
        found = scrape(first.url, certificate.trusting(), Authorization="Bearer s3cret")
        assert by_rank(found, "step") == {"0": 40.0, "1": 41.0}
        assert get(first.url, certificate.trusting(), Authorization="Bearer wrong")[0] == 401
        assert first.endpoint is not None
        assert "s3cret" not in " ".join(first.endpoint.cmdline()) + str(first.endpoint.environ())
        assert '"__scheme__": "https"' in (tmp_path / "run" / "targets" / "rank0.json").read_text()
    assert first.log.read_text() == ""


def test_a_listener_that_is_open_to_all_is_a_warning_only_without_a_token(caplog: pytest.LogCaptureFixture) -> None:
    for guarded in (True, False):
        listen("0.0.0.0", 0, guarded=guarded).close()  # noqa: S104
        assert ("monitoring.token_file" in caplog.text) is not guarded
