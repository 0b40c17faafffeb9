"""Threads for linear algebra: one for small matrices, because several wait for each other longer than they compute.

On a busy machine the wait is long: two threads took 40 times the time of one for a logistic regression of 256 pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits

_SMALL = 1 << 24  # values of a table: 1,800 pictures of 9,216 features


@contextmanager
def threads_for(values: int) -> Iterator[None]:
    """Lets torch, NumPy and scikit-learn use one thread while a small table is worked on, and as many as before for a larger one.

    Args:
        values: number of values in the table.
    """
    if values > _SMALL:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)
