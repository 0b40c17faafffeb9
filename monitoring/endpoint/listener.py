"""The socket that Prometheus connects to, opened before anybody serves it."""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket

from monitoring.endpoint.access import ExporterError

_BACKLOG = 128  # whom it has no room for comes again after a second; whom it has waits for all before, those that have left among them
_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 (compared with, not bound to)

_log = logging.getLogger(__name__)


def listen(address: str, port: int, *, guarded: bool) -> socket.socket:
    """A socket that listens; connections wait in it until somebody accepts them.

    Args:
        address: IP address or host name to bind.
        port: to bind, 0 for any free one. A port that is taken is replaced by a free one, with a warning.
        guarded: a token is asked for. Without one an address that others reach is a warning.

    Raises:
        ExporterError: the address is not one of this machine, or the port is none.
    """
    if not address:
        raise ExporterError("monitoring.address is empty: give 127.0.0.1, or 0.0.0.0 to be reached from everywhere")
    if not 0 <= port <= 65535:
        raise ExporterError(f"monitoring.port: {port} is not one from 0 to 65535")
    try:
        listener = _bind(address, port)
    except OSError as error:
        if not port or error.errno not in (errno.EADDRINUSE, errno.EACCES):  # EACCES: a port below 1024
            raise ExporterError(f"monitoring.address: {address}: {error.strerror or error}. Give an address of this machine") from error
        listener = listen(address, 0, guarded=guarded)
        _log.warning("port %d on %s is taken: metrics are served on port %d instead", port, address, listener.getsockname()[1])
        return listener
    if not guarded and not ipaddress.ip_address(str(listener.getsockname()[0]).partition("%")[0]).is_loopback:
        _log.warning("metrics on %s can be read by everybody who reaches it: set monitoring.token_file", target_of(listener, address))
    return listener


def target_of(listener: socket.socket, address: str) -> str:
    """`host:port` for Prometheus; this machine's name where every address is bound."""
    host = socket.gethostname() if address in _WILDCARDS else address
    port = listener.getsockname()[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _bind(address: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
