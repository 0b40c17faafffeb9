"""Memory that is used again never hands out what somebody still looks at."""

from __future__ import annotations

import threading

import pytest

from pipeline.stream.scratch import ReadMemory


def test_files_of_a_task_lie_behind_one_another_and_the_next_task_in_their_place() -> None:
    memory = ReadMemory()
    first, second = memory.take(600_000), memory.take(300_000)
    first[:], second[:] = b"1" * 600_000, b"2" * 300_000
    assert bytes(first) == b"1" * 600_000
    memory.clear()
    again = memory.take(600_000)
    again[:4] = b"next"
    assert bytes(first[:4]) == b"next"


@pytest.mark.parametrize("size", [700_000, 1_150_000, 3 << 20, 5 << 20, 40 << 20])
def test_a_task_that_needs_more_keeps_what_it_was_given(size: int) -> None:
    memory = ReadMemory()
    kept = []
    for number in range(16 if size < 4 << 20 else 4):
        place = memory.take(size)
        assert len(place) == size
        place[:] = bytes([number]) * size
        kept.append(place)
    small = memory.take(10)
    small[:] = b"x" * 10
    assert [place.tobytes() == bytes([number]) * size for number, place in enumerate(kept)] == [True] * len(kept)
    held = sum({id(place.obj): len(place.obj) for place in kept}.values())
    assert held <= size * len(kept) + (32 << 20), "memory that nobody asked for"
    assert bytes(small) == b"x" * 10


def test_each_thread_has_its_own() -> None:
    memory = ReadMemory()
    mine = memory.take(100)
    mine[:] = b"m" * 100
    thread = threading.Thread(target=lambda: memory.take(100).__setitem__(slice(None), b"o" * 100))
    thread.start()
    thread.join()
    assert bytes(mine) == b"m" * 100
