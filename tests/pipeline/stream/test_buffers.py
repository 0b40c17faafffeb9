"""Memory that is used again never hands out what somebody still looks at."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from pipeline.stream.buffers import Scratch


@pytest.mark.parametrize("size", [1, 600_000, 1 << 20, 3 << 20, 16 << 20])
def test_a_task_reads_where_the_one_before_did(size: int) -> None:
    memory = Scratch(16 << 20)
    first = memory.take((size,))
    first[:] = ord("1")
    again = memory.take((size,))
    again[:1] = ord("2")
    assert first.tobytes() == b"2" + b"1" * (size - 1)
    assert len(memory.take((min(2 * size, 16 << 20),))) == min(2 * size, 16 << 20)


def test_more_than_is_kept_is_given_back_at_once() -> None:
    memory = Scratch(16 << 20)
    large = memory.take((40 << 20,))
    assert large.nbytes == 40 << 20
    kept = memory.take((16 << 20,))
    assert not np.shares_memory(kept, large)
    assert kept.base is not None
    assert kept.base.nbytes == 16 << 20
    assert np.shares_memory(memory.take((1,)), kept)


def test_memory_without_a_limit_is_kept_and_shaped() -> None:
    memory = Scratch()
    large = memory.take((4, 10 << 20))
    assert large.shape == (4, 10 << 20)
    assert np.shares_memory(memory.take((1, 2, 3)), large)


def test_each_thread_has_its_own() -> None:
    memory = Scratch(16 << 20)
    mine = memory.take((100,))
    mine[:] = ord("m")
    thread = threading.Thread(target=lambda: memory.take((100,)).fill(ord("o")))
    thread.start()
    thread.join()
    assert bytes(mine) == b"m" * 100
