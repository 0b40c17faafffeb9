"""Memory that is used again never hands out what somebody still looks at."""

from __future__ import annotations

import threading

import pytest

from pipeline.stream.scratch import ReadMemory


@pytest.mark.parametrize("size", [1, 600_000, 1 << 20, 3 << 20, 16 << 20])
def test_a_task_reads_where_the_one_before_did(size: int) -> None:
    memory = ReadMemory()
    first = memory.take(size)
    first[:] = b"1" * size
    again = memory.take(size)
    again[:1] = b"2"
    assert first.tobytes() == b"2" + b"1" * (size - 1)
    assert len(memory.take(min(2 * size, 16 << 20))) == min(2 * size, 16 << 20)


def test_more_than_is_kept_is_given_back_at_once() -> None:
    memory = ReadMemory()
    large = memory.take(40 << 20)
    assert len(large.obj) == len(large) == 40 << 20  # type: ignore[arg-type]
    kept = memory.take(16 << 20)
    assert kept.obj is not large.obj
    assert len(kept.obj) == 16 << 20  # type: ignore[arg-type]
    assert memory.take(1).obj is kept.obj


def test_each_thread_has_its_own() -> None:
    memory = ReadMemory()
    mine = memory.take(100)
    mine[:] = b"m" * 100
    thread = threading.Thread(target=lambda: memory.take(100).__setitem__(slice(None), b"o" * 100))
    thread.start()
    thread.join()
    assert bytes(mine) == b"m" * 100
