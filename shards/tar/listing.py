"""Finds the tars that URLs name: a folder, a glob, or braces as webdataset expands them.

Tars are sorted by name. Names are relative to the folder in front of the first brace or star of all URLs. That folder stays the same when
the list grows, so a sample keeps its id.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import braceexpand
from fsspec.utils import glob_translate

from shards.counting import counted
from shards.errors import SourceError, StoreError
from shards.local_files import TEMPORARY_PREFIX, files_below
from shards.store import Options, Store
from shards.tar.version import Info, Tar, info_of, version_of
from shards.urls import join, redacted

_MAGIC = re.compile(r"[{*?\[]")
_COMPRESSED = re.compile(r"\.(?:tgz|tbz2?|txz|tzst|tar\.(?:gz|bz2|xz|zst|zstd|lz4))$", re.IGNORECASE)
_MOST_NAMES = 1_000_000  # they take half a minute to expand
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")
_MOST_DIGITS = 18  # digits of a number in a range
_FEW = 16  # up to so many names are looked up one by one; more are found by listing their folder
_THREADS = 16
_SHOWN = 10


@dataclass(frozen=True)
class TarListing:
    """Tars, sorted by name.

    Attributes:
        url: folder that the names are relative to.
        tars: tars that were found, at least one.
        compressed: number of compressed tars among them that are left out.
    """

    url: str
    tars: tuple[Tar, ...]
    compressed: int


def list_tars(urls: Sequence[str], options: Options | None = None) -> TarListing:
    """Finds the tars that URLs name.

    Args:
        urls: URLs of folders, globs, brace lists or single tars in one store.
        options: fsspec options of the store.

    Raises:
        SourceError: the URLs name no tar, one that they name is missing, or they can't be used.
        StoreError: the store can't be read.
    """
    places = [absolute(url) for url in urls]
    folder = _common(places)
    store = Store(folder, options)
    store.fs.invalidate_cache()
    found: dict[str, Info] = {}
    for place in places:
        found.update(_find(store, place, folder))
    unsized = [name for name, info in found.items() if info.get("size") is None]  # web servers list names alone
    found.update(_named(store, unsized))
    compressed = sum(1 for name in found if _COMPRESSED.search(name))
    tars = sorted(Tar(name, int(info["size"] or 0), version_of(info)) for name, info in found.items() if name.lower().endswith(".tar"))
    shown = " ".join(redacted(url) for url in urls)
    if not tars and compressed:
        raise SourceError(
            f"{shown}: {counted(compressed, 'compressed tar')} and no plain one. Samples are read from their place in the file, "
            "which compression hides, and pictures hardly shrink: unpack them (gunzip, unzstd, ...) and index the .tar files"
        )
    if not tars:
        raise SourceError(f"{shown}: no .tar is there. Name the folder that holds the shards, or the shards: shard-{{000000..000099}}.tar")
    odd = next((tar.name for tar in tars if not tar.name.isprintable() or {"", ".", ".."} & set(tar.name.split("/"))), None)
    if odd is not None:
        raise SourceError(f"{shown}: the tar {odd!r} has a name that a manifest can't hold. Rename it")
    return TarListing(folder, tuple(tars), compressed)


def absolute(url: str) -> str:
    """Returns the URL, or the absolute path of a local one.

    Raises:
        SourceError: the URL runs a program, chains file systems, or holds credentials.
    """
    if url.startswith("pipe:") or "::" in url:
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
    return f"{scheme}://{rest.rstrip('/')}"


def _is_pattern(place: str) -> bool:
    # not Path.exists, which raises for a long list in braces
    return bool(_MAGIC.search(place)) and not ("://" not in place and os.path.exists(place))  # noqa: PTH110


def _base(place: str) -> str:
    """Returns the folder in front of the pattern or name that a URL ends in."""
    if _is_pattern(place):
        return _MAGIC.split(place, maxsplit=1)[0].rpartition("/")[0]
    return place.rpartition("/")[0] if _is_tar(place) else place


def _is_tar(place: str) -> bool:
    return place.lower().endswith(".tar") or bool(_COMPRESSED.search(place))


def _common(places: Sequence[str]) -> str:
    parts = [_base(place).split("/") for place in places]
    shared = [names[0] for names in itertools.takewhile(lambda names: len(set(names)) == 1, zip(*parts, strict=False))]
    remote = "://" in places[0]
    if len(shared) < (3 if remote else 2):
        shown = " ".join(redacted(place) for place in places)
        raise SourceError(f"{shown}: no folder or bucket in common, which a data set needs. Index them one by one and train on several")
    return "/".join(shared)


def _find(store: Store, place: str, folder: str) -> dict[str, Info]:
    """Returns everything that one URL names: name -> description of the object by its store."""
    if not _is_pattern(place):
        if _is_tar(place) and (info := info_of(store, place[len(folder) + 1 :])) is not None:
            return {place[len(folder) + 1 :]: info}
        found = _below(store, place[len(folder) + 1 :], deep=True)
        if not found:
            raise SourceError(f"{redacted(place)}: nothing is there. Check the bucket, the folder and the spelling")
        return found
    ranges = _RANGE.findall(place)
    if any(max(len(first), len(last)) > _MOST_DIGITS or abs(int(last) - int(first)) > _MOST_NAMES for first, last in ranges):
        raise _too_many(place)
    try:
        names = list(itertools.islice(braceexpand.braceexpand(place), _MOST_NAMES + 1)) if "{" in place else [place]
    except ValueError as error:
        raise SourceError(f"{redacted(place)}: {error}. Write ranges as {{000000..000099}} and lists as {{train,val}}") from error
    if len(names) > _MOST_NAMES:
        raise _too_many(place)
    globs = [name for name in names if re.search(r"[*?\[]", name)]
    found = {}
    for pattern in globs:
        found.update(_matching(store, pattern[len(folder) + 1 :]))
    exact = [name[len(folder) + 1 :] for name in names if name not in set(globs)]
    other = [name for name in exact if not _is_tar(name)]
    if other:
        raise SourceError(f"{redacted(join(folder, other[0]))}: not the name of a .tar")
    return found | _named(store, exact)


def _too_many(place: str) -> SourceError:
    return SourceError(f"{redacted(place)}: names more than {counted(_MOST_NAMES, 'shard')}. Name the folder, or a glob")


def _named(store: Store, names: Sequence[str]) -> dict[str, Info]:
    """Looks up objects that are named one by one; every one must exist."""
    found: dict[str, Info] = {}
    for parent, count in Counter(name.rpartition("/")[0] for name in names).items():
        if count > _FEW:
            try:
                found.update((name, info) for name, info in _below(store, parent, deep=False).items() if info.get("size") is not None)
            except StoreError:
                continue  # some stores let objects be read but not listed
    unknown = [name for name in names if name not in found]
    with ThreadPoolExecutor(_THREADS) as pool:
        found.update((name, info) for name, info in zip(unknown, pool.map(lambda name: info_of(store, name), unknown), strict=True) if info)
    missing = sorted(name for name in names if name not in found)
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        raise SourceError(f"{store.describe()}: {len(missing):,} of the {counted(len(names), 'shard')} named can't be found: {shown}")
    return {name: found[name] for name in names}


def _below(store: Store, folder: str, deep: bool) -> dict[str, Info]:
    if store.local is not None:
        return dict(_local(store, folder, None if deep else 1))
    with store.as_store_errors(folder):
        try:
            found = store.fs.find(store.path(folder), maxdepth=None if deep else 1, detail=True)
        except FileNotFoundError:
            return {}
    return dict(_files(store, found))


def _matching(store: Store, pattern: str) -> dict[str, Info]:
    try:
        if store.local is not None:
            start = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0]
            depth = None if "**" in pattern else pattern.count("/", len(start) + bool(start)) + 1
            matches = re.compile(glob_translate(pattern)).match
            return {name: info for name, info in _local(store, start, depth) if matches(name)}
        with store.as_store_errors(pattern):
            return dict(_files(store, store.fs.glob(store.path(pattern), detail=True)))
    except (ValueError, re.error) as error:
        raise SourceError(f"{store.describe(pattern)}: not a pattern: {error}") from error


def _local(store: Store, folder: str, depth: int | None) -> Iterator[tuple[str, Info]]:
    try:
        for name, status in files_below(Path(store.root), folder, depth, strict=True):
            if name.rpartition("/")[2].startswith(TEMPORARY_PREFIX):
                continue
            if status is not None:
                yield name, {"type": "file", "size": status.st_size, "mtime": status.st_mtime}
            elif name.lower().endswith(".tar"):
                raise SourceError(f"{store.describe(name)}: a link that leads nowhere. Mend or remove it")
    except OSError as error:
        raise SourceError(f"{error.filename or store.describe(folder)}: can't be listed: {error.strerror or error}") from error


def _files(store: Store, found: Mapping[str, Info]) -> Iterator[tuple[str, Info]]:
    start = len(store.root.rstrip("/")) + 1
    for path, info in found.items():
        if info["type"] != "directory" and not path.rpartition("/")[2].startswith(TEMPORARY_PREFIX):
            yield path[start:], info
