"""The version of a tar in a store (ETag, else size and time), by which a tar that was replaced is noticed."""

from __future__ import annotations

from dataclasses import dataclass

from shards.store import Info, Store

# names of the time of the last change, as clients of S3, Azure, Google, HTTP, FTP, Hadoop and WebDAV use them
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "Last-Modified", "modify", "modificationTime", "modified", "created")


@dataclass(frozen=True, order=True)
class Tar:
    """One tar: its name below the folder of the listing, its size in bytes and its version."""

    name: str
    size: int
    version: str


def version_of(info: Info) -> str:
    """Returns the version of an object that fsspec describes by `info`: the ETag without quotes, else size and time.

    The version is empty where the store gives neither, because nothing then shows that the object is still the same.
    """
    etag = info.get("ETag") or info.get("etag")
    if etag:
        return str(etag).strip('"')
    time = next((info[key] for key in _TIMES if info.get(key) is not None), None)
    return "" if time is None else f"{info.get('size')}-{time}"


def look_up(store: Store, name: str) -> Tar | None:
    """Asks the store for the present state of the tar `name`; None where there is no such tar.

    Raises:
        StoreError: the store can't be read.
    """
    store.fs.invalidate_cache()
    info = info_of(store, name)
    return None if info is None else Tar(name, int(info["size"] or 0), version_of(info))


def info_of(store: Store, name: str) -> Info | None:
    """Asks the store for its description of an object; None where there is no such object.

    Raises:
        StoreError: the store can't be read.
    """
    info = store.info(name)
    return None if info is None or info["type"] == "directory" else info
