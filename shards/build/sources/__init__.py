"""Where pictures come from: a folder tree, a tar, or a tar of tars as ILSVRC2012 is handed out; on a disk or anywhere fsspec can read.

In: a URL. Out: a `Listing`, the pictures sorted by name, each with its label and the byte range that holds it, so that any process can read
any picture by itself (`read.PictureReader`) and the listing does not depend on the order in which a file system names its files.
"""

from __future__ import annotations

from collections.abc import Sequence

from shards.build.sources import folder, tar
from shards.build.sources.listing import Entry, LabelRule, Listing, ListingBuilder
from shards.errors import SourceError, StoreError
from shards.store import Options, Store
from shards.urls import redacted, split

__all__ = ["Entry", "LabelRule", "Listing", "open_source"]


def open_source(
    url: str,
    options: Options | None = None,
    include: Sequence[str] = (),
    labels: LabelRule = "folder",
    label_pattern: str | None = None,
) -> Listing:
    """Lists the pictures of a source.

    Args:
        url: a folder or an uncompressed tar, local or remote.
        options: fsspec options of the store it is in.
        include: patterns of fnmatch on names ('*' crosses '/'); a picture that matches none is left out. None given: all are in.
        labels: `folder` takes the first folder of the name, where every picture lies in one and there are at least two of them, and
            no labels otherwise; `none` takes none.
        label_pattern: a regular expression with one group, searched in each name; the group is the label. Goes before `labels`.

    Returns:
        Listing, never empty.

    Raises:
        SourceError: not there, empty, compressed, cut short, or a name that gives no label.
        StoreError: it can't be read.
    """
    builder = ListingBuilder(redacted(url), include)
    store = Store(url, options)
    if store.local is not None:
        is_folder = store.local.is_dir()
        if not store.local.exists():
            raise SourceError(f"{url}: there is no such file or folder")
    else:
        is_folder = store.size("") is None
    if is_folder:
        folder.collect(store, builder)
        return builder.finish(store.url, labels, label_pattern)
    parent, name = split(store.url)
    store = Store(parent, options)
    try:
        tar.collect(store, name, builder)
    except StoreError as error:
        raise SourceError(str(error)) from error
    return builder.finish(parent, labels, label_pattern)
