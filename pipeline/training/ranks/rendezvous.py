"""How the ranks find each other, and who is missing when they don't.

The first rank to be there opens a store, or the launcher has one; every rank announces itself in it, and whoever is missing can be named.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from shards.errors import ExplainedError

_FIRST_LOOK, _LONGEST_LOOK = 1.0, 60.0  # seconds between two looks at who is missing: each asks for every rank, and every rank looks
_PAUSE = 0.1
_SHOWN = 8


class RanksMissing(ExplainedError):
    """Not every rank came in time. Names those that did not."""


def connect(address: str, port: int, size: int, is_master: bool, timeout: timedelta, tell: Callable[[str], None] | None) -> TCPStore:
    """The store of the run.

    Args:
        address: of the machine that has it.
        port: of the store.
        size: ranks of the run.
        is_master: whether this process opens it.
        timeout: longest wait for it to be there.
        tell: told what is waited for.

    Raises:
        RanksMissing: nobody opened it in time.
    """
    if tell is not None:
        tell(f"waiting for rank 0 or its launcher to open {address}:{port}")
    try:
        return TCPStore(address, port, size, is_master=is_master, timeout=timeout, wait_for_workers=False)
    except RuntimeError as error:
        if is_master:
            raise
        raise RanksMissing(
            f"nobody opened {address}:{port}, where the ranks meet, in {timeout.total_seconds() / 60:.3g} minutes. Was rank 0 started, "
            f"and can its machine be reached from here? ({_first_line(error)})"
        ) from error


def meet(store: Store, rank: int, size: int, timeout: timedelta, tell: Callable[[str], None] | None) -> None:
    """Waits until every rank is there.

    Args:
        store: that all of them use, without the keys of other attempts.
        rank: of this process.
        size: ranks of the run.
        timeout: longest wait.
        tell: told who is missing, as long as somebody is.

    Raises:
        RanksMissing: not all came in time.
    """
    store.set(f"joined/{rank}", "")
    if store.add("joined", 1) == size:
        store.set("complete", "")
    where = f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"
    began = time.monotonic()
    look = began + _FIRST_LOOK

    def missing() -> str:
        return _named([other for other in range(size) if not store.check([f"joined/{other}"])])

    while not store.check(["complete"]):
        now = time.monotonic()
        if now >= look:
            look = now + min(now - began, _LONGEST_LOOK)
            if tell is not None:
                tell(f"waiting for {missing()} of {size} to join at {where}")
        if now - began > timeout.total_seconds():
            raise RanksMissing(
                f"{missing()} of {size} did not join at {where} in {timeout.total_seconds() / 60:.3g} minutes. Look for what they "
                "said when they were started; where they need longer, set training.timeout_minutes"
            )
        time.sleep(_PAUSE)  # not store.wait, which logs every time that it was in vain


def _named(ranks: list[int]) -> str:
    if not ranks:
        return "the others"
    shown = ", ".join(map(str, ranks[:_SHOWN])) + (f" and {len(ranks) - _SHOWN} more" if len(ranks) > _SHOWN else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]
