"""Listings of remote folders: everything in them, or an error; a folder that may not be listed is never an empty one."""

from __future__ import annotations

from typing import Any

import fsspec
import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from shards.remote_listing import find

NAMES = ["a.tar", "b/c.tar", "b/d/e.tar", "f/g.tar"]


class Guarded(MemoryFileSystem):
    """Objects in memory, in folders that may not all be listed."""

    closed: str | None = None
    find = AbstractFileSystem.find  # which walks

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        if self.closed is not None and path.strip("/").endswith(self.closed):
            raise PermissionError(f"{path}: not for you")
        return super().ls(path, detail=detail)


@pytest.fixture
def files() -> Guarded:
    fsspec.filesystem("memory").store.clear()
    files = Guarded(skip_instance_cache=True)
    for name in NAMES:
        files.pipe_file(f"/set/{name}", b"x")
    return files


@pytest.mark.parametrize(("depth", "count"), [(1, 1), (2, 3), (3, 4), (None, 4)])
def test_all_objects_down_to_a_depth_are_listed(files: Guarded, depth: int | None, count: int) -> None:
    assert sorted(find(files, "/set", depth)) == sorted(f"/set/{name}" for name in NAMES if depth is None or name.count("/") < depth)
    assert len(find(files, "/set", depth)) == count
    assert find(files, "/nowhere", depth) == {}
    assert list(find(files, "/set/a.tar", depth)) == ["/set/a.tar"]


@pytest.mark.parametrize(("closed", "depth"), [("set", 1), ("set", None), ("set/b", 2), ("set/b/d", None), ("set/f", None)])
def test_a_folder_that_may_not_be_listed_is_an_error(files: Guarded, closed: str, depth: int | None) -> None:
    files.closed = closed
    with pytest.raises(PermissionError, match="not for you"):
        find(files, "/set", depth)
