"""Sources of pictures, one file each: a folder tree, a tar, or a tar of tars as ILSVRC2012 comes; on a disk or anywhere fsspec reads.

In: a URL. Out: a `Listing`, the pictures sorted by name, each with its label and the range of bytes that holds it. The listing does not
depend on the order in which a file system names its files, and any process can read any picture of it alone (`reading.read_pictures`).

A source's file ends in `SOURCE`, an object with the methods of `Source`. The files are found by themselves: a new source is one file here
and nothing else (docs/extending.md has one). Public names: `open_source`, `Source`, `Listing`, `Entry`, `LabelRule`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import Protocol

from shards.build.sources.listing import Entry, LabelRule, Listing, ListingBuilder
from shards.errors import SourceError
from shards.store import Options, Store
from shards.urls import redacted, split

__all__ = ["Entry", "LabelRule", "Listing", "Source", "open_source"]

_LAST = ("folder", "tar")  # they accept every folder and every object


class Source(Protocol):
    """One kind of source. Both methods get the folder of a URL as a store, and the name of the object in it that the URL means.

    The name is empty where the URL is a folder itself. Nothing but names, lengths and places of pictures is collected: `read_pictures`
    reads the bytes later, in other processes, with retries.
    """

    def recognises(self, store: Store, name: str, /) -> bool:
        """Returns whether this source reads the folder or object. The answer must be cheap, because every source is asked in turn."""
        ...

    def collect(self, store: Store, name: str, builder: ListingBuilder, /) -> None:
        """Adds every picture to the listing.

        Raises:
            SourceError: the source is damaged or incomplete.
            StoreError: the store can't be read.
        """
        ...


def _find() -> tuple[Source, ...]:
    names = sorted((module.name for module in pkgutil.iter_modules(__path__)), key=lambda name: (name in _LAST, name))
    found = (getattr(importlib.import_module(f"{__name__}.{name}"), "SOURCE", None) for name in names)
    return tuple(source for source in found if source is not None)


SOURCES: tuple[Source, ...] = _find()
"""Sources in the order in which they are asked: by the names of their files, but `folder` and `tar` last."""


def open_source(
    url: str,
    options: Options | None = None,
    include: Sequence[str] = (),
    labels: LabelRule = "folder",
    label_pattern: str | None = None,
    split: str | None = None,
    needs_labels: bool = False,
) -> Listing:
    """Lists the pictures of a source.

    Args:
        url: URL or path of a folder or of one object, such as an uncompressed tar.
        options: fsspec options of the store.
        include: patterns of fnmatch on names ('*' crosses '/'); a picture that matches none is left out. Without patterns, all are in.
        needs_labels: pictures without labels are of no use to the caller, so that no error advises to leave them out.
        labels: `folder` takes the first folder of the name, where every picture lies in one and there are at least two of them, and
            no labels otherwise; `none` takes none.
        label_pattern: regular expression with one group, searched in each name; the group is the label. It goes before `labels`.
        split: split to take (`train`, `val`, `test`, ...), whose classes are the folders right in it, or else the first folders; `all`
            mixes all of them. None refuses a source that holds several, unless the pattern labels each one differently.

    Returns:
        Listing, never empty.

    Raises:
        SourceError: the source is missing, empty, compressed or cut short, holds splits or WebDataset shards, or a name gives no label.
        StoreError: the store can't be read.
    """
    builder = ListingBuilder(redacted(url), include, needs_labels)
    store, name = _locate(url, options)
    source = next(source for source in SOURCES if source.recognises(store, name))
    source.collect(store, name, builder)
    return builder.finish(store.url, labels, label_pattern, split)


def _locate(url: str, options: Options | None) -> tuple[Store, str]:
    """Returns the store of a folder and an empty name, or the store of the folder that holds an object and the object's name."""
    store = Store(url, options)
    if store.local is not None and not store.local.exists():
        raise SourceError(f"{url}: there is no such file or folder")
    if store.local.is_dir() if store.local is not None else store.size("") is None:
        return store, ""
    folder, name = split(store.url)
    return Store(folder, options), name
