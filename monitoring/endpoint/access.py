"""Who may read the metrics of a run, and who may read along on the way: a bearer token, TLS.

Secrets come from files, never from a setting, a command line or a URL: settings are kept with the run and command lines are seen by all.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from shards.errors import ExplainedError


class ExporterError(ExplainedError):
    """The metrics can't be exported as configured. Names the setting."""


def read_secret(path: str | Path, setting: str) -> bytes:
    """The content of a file without the white space around it; empty when no file is given.

    Args:
        path: of the file, empty for none.
        setting: that names it, for the message.

    Raises:
        ExporterError: the file can't be read, is empty, or holds what no HTTP header can carry.
    """
    if not path:
        return b""
    try:
        secret = Path(path).expanduser().read_bytes().strip()
    except OSError as error:
        raise ExporterError(f"{setting}: {path}: {error.strerror or error}. Give a file that this user can read") from error
    if not secret:
        raise ExporterError(f"{setting}: {path} is empty: write the secret into it, or configure none")
    if any(byte < 0x20 or byte == 0x7F for byte in secret):
        raise ExporterError(
            f"{setting}: {path} holds more than one line or characters that no header can carry: one line of text is needed"
        )
    return secret


def server_context(certificate_file: str | Path, key_file: str | Path) -> ssl.SSLContext | None:
    """TLS 1.2 or newer with a certificate; None when no file is given.

    Args:
        certificate_file: PEM, the certificate first, then those between it and its authority.
        key_file: PEM, without a password.

    Raises:
        ExporterError: one of the two is missing, can't be read, is protected by a password, or they do not belong together.
    """
    if not certificate_file and not key_file:
        return None
    for path, setting in ((certificate_file, "monitoring.certificate_file"), (key_file, "monitoring.key_file")):
        if not path:
            raise ExporterError(f"{setting}: TLS needs a certificate and its key, and this one is not given")
        try:
            Path(path).expanduser().read_bytes()
        except OSError as error:  # OpenSSL's own message does not say which of the two
            raise ExporterError(f"{setting}: {path}: {error.strerror or error}. Give a file that this user can read") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(Path(certificate_file).expanduser(), Path(key_file).expanduser(), password=_refuse)
    except _PasswordNeededError:
        raise ExporterError(f"monitoring.key_file: {key_file} has a password: give a key without, readable by this user alone") from None
    except ssl.SSLError as error:
        mismatch = error.reason == "KEY_VALUES_MISMATCH"
        what = "is not the key of" if mismatch else f"or the certificate is not valid PEM ({error.reason or 'unreadable'}):"
        raise ExporterError(f"monitoring.key_file: {key_file} {what} monitoring.certificate_file {certificate_file}") from error
    return context


class _PasswordNeededError(Exception):
    pass


def _refuse() -> str:
    raise _PasswordNeededError  # OpenSSL would ask on the terminal of the training job
