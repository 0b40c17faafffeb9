"""URLs of data sets and the options of their stores: how they are taken apart, read from a command line, and shown without secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from fsspec import available_protocols

from shards.errors import ShardError, StoreError

SHOWN_OPTIONS = frozenset({"endpoint_url", "profile", "anon", "region_name", "use_ssl", "requester_pays"})
"""Options of a store that are no secrets."""

_TEXT_OPTIONS = frozenset({"key", "secret", "token", "username", "password", "profile", "account_name", "account_key"})


def join(url: str, name: str) -> str:
    """Returns `url/name`."""
    return f"{url.rstrip('/')}/{name}"


def split(url: str) -> tuple[str, str]:
    """Splits the URL of one object into (folder, name)."""
    folder, slash, name = url.rpartition("/")
    return (folder or "/", name) if slash else (".", url)


def scheme(url: str) -> str:
    """Returns the scheme of a URL, `s3` of `s3://bucket` and of the `s3:/bucket` that path libraries make of it; an empty text for a path.

    With one slash only a scheme that fsspec knows is one, because the name of a folder may end with a colon.
    """
    found = re.match(r"([A-Za-z][\w+.-]+):/(/?)", url)
    return found[1] if found and (found[2] or found[1].lower() in available_protocols()) else ""


def refuse_query(url: str) -> None:
    """Refuses the URL of a web server with a query, because a signed one is a credential that a manifest must not hold.

    Raises:
        StoreError: the URL has a query.
    """
    if url.startswith(("http://", "https://")) and "?" in url:
        raise StoreError(
            f"{redacted(url)}: URLs with a query (?...) are not read. A signed one opens one object for a while, and a data set is read by "
            "its folder, again and again. Copy the tars to a disk or a bucket, or give the store's own URL (s3://...) and credentials"
        )


def redacted(url: str) -> str:
    """Returns a URL without the user, the password and the query that may be in it, fit for messages and files."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    host, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def reason_of(error: BaseException) -> str:
    """Returns an error's type and text on one line, with every URL in the text redacted."""
    text = re.sub(r"\w+://[^\s'\"<>]+", lambda url: redacted(url[0]), " ".join(str(error).split()))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def with_literal_dollars(text: str) -> str:
    """Doubles every `$` of a path or URL that a setting of launch/pretrain.py would read as the start of a variable or as a doubled `$`."""
    return re.sub(r"\$(?=[A-Za-z_{$])", "$$", text)


def parse_options(pairs: Sequence[str]) -> dict[str, str]:
    """Reads the KEY=VALUE pairs of `--storage`.

    Raises:
        ShardError: a pair has no key or no '='. The message does not repeat the pair, because it may hold a secret.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ShardError("a --storage option is KEY=VALUE, for example endpoint_url=http://127.0.0.1:8333")
        found[key] = value
    return found


def typed_option(key: str, value: Any) -> Any:
    """Returns an option of a store as the type that its text spells: `true`, `4`, `{"json": 1}`; names and secrets stay text.

    Raises:
        StoreError: the text starts like JSON but is not JSON.
    """
    if not isinstance(value, str) or key in _TEXT_OPTIONS:
        return value
    if value.lower() in {"true", "false"}:
        return value.lower() == "true"
    if value.isascii() and value.isdigit():
        return int(value)
    if not value.startswith(("{", "[")):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise StoreError(f"the option {key} of the store starts like JSON but is not JSON") from None
