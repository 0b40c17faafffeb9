"""Finds the tars that URLs name: a folder, a glob, braces as webdataset expands them, or a list of these in a text file.

Tars are sorted by name. Names are relative to the folder in front of the first brace or star of all URLs. That folder stays the same when
the list grows, so a sample keeps its id.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import braceexpand
from fsspec.utils import glob_translate

from shards.counting import counted
from shards.errors import SourceError, StoreError
from shards.layout import left_out_part, shown_left_out
from shards.local_files import TEMPORARY_PREFIX, files_below
from shards.remote_listing import find
from shards.store import Info, Options, Store
from shards.tar.places import Place, is_compressed, is_tar, places_of
from shards.tar.version import Tar, info_of, version_of
from shards.urls import join, redacted
from shards.web import NO_RANGES

_GLOB = re.compile(r"[*?\[]")
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
        hidden: places of hidden and tool files and folders whose tars are left out.
        asked: parts of the URLs behind the folder.
    """

    url: str
    tars: tuple[Tar, ...]
    compressed: int
    hidden: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()


def list_tars(urls: Sequence[str], options: Options | None = None) -> TarListing:
    """Finds the tars that URLs name.

    Args:
        urls: URLs of folders, globs, brace lists, single tars, or text files with one of these in each line; all tars in one store.
        options: fsspec options of the store.

    Raises:
        SourceError: the URLs name no tar, one that they name is missing, or they can't be used.
        StoreError: the store can't be read.
    """
    places = places_of(urls, options)
    folder = _common(places)
    store = Store(folder, options)
    store.fs.invalidate_cache()
    found: dict[str, Info] = {}
    named: list[str] = []
    for place in places:
        if place.pattern:
            matched, exact = _expand(store, place, folder)
            found.update(matched)
            named += exact
        elif is_tar(place.literal) and len(places) > _FEW:
            named.append(place.literal[len(folder) + 1 :])
        else:
            found.update(_find(store, place, folder))
    found.update(_named(store, list(dict.fromkeys(named))))
    asked = tuple(place.url[len(folder) :] for place in places)
    hidden = _hidden(found, asked)
    found = {name: info for name, info in found.items() if left_out_part(name) not in hidden}
    unsized = [name for name, info in found.items() if info.get("size") is None]  # web servers list names alone
    found.update(_named(store, unsized))
    _refuse_unfit(store, found)
    compressed = sum(is_compressed(name) for name in found)
    tars = sorted(Tar(name, int(info["size"] or 0), version_of(info)) for name, info in found.items() if name.lower().endswith(".tar"))
    shown = " ".join(redacted(url) for url in urls)
    if not tars and compressed:
        raise SourceError(
            f"{shown}: {counted(compressed, 'compressed tar')} and no plain one. Samples are read from their place in the file, "
            "which compression hides, and pictures hardly shrink: unpack them (gunzip, unzstd, ...) and index the .tar files"
        )
    if not tars:
        there = f" ({shown_left_out(hidden)})" if hidden else ""
        raise SourceError(
            f"{shown}: no .tar is there{there}. Name the folder that holds the shards, or the shards: shard-{{000000..000099}}.tar"
        )
    odd = next((tar.name for tar in tars if not tar.name.isprintable() or {"", ".", ".."} & set(tar.name.split("/"))), None)
    if odd is not None:
        raise SourceError(f"{shown}: the tar {odd!r} has a name that a manifest can't hold. Rename it")
    return TarListing(folder, tuple(tars), compressed, tuple(sorted(hidden)), asked)


def _hidden(names: Iterable[str], asked: Sequence[str]) -> set[str]:
    """Returns the hidden and tool parts of the names of tars, except those that the URLs themselves name."""
    parts = {left_out_part(name) for name in names if is_tar(name)} - {""}
    return {part for part in parts if not any(part.rpartition("/")[2] in place for place in asked)}


def _common(places: Sequence[Place]) -> str:
    parts = [place.folder.split("/") for place in places]
    shared = [names[0] for names in itertools.takewhile(lambda names: len(set(names)) == 1, zip(*parts, strict=False))]
    remote = "://" in places[0].url
    if len(shared) < (3 if remote else 2):
        shown = " ".join(redacted(place.url) for place in places[:_SHOWN])
        raise SourceError(f"{shown}: no folder or bucket in common, which a data set needs. Index them one by one and train on several")
    return "/".join(shared)


def _find(store: Store, place: Place, folder: str) -> dict[str, Info]:
    """Returns everything below a folder, or a single tar: name -> description of the object by its store."""
    name = place.literal[len(folder) + 1 :]
    if is_tar(place.literal) and (info := info_of(store, name)) is not None:
        return {name: info}
    found = _below(store, name, depth=None)
    if not found:
        _refuse_dead_link(store, name)
        raise SourceError(f"{redacted(place.url)}: nothing is there. Check the bucket, the folder and the spelling")
    return found


def _expand(store: Store, place: Place, folder: str) -> tuple[dict[str, Info], list[str]]:
    """Returns what the globs of a pattern match, and the names of the tars that its braces alone name."""
    ranges = _RANGE.findall(place.pattern)
    if any(max(len(first), len(last)) > _MOST_DIGITS or abs(int(last) - int(first)) > _MOST_NAMES for first, last in ranges):
        raise _too_many(place.url)
    try:
        patterns = (
            list(itertools.islice(braceexpand.braceexpand(place.pattern), _MOST_NAMES + 1)) if "{" in place.pattern else [place.pattern]
        )
    except ValueError as error:
        raise SourceError(f"{redacted(place.url)}: {error}. Write ranges as {{000000..000099}} and lists as {{train,val}}") from error
    if len(patterns) > _MOST_NAMES:
        raise _too_many(place.url)
    start = place.literal[len(folder) + 1 :]
    found: dict[str, Info] = {}
    exact: list[str] = []
    for pattern in patterns:
        if _GLOB.search(pattern):
            found.update(_matching(store, start, pattern))
        elif not is_tar(pattern):
            raise SourceError(f"{redacted(join(place.literal, pattern))}: not the name of a .tar")
        else:
            exact.append(join(start, pattern) if start else pattern)
    return found, exact


def _too_many(place: str) -> SourceError:
    return SourceError(f"{redacted(place)}: names more than {counted(_MOST_NAMES, 'shard')}. Name the folder, or a glob")


def _named(store: Store, names: Sequence[str]) -> dict[str, Info]:
    """Looks up objects that are named one by one; every one must exist."""
    found: dict[str, Info] = {}
    for parent, count in Counter(name.rpartition("/")[0] for name in names).items():
        if count > _FEW:
            try:
                found.update((name, info) for name, info in _below(store, parent, depth=1).items() if info.get("size") is not None)
            except StoreError:
                continue  # some stores let objects be read but not listed
    unknown = [name for name in names if name not in found]
    with ThreadPoolExecutor(_THREADS) as pool:
        found.update((name, info) for name, info in zip(unknown, pool.map(lambda name: info_of(store, name), unknown), strict=True) if info)
    missing = sorted(name for name in names if name not in found)
    if missing:
        _refuse_dead_link(store, *missing)
        shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        raise SourceError(f"{store.describe()}: {len(missing):,} of the {counted(len(names), 'shard')} named can't be found: {shown}")
    return {name: found[name] for name in names}


def _refuse_unfit(store: Store, found: Mapping[str, Info]) -> None:
    """Raises SourceError for the first tar of a web server that can't be read by ranges."""
    for name, info in found.items():
        if not name.lower().endswith(".tar") or "ranges" not in info:
            continue
        shown = store.describe(name)
        if info["mimetype"] == "text/html":
            raise SourceError(f"{shown}: the web server answers with a page (text/html), not with a tar. Does it want a login?")
        if not info["ranges"]:
            raise SourceError(f"{shown}: {NO_RANGES}")
        if info["size"] is None:
            raise SourceError(f"{shown}: the web server tells no length. Serve the tars with another, or copy them to a disk or a bucket")


def _below(store: Store, folder: str, depth: int | None, prefix: str = "") -> dict[str, Info]:
    """Returns the files of a folder and, down to a number of levels, of the folders in it; None takes all levels.

    Args:
        store: store of the listing.
        folder: name of the folder in the store.
        depth: levels of folders, at least 1.
        prefix: beginning of the names that are wanted; others may be missing.
    """
    if store.local is not None:
        return dict(_local(store, folder, depth))
    found = store.attempt(folder, lambda: find(store.fs, store.path(folder), depth, prefix), "list")
    return dict(_files(store, found))


def _matching(store: Store, folder: str, pattern: str) -> dict[str, Info]:
    """Returns the files whose names below a folder match a glob."""
    plain, _, prefix = _GLOB.split(pattern, maxsplit=1)[0].rpartition("/")
    depth = None if "**" in pattern else pattern.count("/", len(plain) + bool(plain)) + 1
    start = "/".join(part for part in (folder, plain) if part)
    try:
        matches = re.compile(glob_translate(pattern)).match
    except (ValueError, re.error) as error:
        raise SourceError(f"{store.describe(join(folder, pattern))}: not a pattern: {error}") from error
    skipped = len(folder) + bool(folder)
    return {name: info for name, info in _below(store, start, depth, prefix).items() if matches(name[skipped:])}


def _local(store: Store, folder: str, depth: int | None) -> Iterator[tuple[str, Info]]:
    try:
        for name, status in files_below(Path(store.root), folder, depth, strict=True, lenient=left_out_part):
            if name.rpartition("/")[2].startswith(TEMPORARY_PREFIX):
                continue
            if status is not None:
                yield name, {"type": "file", "size": status.st_size, "mtime": status.st_mtime}
            elif (name.lower().endswith(".tar") or "." not in name.rpartition("/")[2]) and not left_out_part(
                name
            ):  # maybe a folder of tars
                _refuse_dead_link(store, name)
    except OSError as error:
        raise SourceError(f"{error.filename or store.describe(folder)}: can't be listed: {error.strerror or error}") from error


def _refuse_dead_link(store: Store, *missing: str) -> None:
    dead = next((name for name in missing if store.local is not None and Path(store.path(name)).is_symlink()), None)
    if dead is not None:
        raise SourceError(f"{store.describe(dead)}: a link that leads nowhere. Mend or remove it")


def _files(store: Store, found: Mapping[str, Info]) -> Iterator[tuple[str, Info]]:
    start = len(store.root.rstrip("/")) + 1
    for path, info in found.items():
        if info.get("type") != "directory" and not path.rpartition("/")[2].startswith(TEMPORARY_PREFIX):
            yield path[start:], info
