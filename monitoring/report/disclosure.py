"""Text from a run, made fit for every reader of the page: without secrets, without control characters, of bounded length.

The settings that a run keeps are redacted already. This module is for everything else that gets into a run folder: messages of a store
with the request that it refused, settings edited by hand, records of other versions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from shards.counting import counted

HIDDEN = "(not shown)"
_PUBLIC_OPTIONS = frozenset({"endpoint_url", "profile", "anon", "region_name", "use_ssl", "requester_pays"})
_NAME = (
    r"(?<!invalid)(?<!expired)"  # codes of stores: ExpiredToken
    r"(?:secret|token|passw(?:or)?[dt]|pass[-_ ]?phrase|pwd|(?-i:_PASS)|credential|cookie|signature|authorization"
    r"|(?<![a-z])(?:auth|sig|jwt)|(?:api|access|account|private|secret|shared|session|signing|encryption|storage|master)[-_ ]?key)"
    r"s?(?:[-_ ]?ids?)?"
    r"(?-i:(?![A-Za-z])|(?<=[a-z])(?=[A-Z]))[\w.-]*+"  # a part of a name by itself: secretAccessKey, not secretary
)
_OTHER_VALUE = r"(?<!file)(?<!path)(?<!error)(?<!exception)(?<!match)(?<!failure)"  # NoCredentialsError: what it says
_SECRET_KEY = re.compile(_NAME, re.IGNORECASE)
_FILE_KEY = re.compile(r"_?(file|path)$", re.IGNORECASE)  # where a secret lies is none
_NOT_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]")
_SECRETS = (  # in this order, because later patterns hide more
    (  # user and password of a URL; a password may hold an @ or a slash, but a port and a path with an @ are none
        re.compile(r"(?<=://)(?:(?!\[)[^\s/?#@:]*:(?!\d{1,5}(?:[/?#\"',;)\]}]|$))(?:(?!://)\S)*@|[^\s/?#]*@)"),
        "",
    ),
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s?#'\"<>]*)\?(?!\(not )[^\s'\"<>]*", re.IGNORECASE), rf"\1?{HIDDEN}"),  # signed requests
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|$)", re.DOTALL), HIDDEN),
    (
        re.compile(
            rf"((?:<|&lt;)[\w.:-]*{_NAME}(?:\s[^<>&]*)?(?:>|&gt;))(?:(?:(?!</|&lt;/).)*(?=</|&lt;/)|[^\n]*)", re.IGNORECASE | re.DOTALL
        ),
        rf"\1{HIDDEN}",
    ),
    (  # name and value: quoted ones to the quote, others to the end of the line
        re.compile(
            rf"({_NAME}{_OTHER_VALUE}\\*[\"']?\s*"
            rf"(?:(?<=[\"'])\s*,\s*(?=b?[\"'])"  # ('secret', 'value')
            rf"|(?:=>|:=|=(?!>)|:(?!=))"
            rf"(?![ \t]*(?:{re.escape(HIDDEN)}|none|null|true|false|\u2013)(?:[;,)\]}}\"']|\s*$))[ \t]*(?:\n[ \t]+)?))"
            r"""(?:b?(["'])(?:\\.|(?!\2)[^\\])*(?:\2|$|\\$)|[^\n]+)""",
            re.IGNORECASE | re.MULTILINE | re.DOTALL,
        ),
        rf"\1\2{HIDDEN}\2",
    ),
    (re.compile(r"\b(?:AKIA|ASIA|AGPA|AIDA|AROA)[A-Z0-9]{12,}\b"), HIDDEN),
    (re.compile(r"\b((?i:Bearer)\s+|(?i:Basic)\s+(?=[\w.~+/-]*(?:[0-9=]|(?<=\w)[A-Z])))[\w.~+/=-]{6,}"), rf"\1{HIDDEN}"),
)


def shown(value: object, longest: int = 300) -> str:
    """Returns a value as text for the page, not escaped yet.

    Args:
        value: value of any type.
        longest: largest number of characters; longer text is cut and ends with an ellipsis.
    """
    text = str(value)[: 4 * longest]
    text = _NOT_TEXT.sub("\N{REPLACEMENT CHARACTER}", text)
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def flattened(settings: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Yields settings as (dotted key, text). Hidden are options of stores, except a few public ones, and values of secret keys."""
    for key, value in settings.items():
        where = f"{path}{key}"
        if isinstance(value, Mapping) and value and where.count(".") < 10:
            yield from flattened(value, f"{where}.")
        else:
            yield shown(where, 120), HIDDEN if _is_secret(where, value) else shown(_text(value))


def _is_secret(where: str, value: object) -> bool:
    """Returns whether a setting is secret: by its own name or its parents', or because it is an option of a store."""
    if value in ("", None, {}, []):
        return False
    *parents, key = where.split(".")
    if key == "storage_options" and not isinstance(value, Mapping):  # edited by hand
        return True
    if "storage_options" in parents:
        return key not in _PUBLIC_OPTIONS
    return any(_SECRET_KEY.search(name) and not _FILE_KEY.search(name) for name in (*parents, key))


def _text(value: object, depth: int = 0) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)) and depth < 3:
        return ", ".join(_text(each, depth + 1) for each in value[:20]) + (", …" if len(value) > 20 else "")
    if isinstance(value, (Mapping, list, tuple)):
        return counted(len(value), "entry") if value else "none"
    if value == "":
        return "–"  # noqa: RUF001 (a dash in a table)
    return str(value)
