"""Access to the metrics of a run: the address that is bound, the bearer token, TLS.

Secrets come from files, never from a setting, a command line or a URL, because settings are kept with the run and every user of a machine
sees its command lines.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
import ssl
from pathlib import Path

from monitoring.settings import EndpointError

_QUEUE = 64  # connections that wait in the kernel, as many as are served together; a client that finds no room tries again
_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 (compared with, not bound to)

_log = logging.getLogger(__name__)


def listen(address: str, port: int, *, guarded: bool) -> socket.socket:
    """Opens a listening socket, in whose queue connections wait until a server accepts them.

    Args:
        address: IP address or host name to bind.
        port: port to bind, 0 for any free one. A port that is taken is replaced by a free one, with a warning.
        guarded: whether clients must send a token. Without one an address that other machines reach is a warning.

    Raises:
        EndpointError: the address is not one of this machine, or the port is not one from 0 to 65535.
    """
    if not address:
        raise EndpointError("monitoring.address is empty: give 127.0.0.1, or 0.0.0.0 to be reached from everywhere")
    if not 0 <= port <= 65535:  # ports of ranks follow the one in the settings
        raise EndpointError(f"monitoring.port: {port} is not one from 0 to 65535")
    try:
        listener = _bind(address, port)
    except OSError as error:
        if not port or error.errno not in (errno.EADDRINUSE, errno.EACCES):  # EACCES: a port below 1024
            raise EndpointError(f"monitoring.address: {address}: {error.strerror or error}. Give an address of this machine") from error
        listener = listen(address, 0, guarded=guarded)
        _log.warning("port %d on %s is taken: metrics are served on port %d instead", port, address, listener.getsockname()[1])
        return listener
    if not guarded and not is_loopback(listener):
        _log.warning("metrics on %s can be read by every machine that reaches it: set monitoring.token_file", target_of(listener, address))
    return listener


def target_of(listener: socket.socket, address: str) -> str:
    """`host:port` for Prometheus, with this machine's name where every address is bound."""
    host = socket.gethostname() if address in _WILDCARDS else address
    port = listener.getsockname()[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(listener: socket.socket) -> bool:
    """Tells whether only this machine reaches a listening socket."""
    return ipaddress.ip_address(str(listener.getsockname()[0]).partition("%")[0]).is_loopback


def _bind(address: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(_QUEUE)
    except OSError:
        listener.close()
        raise
    return listener


def read_secret(path: str | Path, setting: str) -> bytes:
    """Reads a secret from a file, without the white space around it; empty where no file is given.

    Args:
        path: path of the file, empty for none.
        setting: setting that names the file, for the error.

    Raises:
        EndpointError: the file can't be read, is empty, or holds characters that no HTTP header can carry.
    """
    if not path:
        return b""
    try:
        secret = Path(path).expanduser().read_bytes().strip()
    except OSError as error:
        raise EndpointError(f"{setting}: {path}: {error.strerror or error}. Give a file that this user can read") from error
    if not secret:
        raise EndpointError(f"{setting}: {path} is empty: write the secret into the file, or leave the setting empty")
    if any(byte < 0x20 or byte == 0x7F for byte in secret):
        raise EndpointError(
            f"{setting}: {path} holds more than one line or characters that no header can carry: one line of text is needed"
        )
    return secret


def server_context(certificate_file: str | Path, key_file: str | Path) -> ssl.SSLContext | None:
    """Loads a certificate for TLS 1.2 or newer; None where no file is given.

    Args:
        certificate_file: PEM file with the certificate first, then the certificates between it and its authority.
        key_file: PEM file with the private key, without a password.

    Raises:
        EndpointError: one of the two files is missing, can't be read or is protected by a password, or the key is not the certificate's.
    """
    if not certificate_file and not key_file:
        return None
    for path, setting in ((certificate_file, "monitoring.certificate_file"), (key_file, "monitoring.key_file")):
        if not path:
            raise EndpointError(f"{setting}: TLS needs a certificate and its key, and this one is not given")
        try:
            Path(path).expanduser().read_bytes()
        except OSError as error:  # OpenSSL's own message does not say which of the two
            raise EndpointError(f"{setting}: {path}: {error.strerror or error}. Give a file that this user can read") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(Path(certificate_file).expanduser(), Path(key_file).expanduser(), password=_refuse)
    except _PasswordNeededError:
        raise EndpointError(f"monitoring.key_file: {key_file} has a password: give a key without, readable by this user alone") from None
    except ssl.SSLError as error:
        mismatch = error.reason == "KEY_VALUES_MISMATCH"
        what = "is not the key of" if mismatch else f"or the certificate is not valid PEM ({error.reason or 'unreadable'}):"
        raise EndpointError(f"monitoring.key_file: {key_file} {what} monitoring.certificate_file {certificate_file}") from error
    return context


class _PasswordNeededError(Exception):
    pass


def _refuse() -> str:
    raise _PasswordNeededError  # OpenSSL would ask on the terminal of the training job
