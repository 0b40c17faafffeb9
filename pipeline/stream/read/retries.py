"""Why a request to a store is tried again, in a few words that a metric can count by."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator
from typing import Literal, get_args

Cause = Literal["throttled", "server_error", "timeout", "connection", "short", "other"]
CAUSES: tuple[Cause, ...] = get_args(Cause)
"""The store asked for fewer requests; it answered 5xx; nothing came in time; the connection failed or was never made; the body ended before
its bytes did; whatever else."""

_TOO_MANY = http.client.TOO_MANY_REQUESTS
_THROTTLED = (
    "slowdown",
    "slow down",
    "throttl",
    "toomanyrequests",
    "requestlimitexceeded",
    "bandwidthlimitexceeded",
    "reduce your request",
)
_SHORT = ("IncompleteRead", "PayloadError", "ResponseStreamingError", "ContentLengthError")  # of aiohttp, botocore and urllib3
_CONNECTION = ("Connection", "Connector", "ServerDisconnected", "ClientOSError", "HTTPClientError", "SSLError", "NameResolution")


class Short(OSError):
    """The store ended a body before the bytes that were asked for."""


class Refused(OSError):
    """The store answered with an error.

    Args:
        status: of HTTP.
        answer: the status and the store's own word for it.
    """

    def __init__(self, status: int, answer: str) -> None:
        super().__init__(f"the store answered {answer}")
        self.status = status


def cause(error: BaseException) -> Cause:
    """What a failed request is counted as. Client libraries wrap one error in another: what says most, wherever it stands, counts."""
    chain = list(_chain(error))
    status = next((found for each in chain if (found := _status(each))), 0)
    if status == _TOO_MANY or any(word in str(each).lower() for each in chain for word in _THROTTLED):
        return "throttled"
    if status >= http.client.INTERNAL_SERVER_ERROR:
        return "server_error"
    # aiohttp has no other word for a connection that was reset inside a body
    if any(isinstance(each, Short | http.client.IncompleteRead) or _is_called(each, _SHORT) for each in chain):
        return "short"
    if any(isinstance(each, TimeoutError) or _is_called(each, ("Timeout",)) for each in chain):
        return "timeout"
    broken = ConnectionError | socket.gaierror | ssl.SSLError | http.client.HTTPException
    if any(isinstance(each, broken) or _is_called(each, _CONNECTION) for each in chain):
        return "connection"
    return "other"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from, outermost first."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def _status(error: BaseException) -> int:
    """Of HTTP, as this package, aiohttp and botocore keep it; 0 where there is none."""
    answer = getattr(error, "response", None)
    metadata = answer.get("ResponseMetadata", {}) if isinstance(answer, dict) else {}
    status = getattr(error, "status", None) or metadata.get("HTTPStatusCode")
    return status if isinstance(status, int) else 0


def _is_called(error: BaseException, parts: tuple[str, ...]) -> bool:
    """Whether the class of an error or one that it comes from has such a name: clients are optional and can't be imported to ask."""
    return any(part in base.__name__ for base in type(error).__mro__ for part in parts)
