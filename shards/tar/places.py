"""Places that URLs of tars name: a folder, a tar, a pattern below a folder, or a text file with one of these in each line.

A name is taken literally where there is such a folder or object, whatever characters are in it: `run[1]/*.tar` means the tars in the folder
`run[1]`, if it exists. A pattern begins at the first part of a URL that holds one of `{*?[` and does not exist.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.counting import counted
from shards.errors import SourceError, StoreError
from shards.store import Options, Store
from shards.urls import join, redacted, refuse_query, split

_MAGIC = re.compile(r"[{*?\[]")
_COMPRESSED = re.compile(r"\.(?:tgz|tbz2?|txz|tzst|tar\.(?:gz|bz2|xz|zst|zstd|lz4))$", re.IGNORECASE)
_LIST = re.compile(r"\.(?:txt|lst|list)$", re.IGNORECASE)
_ADDRESS = re.compile(r"\[[0-9a-fA-F:.]+\](?::\d+)?")  # of IPv6
_LONGEST_LIST = 64 << 20  # bytes
_LONGEST_NAME = 1024  # bytes of a key of S3; a longer text is a pattern


@dataclass(frozen=True)
class Place:
    """One place: the URL of a folder or a tar that is taken literally, and a pattern below it, empty where there is none."""

    literal: str
    pattern: str

    @property
    def url(self) -> str:
        """URL of the whole, for messages."""
        return join(self.literal, self.pattern) if self.pattern else self.literal

    @property
    def folder(self) -> str:
        """URL of the folder that the tars lie below."""
        return self.literal.rpartition("/")[0] if not self.pattern and is_tar(self.literal) else self.literal


def places_of(urls: Sequence[str], options: Options | None) -> list[Place]:
    """Takes URLs apart and reads the lists among them.

    Args:
        urls: URLs of folders, patterns, single tars, or text files with one of these in each line.
        options: fsspec options of the store.

    Raises:
        SourceError: a URL can't be used, or a list can't be read.
        StoreError: the store can't be read.
    """
    found: list[Place] = []
    for url in map(absolute, urls):
        place = _place(url, options)
        lines = None if place.pattern or not _LIST.search(url) else _read_list(url, options)
        found += [place] if lines is None else [_place(line, options) for line in lines]
    return found


def absolute(url: str) -> str:
    """Returns the URL, or the absolute path of a local one.

    Raises:
        SourceError: the URL runs a program, chains file systems, or holds credentials.
    """
    if url.startswith("pipe:") or "::" in url:
        several = url.split("::")
        if all(is_tar(each) for each in several) and not url.startswith("pipe:"):
            raise SourceError(f"{redacted(url)}: give each tar as a word of its own: {index_command(url)}")
        raise SourceError(f"{redacted(url)}: URLs that run programs or chain file systems are not opened. Give the plain URL: s3://...")
    scheme, separator, rest = url.partition("://")
    if not url or (separator and not rest.strip("/")):
        raise SourceError(f"{url!r}: names no folder. Give something like s3://bucket/train")
    if not separator:
        try:
            return os.path.abspath(Path(url).expanduser())  # noqa: PTH100 - links stay as they were named
        except RuntimeError as error:
            raise SourceError(f"{url}: no such user's folder. Give the whole path") from error
    if "@" in rest.partition("/")[0]:
        raise SourceError(f"{redacted(url)}: credentials in the URL would be written into the manifest. Give them with --storage KEY=VALUE")
    refuse_query(url)
    return f"{scheme}://{rest.rstrip('/')}"


def is_tar(url: str) -> bool:
    """Returns whether a URL ends as the name of a tar, plain or compressed."""
    return url.lower().endswith(".tar") or is_compressed(url)


def is_compressed(name: str) -> bool:
    """Returns whether a name is that of a compressed tar."""
    return bool(_COMPRESSED.search(name))


def index_command(url: str) -> str:
    """Returns the command that indexes the tars of a URL, quoted for the shell; empty where the URL does not look like tars or a list."""
    words = url.split("::") if "::" in url else [url]
    if url.startswith("pipe:") or not all(is_tar(word) or _LIST.search(word) or _MAGIC.search(word) for word in words):
        return ""
    plain = [word if word.startswith("s3://") and "@" not in word else redacted(word) for word in words]  # a `?` of S3 is no query
    return command_to_index(*plain)


def command_to_index(*urls: str) -> str:
    """Returns the command that indexes tars, quoted for the shell.

    Indexes can't go beside tars behind a web server, so that the command for these names a folder with `--to`.

    Args:
        urls: URLs of the tars, fit to be shown.
    """
    elsewhere = ["--to", "FOLDER"] if any(url.startswith(("http://", "https://")) for url in urls) else []
    return shlex.join(["python", "-m", "shards", "index", *urls, *elsewhere])


def _place(url: str, options: Options | None) -> Place:
    parts = url.split("/")
    if "://" in url and _MAGIC.search(parts[2]) and not _ADDRESS.fullmatch(parts[2]):
        raise SourceError(f"{redacted(url)}: a pattern has no folder or bucket in common, which a data set needs. Name one bucket")
    for at in range(3 if "://" in url else 1, len(parts)):
        if _MAGIC.search(parts[at]) and not _exists("/".join(parts[: at + 1]), options):
            return Place("/".join(parts[:at]), "/".join(parts[at:]))
    return Place(url, "")


def _exists(url: str, options: Options | None) -> bool:
    """Returns whether a folder or an object has this very name; False where the store does not say."""
    if "://" not in url:
        return os.path.exists(url)  # noqa: PTH110 - not Path.exists, which raises for a long list in braces
    folder, name = split(url)
    if len(url) > _LONGEST_NAME:
        return False
    try:
        info = Store(folder, options).info(name)
    except StoreError as error:
        told = getattr(error.__cause__, "status", 0)  # of a web server that does not take these characters
        if isinstance(error.__cause__, PermissionError) or 400 <= told < 500:
            return False
        raise
    # some web servers answer any name with a page
    return info is not None and not (is_tar(name) and info.get("mimetype") == "text/html")


def _read_list(url: str, options: Options | None) -> Iterator[str] | None:
    """Returns the URLs in the lines of a text file; None where there is no such file."""
    folder, name = split(url)
    store = Store(folder, options)
    size = store.size(name)
    if size is None:
        return None
    if size > _LONGEST_LIST:
        raise SourceError(f"{store.describe(name)}: {counted(size, 'byte')}, too long for a list of tars. Name their folder, or a pattern")
    try:
        lines = [line.strip() for line in store.read(name).decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise SourceError(f"{store.describe(name)}: not a list of tars, because it is no text: {error}") from error
    named = [line for line in lines if line and not line.startswith("#")]
    if not named:
        raise SourceError(f"{store.describe(name)}: an empty list. Write one tar, folder or pattern in each line")
    plain = ("/", "~")
    return (absolute(line if "://" in line or "::" in line or line.startswith(plain) else join(folder, line)) for line in named)
