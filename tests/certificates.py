"""Certificates that sign themselves, for endpoints on the loopback interface."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Certificate:
    """Files in PEM."""

    certificate: Path
    key: Path

    def trusting(self) -> ssl.SSLContext:
        """Context of a client that trusts this certificate alone."""
        return ssl.create_default_context(cafile=self.certificate)

    def serving(self) -> ssl.SSLContext:
        """Context of a server that shows this certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context


def make_certificate(folder: Path, name: str = "endpoint", password: str = "") -> Certificate:
    """For 127.0.0.1 and localhost, valid for two days."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed (Debian: openssl)")
    made = Certificate(folder / f"{name}.pem", folder / f"{name}.key")
    protection = ["-passout", f"pass:{password}"] if password else ["-nodes"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", *protection, "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    subprocess.run([*command, "-keyout", str(made.key), "-out", str(made.certificate)], check=True, capture_output=True)
    return made
