"""Explains a missing manifest: which command makes a data set of what is there instead."""

from __future__ import annotations

import re
import shlex
from contextlib import suppress

from shards.counting import counted
from shards.errors import ManifestMismatch, StoreError
from shards.store import Options, Store
from shards.tar.places import command_to_index, index_command
from shards.urls import redacted


def not_indexed(url: str, manifest: str, options: Options | None = None) -> ManifestMismatch:
    """Returns the error for a URL that names tars instead of a data set, with the command that indexes them.

    Args:
        url: URL that `index_command` knows.
        manifest: name of manifests.
        options: fsspec options of the store.
    """
    shown = redacted(url)
    folder = re.split(r"::|[{*?\[]", url, maxsplit=1)[0].rpartition("/")[0]
    with suppress(StoreError):
        if folder and Store(folder, options).size(manifest) is not None:
            return ManifestMismatch(f"{shown}: names tars, and their folder is a data set already. Give the folder: {redacted(folder)}")
    return ManifestMismatch(
        f"{shown}: names tars, not a data set, which is a folder with a manifest. Make one of them, and then give the folder that the "
        f"command prints: {index_command(url)}"
    )


def no_manifest(store: Store, name: str) -> ManifestMismatch:
    """Returns the error for a folder without the manifest `name`, with the command that makes a data set of the tars there, if any."""
    found = [entry for entry, _ in store.list(deep=False) if entry.endswith(".tar")]
    folder = store.describe()
    what = f"{counted(len(found), '.tar file')} but no manifest" if found else "no shards"
    build = f"python -m shards build PICTURES {shlex.quote(folder)}"
    advice = f"Make one with: {command_to_index(folder)} (or build one: {build})" if found else f"Build it with: {build}"
    return ManifestMismatch(f"{store.describe(name)}: {folder} holds {what}. {advice}")
