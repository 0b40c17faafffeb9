"""Finds shards that were moved or copied together with a manifest that lies in another folder (`index --to`).

Such a manifest names the folder of its shards twice: by the URL, and by the place relative to the manifest.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from pathlib import Path

from shards.errors import ManifestMismatch, StoreError
from shards.store import Options, Store
from shards.urls import redacted

_PROBED = 3  # shards that are looked for in a folder, because one may be lost


def relative_place(shards_url: str, url: str) -> str:
    """Returns the place of the shards' folder relative to the manifest's, such as `../tars`; empty if no folder holds both."""
    (scheme, shards), (other, folder) = _taken_apart(shards_url), _taken_apart(url)
    if scheme != other or not posixpath.commonpath([shards, folder]).strip("/"):
        return ""
    return posixpath.relpath(shards, folder)


def place_from(url: str, relative: str) -> str:
    """Returns the folder that lies at a place relative to the folder `url`, as an absolute path or a URL."""
    scheme, folder = _taken_apart(url)
    place = posixpath.normpath(posixpath.join(folder, relative))
    return f"{scheme}{place}"


def find_shards(url: str, named: str, moved: str, shards: Sequence[tuple[str, int]], options: Options | None) -> str:
    """Returns the folder of the shards of a manifest that was moved: the one that came along with it, if it holds at least as many
    of some shards as the one that it names, as it does not while it is being copied.

    Args:
        url: folder of the manifest.
        named: folder of the shards when they were indexed.
        moved: folder of the shards by their place relative to the manifest.
        shards: name and size in bytes of each shard.
        options: fsspec options of the store.

    Raises:
        ManifestMismatch: neither folder holds the shards.
    """
    probed = list(dict.fromkeys([*shards[:: max(1, len(shards) // _PROBED)], *shards[-1:]]))  # a copy that is under way lacks the last
    came = _held(moved, probed, options) or 0
    if came == len(probed):
        return moved
    left = _held(named, probed, options)
    if came and came >= (left or 0):
        return moved
    if left == 0:
        raise ManifestMismatch(
            f"{redacted(url)}: its shards are neither in {redacted(named)}, where they were indexed, nor in {redacted(moved)}, the same "
            "place relative to the manifest. Move them to one of these folders, or index them where they are: python -m shards index"
        )
    return named


def _held(url: str, shards: Sequence[tuple[str, int]], options: Options | None) -> int | None:
    """Returns how many of the shards a folder holds; None if the folder can't be read."""
    try:
        store = Store(url, options)
        return sum(store.size(name) == size for name, size in shards)
    except StoreError:
        return None


def _taken_apart(url: str) -> tuple[str, str]:
    """Splits a URL in front of the slash of its root, below which a bucket is the first folder; in front of a local path is nothing."""
    scheme, separator, rest = url.partition("://")
    if separator and scheme not in {"file", "local"}:
        return f"{scheme}:/", f"/{rest.strip('/')}"
    return "", os.path.abspath(Path(rest or url).expanduser())  # noqa: PTH100 - links stay as they were named
