"""Explains the errors of a store's client: the operation and the permission that was missing, or the option that is wrong."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Mapping
from typing import Any, Literal

from shards.urls import reason_of, redacted

Operation = Literal["read", "look up", "list", "write", "delete"]
_LIST, _READ, _WRITE = "s3:ListBucket", "s3:GetObject", "s3:PutObject"
_NEEDED: Mapping[Operation, str] = {"read": _READ, "look up": _READ, "list": _LIST, "write": _WRITE, "delete": "s3:DeleteObject"}
_PERMISSIONS = {  # of requests whose names in botocore tell more than the operation
    "HeadObject": f"{_READ}, and {_LIST} if there is no such object",
    "ListObjectsV2": _LIST,
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
}
_UNKNOWN_KEY = frozenset({"SignatureDoesNotMatch", "InvalidAccessKeyId", "ExpiredToken", "InvalidToken", "RequestTimeTooSkewed"})
_MEANT = {  # names in other tools, and what s3fs takes instead
    "region": 'client_kwargs={"region_name": "..."}',
    "region_name": 'client_kwargs={"region_name": "..."}',
    "verify": 'client_kwargs={"verify": "..."}',
    "addressing_style": 'config_kwargs={"s3": {"addressing_style": "path"}}',
    "aws_access_key_id": "key",
    "aws_secret_access_key": "secret",
    "aws_session_token": "token",
    "access_key": "key",
    "secret_key": "secret",
}


def access_refused(error: BaseException, operation: Operation, fs: Any) -> str:
    """Returns the text for a PermissionError of a store: what was refused, the permission that it needs, and what to check.

    Args:
        error: error of the client.
        operation: operation that was refused.
        fs: file system of fsspec that refused it.
    """
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    text = f"access refused to {'look it up' if operation == 'look up' else f'{operation} it'} ({reason_of(error)}). "
    if "file" in protocols:
        return f"{text}Check who owns the folder and what its mode allows"
    if "https" in protocols:
        return f'{text}The web server wants a login: --storage \'headers={{"Authorization": "..."}}\''
    check = "Check the credentials (profile, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the role) and what they may do"
    if "s3" not in protocols:
        return text + check
    code, request = _answer(error)
    if code in _UNKNOWN_KEY:
        return f"{text}The store does not accept this key. {check}"
    return f"{text}The key needs {_PERMISSIONS.get(request, _NEEDED[operation])}. {check}"


def wrong_option(error: BaseException, fs: Any) -> str:
    """Returns the text for an error that an option of the store has caused, which the option is named in; empty for any other error."""
    said = str(error)
    if isinstance(error, TypeError) and (named := re.search(r"unexpected keyword argument '(\w+)'", said)):
        nearest = difflib.get_close_matches(named[1], _parameters(type(fs)), 1)
        meant = _MEANT.get(named[1]) or (nearest[0] if nearest else "")
        advice = f"Did you mean {meant}?" if meant else "Check the options of the store (--storage, storage_options)"
        return f"the store has no option {named[1]!r}. {advice}"
    if isinstance(error, ValueError) and (endpoint := re.match(r"Invalid endpoint: (.*)", said)):
        shown = redacted(endpoint[1]) if "://" in endpoint[1] else endpoint[1].rpartition("@")[2].partition("?")[0]
        return f"the endpoint {shown!r} is no URL. Write it with its scheme, endpoint_url=http://HOST:PORT, also in AWS_ENDPOINT_URL"
    if type(error).__module__ == "botocore.exceptions" and isinstance(error, ValueError):  # a region or a style that can't be
        return f"{reason_of(error)}. Check the options of the store"
    if bucket := re.search(r'Invalid bucket name "([^"]*)"', said):
        return f"no bucket can be called {bucket[1]!r}: a name is 3 to 63 of a-z, 0-9, '-' and '.'. Check the URL"
    return ""


def mistyped_option(kind: type, options: Mapping[str, Any]) -> str:
    """Returns the text for an option whose value is not of the option's type, like `anon=ture`; empty where all are.

    Args:
        kind: class of the file system that takes the options.
        options: options of the store, as values.
    """
    parameters = _parameters(kind)
    for name, value in options.items():
        default = parameters[name].default if name in parameters else None
        if isinstance(default, bool) and not isinstance(value, bool):
            return f"the option {name} of the store is true or false"
        if type(default) is int and not isinstance(value, int):
            return f"the option {name} of the store is a whole number"
        if name.endswith("_kwargs") and value is not None and not isinstance(value, Mapping):
            return f'the option {name} of the store is JSON: {name}={{"NAME": "VALUE"}}'
    return ""


def _parameters(kind: type) -> dict[str, inspect.Parameter]:
    """Returns the parameters of a file system's constructor, with those of the classes that it comes from."""
    found: dict[str, inspect.Parameter] = {}
    for each in reversed(kind.__mro__):
        if each is not object and "__init__" in vars(each):
            found |= inspect.signature(vars(each)["__init__"]).parameters
    return found


def _answer(error: BaseException) -> tuple[str, str]:
    """Returns the code that S3 answered with and the name of the request, from the error of botocore that an error was raised from."""
    found: BaseException | None = error
    while found is not None:
        answer = getattr(found, "response", None)
        if isinstance(answer, dict):
            return str(answer.get("Error", {}).get("Code")), str(getattr(found, "operation_name", ""))
        found = found.__cause__
    return "", ""
