"""Local files that appear whole or not at all, and locks among processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from shards.local_files import LEFT_BEHIND, TEMPORARY_PREFIX, try_lock, unlock, whole_file


@pytest.mark.parametrize("one_writer", [True, False])
def test_a_block_that_raises_leaves_the_old_file_and_nothing_else(tmp_path: Path, one_writer: bool) -> None:
    target = tmp_path / "x"
    target.write_bytes(b"old")

    def half() -> None:
        with whole_file(target, one_writer=one_writer) as file:
            file.write(b"half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        half()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert target.read_bytes() == b"old"


def test_the_next_write_replaces_what_a_kill_has_left(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY_PREFIX}x").write_bytes(b"half, and longer than what comes next")
    with whole_file(tmp_path / "x", one_writer=True) as file:
        file.write(b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"new"


def test_what_a_kill_has_left_of_one_of_several_writers_has_a_name_that_sweeps_know(tmp_path: Path) -> None:
    with whole_file(tmp_path / "x"):
        (partial,) = tmp_path.iterdir()
        assert LEFT_BEHIND.fullmatch(partial.name)


def test_shared_locks_live_together_and_exclude_the_exclusive_one(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with open(tmp_path / "x") as first, open(tmp_path / "x") as second, open(tmp_path / "x") as third:
        assert try_lock(first.fileno(), shared=True)
        assert try_lock(second.fileno(), shared=True)
        assert not try_lock(third.fileno())
        unlock(first.fileno())
        unlock(second.fileno())
        assert try_lock(third.fileno())
        assert not try_lock(first.fileno(), shared=True)
