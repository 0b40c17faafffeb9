"""Causes of failed requests to a store: the few that a metric counts retries by, and those that no retry mends.

The causes are declared here alone; the metrics take them from here through the training.
"""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator
from typing import Any, Literal, get_args

from shards.explanations import access_refused
from shards.web import UnfitServer

Cause = Literal["throttled", "server_error", "timeout", "connection", "short", "other"]
CAUSES: tuple[Cause, ...] = get_args(Cause)
"""Causes of a retry: the store asked for fewer requests; it answered 5xx; no bytes came in time; the connection failed or was never made;
the body ended before its bytes did; anything else."""

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
_SHORT = ("IncompleteRead", "PayloadError", "ResponseStreamingError", "ContentLengthError")  # names in aiohttp, botocore and urllib3
_CONNECTION = ("Connection", "Connector", "ServerDisconnected", "ClientOSError", "HTTPClientError", "SSLError", "NameResolution")
_NO_CREDENTIALS = frozenset(  # names in botocore
    {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError", "ProfileNotFound"}
)


class Short(OSError):
    """The store ended a body before the bytes that were asked for."""


class Refused(OSError):
    """The store answered with an error.

    Args:
        status: status code of HTTP.
        answer: status code and the store's own word for it.
    """

    def __init__(self, status: int, answer: str) -> None:
        super().__init__(f"the store answered {answer}")
        self.status = status


def cause(error: BaseException) -> Cause:
    """Finds the cause that a failed request is counted as. Client libraries wrap one error in another, so the whole chain is searched, for
    the most telling cause first."""
    chain = list(_chain(error))
    status = next((found for each in chain if (found := _status(each))), 0)
    if status == _TOO_MANY or any(word in str(each).lower() for each in chain for word in _THROTTLED):
        return "throttled"
    if status >= http.client.INTERNAL_SERVER_ERROR:
        return "server_error"
    # aiohttp has no other name for a connection that was reset inside a body
    if any(isinstance(each, Short | http.client.IncompleteRead) or _is_called(each, _SHORT) for each in chain):
        return "short"
    if any(isinstance(each, TimeoutError) or _is_called(each, ("Timeout",)) for each in chain):
        return "timeout"
    broken = ConnectionError | socket.gaierror | ssl.SSLError | http.client.HTTPException
    if any(isinstance(each, broken) or _is_called(each, _CONNECTION) for each in chain):
        return "connection"
    return "other"


def final_reason(error: BaseException | None, fs: Any) -> str:
    """The explanation of a failure that waiting does not mend; empty for one that a retry may mend.

    Args:
        error: error of the store's client.
        fs: file system of fsspec that raised it.
    """
    said = " ".join(str(error).split())
    if isinstance(error, FileNotFoundError):
        return "no such object. Is the bucket or folder right, and the data set complete?"
    if isinstance(error, PermissionError):
        return access_refused(error, "read", fs)
    if isinstance(error, UnfitServer):
        return said
    if type(error).__name__ in _NO_CREDENTIALS:
        return f"{said}. Give the store credentials (profile, environment or role)"
    return ""


def is_replaced(error: BaseException) -> bool:
    """True for a 412 of s3fs: the object has another ETag than the request demanded."""
    answer = getattr(error.__cause__, "response", None) or {}
    return bool(answer.get("ResponseMetadata", {}).get("HTTPStatusCode") == http.client.PRECONDITION_FAILED)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from, outermost first."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def _status(error: BaseException) -> int:
    """The status code of HTTP, as this package, aiohttp and botocore keep it; 0 where there is none."""
    answer = getattr(error, "response", None)
    metadata = answer.get("ResponseMetadata", {}) if isinstance(answer, dict) else {}
    status = getattr(error, "status", None) or metadata.get("HTTPStatusCode")
    return status if isinstance(status, int) else 0


def _is_called(error: BaseException, parts: tuple[str, ...]) -> bool:
    """True if the class of an error, or a class that it comes from, has such a name. Names are compared, because the clients are optional
    and may not be there to import."""
    return any(part in base.__name__ for base in type(error).__mro__ for part in parts)
