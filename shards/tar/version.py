"""The state of a tar in a store: name, size and version (ETag, else time), by which a tar that was replaced is noticed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shards.store import Store

# what clients of S3, Azure, Google, HTTP, FTP, Hadoop and WebDAV call the time of the last change
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "Last-Modified", "modify", "modificationTime", "modified", "created")
Info = Mapping[str, Any]


@dataclass(frozen=True, order=True)
class Tar:
    """One tar: its name below the folder of the listing, bytes, and what the store calls this state of it."""

    name: str
    size: int
    version: str


def version_of(info: Info) -> str:
    """What a store says about an object's state, as `fsspec` describes the object: the ETag without quotes, else size and time.

    Empty where the store tells neither: such an object is never known to be the one that it was.
    """
    etag = info.get("ETag") or info.get("etag")
    if etag:
        return str(etag).strip('"')
    time = next((info[key] for key in _TIMES if info.get(key) is not None), None)
    return "" if time is None else f"{info.get('size')}-{time}"


def look_up(store: Store, name: str) -> Tar | None:
    """What the store says now of the tar `name`, None where it is not there.

    Raises:
        StoreError: the store can't be read.
    """
    store.fs.invalidate_cache()
    info = info_of(store, name)
    return None if info is None else Tar(name, int(info["size"] or 0), version_of(info))


def info_of(store: Store, name: str) -> Info | None:
    with store.as_store_errors(name):
        try:
            info: Info = store.fs.info(store.path(name))
        except (FileNotFoundError, NotADirectoryError):
            return None
    return None if info["type"] == "directory" else info
