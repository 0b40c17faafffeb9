"""Lists the objects of a remote file system, or raises, because fsspec's own walk leaves out a folder that may not be listed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem


def find(fs: Any, path: str, depth: int | None = None, prefix: str = "") -> dict[str, Mapping[str, Any]]:
    """Lists the objects below a folder, or the object itself.

    Args:
        fs: file system of fsspec.
        path: path of the folder in the file system.
        depth: levels of folders that are listed; 1 lists the folder alone, None everything.
        prefix: beginning of the names right in the folder that are wanted; names that begin otherwise may be listed or not.

    Returns:
        Path -> description by the store; empty where there is no such folder.

    Raises:
        OSError or an error of the client: a folder can't be listed.
    """
    try:
        if depth is None and _lists_flat(fs):
            return dict(fs.find(path, detail=True))
        if depth == 1 and prefix and "s3" in fs.protocol:
            return dict(fs.find(path, maxdepth=1, prefix=prefix, detail=True))
        waiting = [(path.rstrip("/"), 1, fs.ls(path, detail=True, refresh=True))]
    except (FileNotFoundError, NotADirectoryError):
        return {}
    found: dict[str, Mapping[str, Any]] = {}
    seen = {path.rstrip("/")}
    while waiting:
        folder, level, listed = waiting.pop()
        for info in listed:
            name = str(info["name"])
            if info["type"] != "directory":
                if not name.endswith("/"):  # an object that stands for a folder
                    found[name] = info
            elif name.rstrip("/") not in seen and name.startswith(f"{folder}/") and (depth is None or level < depth):
                seen.add(name.rstrip("/"))
                try:
                    waiting.append((name.rstrip("/"), level + 1, fs.ls(name.rstrip("/"), detail=True, refresh=True)))
                except (FileNotFoundError, NotADirectoryError):
                    continue  # removed in the meantime, or a link of a web page that leads nowhere
    return found


def _lists_flat(fs: Any) -> bool:
    """Returns whether a file system lists everything below a folder by requests of its own instead of walking."""
    kind = type(fs)
    return bool(kind._find is not AsyncFileSystem._find if fs.async_impl else kind.find is not AbstractFileSystem.find)
