"""Folder trees of picture files, on a disk or in a store.

Links of a local tree are followed, because subsets of ImageNet are often made of links. A store is listed folder by folder with several
requests at once, so that memory holds the listings of a few folders besides the result. A folder that holds tars and no pictures (as
ImageNet-21k is distributed) is read as a tar of tars. Folders that are hidden or of a tool are not entered.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from shards.build.sources import tar
from shards.build.sources.listing import ListingBuilder, extension_of
from shards.dataset import manifest
from shards.errors import SourceError
from shards.layout import split_in
from shards.local_files import TEMPORARY_PREFIX
from shards.store import Store

_LIST_THREADS = 16
_SMALL_NUMBER = 1000
_NUMBERED = re.compile(r"(.*?)(\d{4,})(?:-of-\d+)?\.tar", re.IGNORECASE)


class FolderSource:
    """Any folder."""

    def recognises(self, _store: Store, name: str) -> bool:
        """Accepts every folder."""
        return not name

    def collect(self, store: Store, _name: str, builder: ListingBuilder) -> None:
        """Adds every file below the folder to the listing.

        Raises:
            SourceError: folders link to one another in a circle, a tar is broken, or the folder is a data set of shards.
            StoreError: a folder can't be listed.
        """
        _collect(store, builder)


def _collect(store: Store, builder: ListingBuilder) -> None:
    tars: list[str] = []
    has_manifest = False
    for name, size in _local(store.local, builder.leaves_out) if store.local else _remote(store, builder.leaves_out):
        if extension_of(name) == "tar":
            if not builder.leaves_out(name):
                tars.append(name)
        elif not posixpath.basename(name).startswith(TEMPORARY_PREFIX):
            builder.add(name, size)
            has_manifest |= name == manifest.NAME
    if tars and has_manifest:  # its tars would be read as pictures, and their labels be lost
        raise SourceError(f"{builder.source}: is a data set of shards already. Build from the pictures that it was made of")
    has_pictures = builder.pictures > 0
    if not has_pictures and _numbered(tars):
        builder.refuse_classes(
            f"{builder.source}: holds tars that are numbered as shards are ({min(tars)}, ...), not named after classes. Make a data set of "
            f"them as they are: {builder.index_command}{builder.unlabelled}"
            "; or, if each tar is a class: --label-pattern '^([^/]+)/'"
        )
    for name in sorted(tars):
        if has_pictures:
            builder.pass_over(".tar (not opened, since there are pictures beside it)")
        else:
            tar.collect(store, name, builder, prefix=name[: -len(".tar")] + "/")


def _numbered(tars: Sequence[str]) -> bool:
    """Returns whether tars are numbered as shards are, from a small number on and padded with zeros: `shard-000000.tar`, `00000.tar`, or
    `train-00000-of-01024.tar`. Numbers of ImageNet's classes are large, and tars in folders of classes may be numbered."""
    places = (posixpath.split(name) for name in tars)
    names = [base for folder, base in places if not folder or split_in(posixpath.basename(folder)) is not None]
    found = [match for match in map(_NUMBERED.fullmatch, names) if match is not None]
    alike = len(found) == len(names) > 1 and len({match[1] for match in found}) == 1
    return alike and min(int(match[2]) for match in found) < _SMALL_NUMBER


def _local(root: Path, leaves_out: Callable[[str], bool]) -> Iterator[tuple[str, int]]:
    # device and inode identify a folder; one that a link in it leads back to would never end
    stack: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while stack:
        folder, above = stack.pop()
        try:
            status = (root / folder).stat()
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                raise SourceError(f"{root / folder}: this link leads back to a folder that holds it. Remove the link")
            with os.scandir(root / folder) as found:
                for entry in found:
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir():
                        if not leaves_out(name):
                            stack.append((name, above | {identity}))
                    elif entry.is_file():
                        yield name, entry.stat().st_size
                    elif entry.is_symlink():
                        yield name, 0  # a link that leads nowhere: the build rejects it as empty, by name
        except OSError as error:
            raise SourceError(f"{error.filename or root / folder}: can't be listed: {error.strerror or error}") from error


def _remote(store: Store, leaves_out: Callable[[str], bool]) -> Iterator[tuple[str, int]]:
    start = len(store.root.rstrip("/")) + 1
    with ThreadPoolExecutor(_LIST_THREADS) as pool:
        seen = {store.root}
        waiting: set[Future[list[Mapping[str, Any]]]] = {pool.submit(_list_folder, store, store.root)}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for listed in done:
                for info in listed.result():
                    path = str(info["name"])
                    if info["type"] == "directory":
                        if path.rstrip("/") not in seen and not leaves_out(path.rstrip("/")[start:]):
                            seen.add(path.rstrip("/"))
                            waiting.add(pool.submit(_list_folder, store, path.rstrip("/")))
                    elif not path.endswith("/"):
                        yield path[start:], int(info["size"] or 0)


def _list_folder(store: Store, path: str) -> list[Mapping[str, Any]]:
    found = store.entries(path[len(store.root.rstrip("/")) + 1 :])
    return [info for info in found if info["name"].rstrip("/") != path]


SOURCE = FolderSource()
